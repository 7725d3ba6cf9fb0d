package earthfile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/llb"
)

// env sets a variable of the image: NAME=VALUE, as often as wanted, or NAME VALUE.
func (f *frame) env(ctx context.Context, c *command) error {
	pairs, err := f.pairs(ctx, c)
	if err != nil {
		return err
	}
	img := f.out.image
	for _, p := range pairs {
		img.State = img.State.AddEnv(p.name, p.value)
		env := slices.DeleteFunc(slices.Clone(img.Config.Env), func(kv string) bool { return strings.HasPrefix(kv, p.name+"=") })
		img.Config.Env = append(env, p.name+"="+p.value)
		delete(f.vars, p.name) // the image's own from here on
	}
	return nil
}

// label sets labels of the image.
func (f *frame) label(ctx context.Context, c *command) error {
	pairs, err := f.pairs(ctx, c)
	if err != nil {
		return err
	}
	labels := maps.Clone(f.out.image.Config.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	for _, p := range pairs {
		labels[p.name] = p.value
	}
	f.out.image.Config.Labels = labels
	return nil
}

// pair is a name with its value.
type pair struct{ name, value string }

func (f *frame) pairs(ctx context.Context, c *command) ([]pair, error) {
	first := c.words[0].text
	if !strings.Contains(first, "=") { // NAME VALUE, or NAME = VALUE
		value := strings.TrimSpace(strings.TrimPrefix(c.raw, first))
		if value == "" {
			return nil, fmt.Errorf("%s %s has no value: expected %s NAME=VALUE", c.verb, first, c.verb)
		}
		value = strings.TrimSpace(strings.TrimPrefix(value, "="))
		text, err := f.expand(ctx, c, word{text: value, at: c.at})
		return []pair{{first, text}}, err
	}
	var out []pair
	for _, w := range c.words {
		text, err := f.expand(ctx, c, w)
		if err != nil {
			return nil, err
		}
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, f.File.Errorf(w.at, "%s has %s: expected NAME=VALUE", c.verb, w.text)
		}
		out = append(out, pair{name, value})
	}
	return out, nil
}

// workdir makes a folder and goes there.
func (f *frame) workdir(ctx context.Context, c *command) error {
	dir, err := f.one(ctx, c)
	if err != nil {
		return err
	}
	if dir = strings.TrimSuffix(f.absolute(dir), "/"); dir == "" {
		dir = "/"
	}
	img := f.out.image
	img.State, img.Config.WorkingDir = img.State.Dir(dir), dir
	if dir != "/" {
		img.State = img.State.File(llb.Mkdir(dir, 0o755, llb.WithParents(true)), f.step(c))
	}
	return nil
}

func (f *frame) user(ctx context.Context, c *command) error {
	user, err := f.one(ctx, c)
	if err != nil {
		return err
	}
	f.out.image.State, f.out.image.Config.User = f.out.image.State.User(user), user
	return nil
}

// one is the only word of a command.
func (f *frame) one(ctx context.Context, c *command) (string, error) {
	if len(c.words) != 1 {
		return "", f.File.Errorf(c.words[1].at, "%s has %d words: expected one, with quotes around blanks", c.verb, len(c.words))
	}
	text, err := f.expand(ctx, c, c.words[0])
	if err == nil && text == "" {
		err = f.File.Errorf(c.words[0].at, "%s is empty: expected %s", c.verb, usage()[c.verb])
	}
	return text, err
}

func (f *frame) entrypoint(_ context.Context, c *command) error {
	f.out.image.Config.Entrypoint, f.out.image.Config.Cmd = commandLine(c.raw), nil
	return nil
}

func (f *frame) cmd(_ context.Context, c *command) error {
	f.out.image.Config.Cmd = commandLine(c.raw)
	return nil
}

func (f *frame) expose(ctx context.Context, c *command) error {
	return f.entries(ctx, c, &f.out.image.Config.ExposedPorts, func(s string) string {
		if strings.Contains(s, "/") {
			return s
		}
		return s + "/tcp"
	})
}

func (f *frame) volume(ctx context.Context, c *command) error {
	return f.entries(ctx, c, &f.out.image.Config.Volumes, func(s string) string { return s })
}

// entries adds words to a set of the image's config.
func (f *frame) entries(ctx context.Context, c *command, set *map[string]struct{}, name func(string) string) error {
	words, err := f.expandAll(ctx, c, c.words)
	if err != nil {
		return err
	}
	all := maps.Clone(*set)
	if all == nil {
		all = map[string]struct{}{}
	}
	for _, w := range words {
		all[name(w)] = struct{}{}
	}
	*set = all
	return nil
}
