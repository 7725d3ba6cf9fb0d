// Package earthfile is the frontend of Earthfiles: a Makefile whose targets run in
// containers. See README.md for what of Earthly's language it has.
//
// It is a small compiler. A file is scanned to lines and words (scan.go) and parsed
// whole, by a table of commands (commands.go, parse.go). Then the target that is
// wanted is lowered (lower.go and what it calls): its commands are carried out on a
// state, and those of other targets when they are asked for. What a condition or a
// substitution needs to know of a container is found by a solve (probe.go).
package earthfile

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// Image is the repository that the first line of an Earthfile names.
const Image = "kiln-build/earthfile"

// New returns the frontend.
func New() frontend.Frontend { return sdk.Answering(build, targets) }

func build(ctx context.Context, req frontend.Request, gw frontend.Gateway) (*frontend.Result, error) {
	b, err := sdk.Open(ctx, req, gw)
	if err != nil {
		return nil, err
	}
	b.IgnoreFiles = []string{".earthlyignore", ".earthignore", ".dockerignore"}
	file, err := parse(b.File)
	if err != nil {
		return nil, err
	}
	name, artifact, _ := strings.Cut(strings.TrimPrefix(b.Target, "+"), "/")
	if name, err = file.target(b.File.Name, name); err != nil {
		return nil, err
	}
	var names sync.Map // of images
	res, err := b.Images(ctx, func(ctx context.Context, p ocispecs.Platform) (*sdk.Image, error) {
		l := &lowering{Build: b, gw: gw, file: file, made: map[string]*made{}}
		m, err := l.target(ctx, call{name: name, platform: p})
		if err != nil {
			return nil, err
		}
		names.Store("", m.names)
		img, err := l.result(ctx, m, artifact, p)
		if err != nil {
			return nil, err
		}
		return img, l.push(ctx, m, img, p)
	})
	if err != nil {
		return nil, err
	}
	if list, ok := names.Load(""); ok && artifact == "" && len(list.([]string)) > 0 {
		res.Meta["image.name"] = []byte(strings.Join(list.([]string), ","))
	}
	return res, nil
}

// targets are what a file can make.
func targets(_ context.Context, b *sdk.Build) ([]sdk.Target, error) {
	file, err := parse(b.File)
	if err != nil {
		return nil, err
	}
	chosen, err := file.target(b.File.Name, "")
	if err != nil {
		return nil, err
	}
	var all []sdk.Target
	for _, name := range file.names {
		r := file.recipes[name]
		all = append(all, sdk.Target{Name: name, Default: name == chosen, Base: r.from(), Line: r.at.Start.Line})
	}
	return all, nil
}

// from is what a target says that it starts from; "" if it does not.
func (r *recipe) from() string {
	if len(r.body) > 0 && r.body[0].verb == "FROM" {
		return r.body[0].words[0].text
	}
	return ""
}

// target is the name of the target to build: if none is named, "all", or the file's
// first one.
func (f *earthfile) target(file, name string) (string, error) {
	switch r := f.recipes[name]; {
	case name == "" && len(f.names) == 0:
		return "", fmt.Errorf("%s has no targets: expected at least one, as NAME: at the start of a line", file)
	case name == "" && slices.Contains(f.names, "all"):
		return "all", nil
	case name == "":
		return f.names[0], nil
	case r == nil:
		return "", fmt.Errorf("target %q is none of %s: %s", name, file, expected(name, slices.Clone(f.names)))
	case r.function:
		return "", fmt.Errorf("%s is a function of %s: expected a target, one of %s", name, file, strings.Join(f.names, ", "))
	}
	return name, nil
}

// result is what a target gives its user: the artifact that is asked for; or its
// image, if it saves one; or the files that it and those that it builds save as
// local ones, if there are any; or what files it ends with.
func (l *lowering) result(ctx context.Context, m *made, artifact string, p ocispecs.Platform) (*sdk.Image, error) {
	all := m.withBuilds()
	var locals []files
	for _, other := range all {
		locals = append(locals, other.locals...)
	}
	tree := llb.Scratch()
	switch {
	case artifact != "" || strings.HasSuffix(l.Target, "/"):
		if !m.saved {
			return nil, fmt.Errorf("target %s saves no artifacts: expected SAVE ARTIFACT in it", m.name)
		}
		tree = tree.File(llb.Copy(m.artifacts, path.Join("/", artifact), "/", copyInfo(true)), llb.WithCustomNamef("[+%s] artifact /%s", m.name, artifact))
	case m.isImage || len(locals) == 0:
		// Those are the target's own files: only what it builds is left to do.
		return m.image, l.carryOut(ctx, slices.DeleteFunc(all, func(o *made) bool { return o == m && !m.saved }), p)
	default:
		for _, s := range locals {
			tree = s.onto(tree)
		}
	}
	return &sdk.Image{State: tree}, l.carryOut(ctx, all, p)
}

// withBuilds are a target and all that it builds, each once.
func (m *made) withBuilds() []*made {
	all, seen := []*made{m}, map[*made]bool{m: true}
	for i := 0; i < len(all); i++ {
		for _, other := range all[i].builds {
			if !seen[other] {
				seen[other] = true
				all = append(all, other)
			}
		}
	}
	return all
}

// carryOut runs what targets do, whether or not the result needs it.
func (l *lowering) carryOut(ctx context.Context, targets []*made, p ocispecs.Platform) error {
	errs := make([]error, len(targets))
	var all sync.WaitGroup
	for i, m := range targets {
		all.Go(func() {
			states := []llb.State{m.image.State}
			if m.saved {
				states = append(states, m.artifacts)
			}
			for _, st := range states {
				if errs[i] == nil {
					errs[i] = l.evaluate(ctx, st, p)
				}
			}
		})
	}
	all.Wait()
	for _, err := range errs { // one is enough: they are of one file
		if err != nil {
			return err
		}
	}
	return nil
}

// push runs what RUN --push says, when all else is done: one after the other, that of
// a target behind those that it builds.
func (l *lowering) push(ctx context.Context, m *made, img *sdk.Image, p ocispecs.Platform) error {
	pushes := m.pushes(map[*made]bool{})
	if len(pushes) == 0 {
		return nil
	}
	for _, st := range append([]llb.State{img.State}, pushes...) {
		if err := l.evaluate(ctx, st, p); err != nil {
			return err
		}
	}
	return nil
}

// pushes are what a target pushes and those that it builds, each once.
func (m *made) pushes(seen map[*made]bool) (all []llb.State) {
	if seen[m] {
		return nil
	}
	seen[m] = true
	for _, other := range m.builds {
		all = append(all, other.pushes(seen)...)
	}
	if m.push != nil {
		all = append(all, *m.push)
	}
	return all
}

func (l *lowering) evaluate(ctx context.Context, st llb.State, p ocispecs.Platform) error {
	g, err := st.Graph(ctx, llb.Platform(p))
	if err != nil || g.Root.Vertex == nil {
		return err
	}
	ref, err := l.gw.Solve(ctx, g)
	if err != nil {
		return err
	}
	return ref.Evaluate(ctx)
}
