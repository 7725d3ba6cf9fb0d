package earthfile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// Bounds of what a file may make: how many commands are carried out in all, how many
// bytes their words become, and how deep targets and functions call each other.
const (
	maxCommands = 20_000
	maxExpanded = 64 << 20
	maxDepth    = 64
)

// lowering makes the targets that one platform's result needs.
type lowering struct {
	*sdk.Build
	gw       frontend.Gateway
	file     *earthfile
	made     map[string]*made // by what they were called with; nil while being made
	making   []string         // names
	commands int              // carried out
	expanded int              // bytes of words
}

// call is a target, or a function, with what it is called with.
type call struct {
	name     string
	at       llb.Range
	args     map[string]string
	platform ocispecs.Platform
}

// key is the same for calls that make the same.
func (c call) key() string {
	parts := []string{c.name, platforms.FormatAll(c.platform)}
	for _, k := range slices.Sorted(maps.Keys(c.args)) {
		parts = append(parts, fmt.Sprintf("%q=%q", k, c.args[k]))
	}
	return strings.Join(parts, " ")
}

// made is what a target made.
type made struct {
	name      string
	image     *sdk.Image
	begun     bool      // it has files
	artifacts llb.State // those of SAVE ARTIFACT
	saved     bool      // there are some
	locals    []files   // of AS LOCAL
	isImage   bool      // by SAVE IMAGE
	names     []string  // of the image
	builds    []*made   // by BUILD

	push *llb.State      // what the commands of RUN --push end with; nil if there are none
	runs []llb.RunOption // of CACHE and HOST, for all commands behind them

	env map[string]string // variables of the base recipe that all targets have
}

// frame is a target or a function while it is being made.
type frame struct {
	*lowering
	out      *made
	at       string // the target's name, for steps
	inBase   bool
	platform ocispecs.Platform
	given    map[string]string // arguments of the call
	vars     map[string]string // of ARG, LET and FOR
	lets     map[string]bool   // those that SET may change
	globals  map[string]string
	calls    int // of functions in each other
}

// target makes a target, once for the same arguments.
func (l *lowering) target(ctx context.Context, c call) (*made, error) {
	key := c.key()
	if m, ok := l.made[key]; m != nil {
		return m, nil
	} else if ok {
		return nil, l.File.Errorf(c.at, "target %s is made of itself: %s", c.name, strings.Join(append(slices.Clone(l.making), c.name), " needs "))
	}
	if len(l.making) >= maxDepth {
		return nil, l.File.Errorf(c.at, "targets need each other more than %d deep: %s and so on", maxDepth, strings.Join(l.making[:3], " needs "))
	}
	l.made[key] = nil
	l.making = append(l.making, c.name)
	defer func() { l.making = l.making[:len(l.making)-1] }()
	base := &made{image: &sdk.Image{State: llb.Scratch()}}
	body := l.file.base
	if c.name != baseRecipe {
		var err error
		if base, err = l.target(ctx, call{name: baseRecipe, platform: c.platform}); err != nil {
			return nil, err
		}
		body = l.file.recipes[c.name].body
	}
	img := *base.image // the base stays as it is
	f := &frame{
		lowering: l, at: c.name, inBase: c.name == baseRecipe, platform: c.platform, given: c.args,
		out:  &made{name: c.name, image: &img, begun: base.begun, artifacts: llb.Scratch(), env: map[string]string{}, runs: slices.Clone(base.runs)},
		vars: map[string]string{}, lets: map[string]bool{}, globals: base.env,
	}
	if f.inBase {
		f.globals = f.out.env
	}
	if err := f.all(ctx, body); err != nil {
		return nil, err
	}
	l.made[key] = f.out
	return f.out, nil
}

// baseRecipe is the name of the commands above all targets.
const baseRecipe = "base"

// all carries commands out.
func (f *frame) all(ctx context.Context, commands []*command) error {
	for _, c := range commands {
		if f.commands++; f.commands > maxCommands {
			return f.File.Errorf(c.at, "file has more than %d commands carried out: expected fewer targets, arguments or turns of FOR", maxCommands)
		}
		if !c.alone && !f.out.begun {
			return f.File.Errorf(c.at, "%s has no files to work on: expected FROM above it, or above all targets", c.verb)
		}
		if f.out.push != nil && !c.alone && !c.has("push") && !strings.HasPrefix(c.verb, "SAVE ") {
			return f.File.Errorf(c.at, "%s stands behind RUN --push, which runs when all else is done: expected it above, or in another target", c.verb)
		}
		if err := c.make(f, ctx, c); err != nil {
			return f.located(c, err)
		}
	}
	return nil
}

// located gives an error the place of a command unless it has one.
func (f *frame) located(c *command, err error) error {
	if frontend.Located(err) {
		return err
	}
	return f.File.Errorf(c.at, "%w", err)
}

// step is how a command's step is called, and where it is.
func (f *frame) step(c *command) sdk.Step {
	return f.Step(c.at, "[+%s] %s", f.at, strings.Join(strings.Fields(c.verb+" "+c.raw), " "))
}

// find finds a target that a command names.
func (f *frame) find(w word, name string) (*recipe, error) {
	name, ok := strings.CutPrefix(name, "+")
	if !ok {
		return nil, f.File.Errorf(w.at, "%s is a target of another Earthfile, which is not supported: expected +NAME, a target of this file", w.text)
	}
	r := f.file.recipes[name]
	if r == nil {
		return nil, f.File.Errorf(w.at, "there is no target +%s: %s", name, expected(name, slices.Collect(maps.Keys(f.file.recipes))))
	}
	return r, nil
}

// call makes the target that a word names, with the arguments that stand behind it.
func (f *frame) call(ctx context.Context, c *command, w word, name string, args []word, platform ocispecs.Platform) (*made, error) {
	r, err := f.find(w, name)
	if err != nil {
		return nil, err
	}
	if r.function {
		return nil, f.File.Errorf(w.at, "%s is a function: expected DO %s, or a target", name, name)
	}
	given, err := f.arguments(ctx, c, args)
	if err != nil {
		return nil, err
	}
	return f.target(ctx, call{name: r.name, at: w.at, args: given, platform: platform})
}

// arguments reads what a target or function is called with: --NAME=VALUE.
func (f *frame) arguments(ctx context.Context, c *command, words []word) (map[string]string, error) {
	given := map[string]string{}
	if c.has("pass-args") {
		maps.Copy(given, f.vars)
	}
	for _, fl := range c.flags {
		if fl.name != "build-arg" {
			continue
		}
		text, err := f.expand(ctx, c, fl.value)
		if err != nil {
			return nil, err
		}
		name, value, _ := strings.Cut(text, "=")
		given[name] = value
	}
	for i := 0; i < len(words); i++ {
		w := words[i]
		name, value, ok := strings.Cut(w.text, "=")
		if !strings.HasPrefix(name, "--") || len(name) < 3 {
			return nil, f.File.Errorf(w.at, "argument is %s: expected --NAME=VALUE", w.text)
		}
		if ok {
			w.text = value
		} else if i++; i < len(words) {
			w = words[i]
		} else {
			return nil, f.File.Errorf(w.at, "argument %s has no value: expected %s=VALUE", name, name)
		}
		var err error
		if given[name[2:]], err = f.expand(ctx, c, w); err != nil {
			return nil, err
		}
	}
	return given, nil
}

// has tells whether a flag was given.
func (c *command) has(name string) bool {
	return slices.ContainsFunc(c.flags, func(s setting) bool { return s.name == name && s.value.text != "false" })
}

// text is a flag's value, "" if it was not given.
func (f *frame) text(ctx context.Context, c *command, name string) (string, error) {
	for _, fl := range slices.Backward(c.flags) {
		if fl.name == name {
			return f.expand(ctx, c, fl.value)
		}
	}
	return "", nil
}

// platformOf is the platform that a flag says, or else the frame's.
func (f *frame) platformOf(ctx context.Context, c *command) (ocispecs.Platform, error) {
	name, err := f.text(ctx, c, "platform")
	if err != nil || name == "" {
		return f.platform, err
	}
	return readPlatform(name)
}

func readPlatform(name string) (ocispecs.Platform, error) {
	p, err := platforms.Parse(name)
	if err != nil {
		return p, fmt.Errorf("read platform %q: %w", name, err)
	}
	return platforms.Normalize(p), nil
}
