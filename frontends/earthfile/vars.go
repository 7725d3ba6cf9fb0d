package earthfile

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/platforms"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// Get is a variable: of the target, of its environment, or one that all targets have.
func (f *frame) Get(name string) (string, bool) {
	if v, ok := f.vars[name]; ok {
		return v, true
	}
	for _, kv := range f.out.image.Config.Env {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v, true
		}
	}
	v, ok := f.globals[name]
	return v, ok
}

// environment is what commands see besides the image's own: all arguments.
func (f *frame) environment() llb.StateOption {
	return func(st llb.State) llb.State {
		all := maps.Clone(f.globals)
		if all == nil {
			all = map[string]string{}
		}
		for _, kv := range f.out.image.Config.Env {
			name, _, _ := strings.Cut(kv, "=")
			delete(all, name)
		}
		maps.Copy(all, f.vars)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			st = st.AddEnv(name, all[name])
		}
		return st
	}
}

// outputs are what substitutions gave, as variables of names that no file has.
type outputs struct {
	*frame
	texts []string
}

const outputPrefix = "output_of_substitution_"

func (o *outputs) Get(name string) (string, bool) {
	var n int
	if _, err := fmt.Sscanf(name, outputPrefix+"%d", &n); err == nil && n < len(o.texts) {
		return o.texts[n], true
	}
	return o.frame.Get(name)
}

// expand replaces variables and substitutions of a word, and takes off its quotes.
func (f *frame) expand(ctx context.Context, c *command, w word) (string, error) {
	o := &outputs{frame: f}
	text, err := o.substitute(ctx, c, w.text)
	if err != nil {
		return "", err
	}
	x, err := syntax.Expander{Escape: '\\'}.Expand(text, o)
	if err != nil {
		return "", f.File.Errorf(w.at, "%w", err)
	}
	if f.expanded += len(x.Text); f.expanded > maxExpanded {
		return "", f.File.Errorf(w.at, "words of the file become more than %d bytes in all: expected shorter variables, or fewer turns of FOR", maxExpanded)
	}
	return x.Text, nil
}

// expandAll expands words.
func (f *frame) expandAll(ctx context.Context, c *command, words []word) ([]string, error) {
	out := make([]string, len(words))
	var err error
	for i, w := range words {
		if out[i], err = f.expand(ctx, c, w); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// substitute runs the commands in a text and puts variables in their place.
func (o *outputs) substitute(ctx context.Context, c *command, text string) (string, error) {
	var b strings.Builder
	inQuotes := false
	for pos := 0; pos < len(text); {
		end := pos + 1
		var err error
		switch {
		case text[pos] == '"':
			inQuotes = !inQuotes
		case text[pos] == '\'' && inQuotes:
		case strings.HasPrefix(text[pos:], "$("):
			if end, err = parenthesized(text, pos+1); err == nil {
				var got string
				got, err = o.output(ctx, c, text[pos+2:end-1])
				fmt.Fprintf(&b, "${%s%d}", outputPrefix, len(o.texts))
				o.texts = append(o.texts, got)
			}
			if err != nil {
				return "", o.located(c, err)
			}
			pos = end
			continue
		default:
			if end, err = unit(text, pos); err != nil {
				return "", o.located(c, err)
			}
		}
		b.WriteString(text[pos:end])
		pos = end
	}
	return b.String(), nil
}

// builtin are arguments that have a value by themselves.
func (f *frame) builtin(name string) (string, bool) {
	p, worker := f.platform, f.Worker
	all := map[string]string{
		"TARGETPLATFORM": platforms.FormatAll(p), "TARGETOS": p.OS, "TARGETARCH": p.Architecture, "TARGETVARIANT": p.Variant,
		"NATIVEPLATFORM": platforms.FormatAll(worker), "NATIVEOS": worker.OS, "NATIVEARCH": worker.Architecture, "NATIVEVARIANT": worker.Variant,
		"EARTHLY_TARGET": "+" + f.out.name, "EARTHLY_TARGET_NAME": f.out.name, "EARTHLY_TARGET_PROJECT": "", "EARTHLY_TARGET_TAG": "",
		"EARTHLY_TARGET_PROJECT_NO_TAG": "", "EARTHLY_TARGET_TAG_DOCKER": "latest", "EARTHLY_CI_RUNNER": "false",
		"USERPLATFORM": platforms.FormatAll(worker), "USEROS": worker.OS, "USERARCH": worker.Architecture, "USERVARIANT": worker.Variant,
		pushArg: "false", "EARTHLY_CI": "false", "EARTHLY_LOCALLY": "false",
		"EARTHLY_SOURCE_DATE_EPOCH": "0",
	}
	v, ok := all[name]
	return v, ok
}

// declaration reads "NAME=VALUE" with blanks around the sign or not.
func (f *frame) declaration(ctx context.Context, c *command) (name, value string, hasValue bool, err error) {
	name, value, hasValue = strings.Cut(c.raw, "=")
	name, value = strings.TrimSpace(name), strings.TrimSpace(value)
	if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(name) {
		return "", "", false, fmt.Errorf("%s has the name %q: expected letters, digits and '_', as in %s NAME=VALUE", c.verb, name, c.verb)
	}
	value, err = f.expand(ctx, c, word{text: value, at: c.at})
	return name, value, hasValue, err
}

func (f *frame) arg(ctx context.Context, c *command) error {
	name, value, hasValue, err := f.declaration(ctx, c)
	if err != nil {
		return err
	}
	if c.has("global") && !f.inBase {
		return fmt.Errorf("ARG --global is in target %s: expected it above all targets", f.at)
	}
	if c.has("required") && hasValue {
		return fmt.Errorf("ARG --required %s has a value: expected none, or ARG without --required", name)
	}
	given, ok := f.given[name]
	if !ok {
		given, ok = f.Args[name]
	}
	builtin, isBuiltin := f.builtin(name)
	switch {
	case ok:
		value = given
	case hasValue:
	case isBuiltin:
		value = builtin
	case strings.HasPrefix(name, "EARTHLY_"):
		return fmt.Errorf("%s is not known: a build sees neither a repository nor Earthly: expected it by --build-arg %s=VALUE, or a value behind it", name, name)
	}
	if c.has("required") && value == "" {
		return fmt.Errorf("argument %s is required: expected --build-arg %s=VALUE, or --%s=VALUE where +%s is named", name, name, name, f.at)
	}
	f.vars[name] = value
	if c.has("global") {
		f.globals[name] = value
	}
	return nil
}

func (f *frame) let(ctx context.Context, c *command) error {
	name, value, ok, err := f.declaration(ctx, c)
	if err == nil && !ok {
		err = fmt.Errorf("LET %s has no value: expected LET %s=VALUE", name, name)
	}
	if err != nil {
		return err
	}
	f.vars[name], f.lets[name] = value, true
	return nil
}

func (f *frame) set(ctx context.Context, c *command) error {
	name, value, ok, err := f.declaration(ctx, c)
	if err == nil && !ok {
		err = fmt.Errorf("SET %s has no value: expected SET %s=VALUE", name, name)
	}
	if err == nil && !f.lets[name] {
		err = fmt.Errorf("%s is no variable of LET%s: expected LET %s=VALUE above, in the same target", name, suggestion(name, slices.Collect(maps.Keys(f.lets))), name)
	}
	if err != nil {
		return err
	}
	f.vars[name] = value
	return nil
}
