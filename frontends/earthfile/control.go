package earthfile

import (
	"context"
	"fmt"
	"regexp"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend/sdk"
)

// branch carries out IF.
func (f *frame) branch(ctx context.Context, c *command) error {
	for _, b := range c.branches {
		if b.condition != nil {
			ok, err := f.holds(ctx, b.condition)
			if err != nil {
				return f.located(b.condition, err)
			}
			if !ok {
				continue
			}
		}
		return f.all(ctx, b.body)
	}
	return nil
}

// loop carries out FOR.
func (f *frame) loop(ctx context.Context, c *command) error {
	if len(c.words) < 2 || c.words[1].text != "IN" {
		return fmt.Errorf("FOR is %s: expected FOR NAME IN WORDS", c.raw)
	}
	name := c.words[0].text
	if !regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`).MatchString(name) {
		return f.File.Errorf(c.words[0].at, "FOR has the name %q: expected letters, digits and '_'", name)
	}
	separators, err := f.text(ctx, c, "sep")
	if err != nil {
		return err
	}
	if separators == "" {
		separators = " \t\n"
	}
	separators = strings.NewReplacer(`\n`, "\n", `\t`, "\t").Replace(separators)
	texts, err := f.expandAll(ctx, c, c.words[2:])
	if err != nil {
		return err
	}
	before, had := f.vars[name]
	for _, text := range texts {
		for _, item := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(separators, r) }) {
			f.vars[name] = item
			if err := f.all(ctx, c.body); err != nil {
				return err
			}
		}
	}
	if delete(f.vars, name); had {
		f.vars[name] = before
	}
	return nil
}

// do carries a function out, on the files of this frame and with arguments of its
// own.
func (f *frame) do(ctx context.Context, c *command) error {
	w := c.words[0]
	r, err := f.find(w, w.text)
	if err != nil {
		return err
	}
	if !r.function {
		return f.File.Errorf(w.at, "%s is a target: expected BUILD %s, or FUNCTION as its first command", w.text, w.text)
	}
	given, err := f.arguments(ctx, c, c.words[1:])
	if err != nil {
		return err
	}
	if f.calls >= maxDepth {
		return f.File.Errorf(w.at, "functions call each other more than %d deep: expected fewer", maxDepth)
	}
	inner := *f
	inner.calls++
	inner.given, inner.vars, inner.lets = given, map[string]string{}, map[string]bool{}
	return inner.all(ctx, r.body)
}

// build makes other targets beside this one.
func (f *frame) build(ctx context.Context, c *command) error {
	platforms := []ocispecs.Platform{}
	for _, fl := range c.flags {
		if fl.name == "platform" {
			name, err := f.expand(ctx, c, fl.value)
			if err != nil {
				return err
			}
			p, err := readPlatform(name)
			if err != nil {
				return f.File.Errorf(fl.value.at, "%w", err)
			}
			platforms = append(platforms, p)
		}
	}
	if len(platforms) == 0 {
		platforms = append(platforms, f.platform)
	}
	name, err := f.expand(ctx, c, c.words[0])
	if err != nil {
		return err
	}
	for _, p := range platforms {
		m, err := f.call(ctx, c, c.words[0], name, c.words[1:], p)
		if err != nil {
			return err
		}
		f.out.builds = append(f.out.builds, m)
	}
	return nil
}

// from begins with the files of an image or of another target.
func (f *frame) from(ctx context.Context, c *command) error {
	w := c.words[0]
	name, err := f.expand(ctx, c, w)
	if err != nil {
		return err
	}
	platform, err := f.platformOf(ctx, c)
	if err != nil {
		return err
	}
	var img *sdk.Image
	if strings.Contains(name, "+") {
		m, err := f.call(ctx, c, w, name, c.words[1:], platform)
		if err != nil {
			return err
		}
		img = m.image
	} else {
		if len(c.words) > 1 {
			return f.File.Errorf(c.words[1].at, "FROM has %s behind the image: expected nothing, or a target +%s", c.words[1].text, name)
		}
		if img, err = f.Image(ctx, name, platform); err != nil {
			return f.File.Errorf(w.at, "find image %s: %w", name, err)
		}
		if user := img.Config.User; user != "" {
			img.State = img.State.User(user)
		}
	}
	own := *img // others may use it too
	f.out.image, f.out.begun = &own, true
	return nil
}
