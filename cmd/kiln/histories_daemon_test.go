package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/config"
	"github.com/kiln-build/kiln/internal/executor/fake"
	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/gc"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/registry"
	"github.com/kiln-build/kiln/internal/solver"
)

// storyDaemon is all of a daemon that builds, without the server.
type storyDaemon struct {
	world     *world
	root      string
	builder   *build.Builder
	collector *gc.Collector
	parts     *closers
	has       *known
}

func (d *storyDaemon) open() {
	t := d.world.t
	d.parts = &closers{}
	s := settings{root: d.root, executor: "fake", config: &config.Config{}}
	s.config.Workers.OCI.Snapshotter = "native"
	db, err := openDatabase(d.root, d.parts)
	if err != nil {
		t.Fatal(err)
	}
	remotes := newRemotes(registry.New(registry.Config{Attempts: 2, Backoff: time.Millisecond}))
	fetcher := memoryFetcher{d.world.memory, remotes}
	layers, _, err := openLayers(t.Context(), s, db, fetcher, d.parts)
	if err != nil {
		t.Fatal(err)
	}
	caches, err := newCaches(s, cache.New(db, layers.Store), db, remotes, d.parts)
	if err != nil {
		t.Fatal(err)
	}
	caches.Places["memory"], caches.Fetcher = d.world.memory, fetcher
	lossy := d.world.lossy
	caches.Volatile = func(string) bool { return lossy }
	d.builder = &build.Builder{
		Solver: solver.New(caches.Own), Caches: caches,
		Worker: &op.Worker{
			Platforms: []ocispecs.Platform{{OS: "linux", Architecture: "amd64"}}, Executor: fake.New(), Layers: layers.Store,
			Scratch: filepath.Join(d.root, "scratch"),
		},
		Exporters: map[string]exporter.Exporter{"story": storyExporter{layers.Store}},
	}
	if err := os.MkdirAll(d.builder.Worker.Scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	d.collector = &gc.Collector{Root: d.root, Layers: layers.Store, Store: db, Images: layers.blobs, Others: nobodyElse{}}
}

func (d *storyDaemon) close() {
	if err := d.parts.Close(); err != nil {
		d.world.t.Errorf("close daemon: %v", err)
	}
}

func (d *storyDaemon) prune() {
	d.world.log("daemon %s is pruned", filepath.Base(d.root))
	if err := d.collector.Run(d.world.t.Context(), []gc.Policy{{All: true}}, func(layer.Usage) {}); err != nil {
		d.world.t.Errorf("prune: %v", err)
	}
}

// nobodyElse is a gc.Keeper of nothing.
type nobodyElse struct{}

func (nobodyElse) Usage() ([]layer.Usage, error)           { return nil, nil }
func (nobodyElse) Remove(string) (removed bool, err error) { return false, nil }

// storyExporter tells what the file of a story says.
type storyExporter struct{ layers *layer.Store }

func (e storyExporter) Export(ctx context.Context, in exporter.Input, _ exporter.Target) (map[string]string, error) {
	dir, release, err := e.layers.Mount(ctx, in.Platforms[0].Ref)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "out"))
	return map[string]string{"story": strings.TrimSpace(string(text))}, errors.Join(err, release())
}

// storyBuild is one build of a story.
type storyBuild struct {
	daemon   *storyDaemon
	story    *story
	to       *storyPlace
	max      bool
	imports  []*storyPlace
	expected map[int]bool // steps that a serial builder runs

	steps []build.Step
	err   error
}

// newBuild chooses one of the few stories of a world.
func (w *world) newBuild(d *storyDaemon) *storyBuild {
	shape := rand.New(rand.NewPCG(w.seed, uint64(w.rnd.IntN(2))))
	b := &storyBuild{daemon: d, story: newStory(shape, uint64(w.rnd.IntN(3)))}
	for _, p := range w.places {
		if w.rnd.IntN(2) == 0 {
			b.imports = append(b.imports, p)
		}
		if w.rnd.IntN(2) == 0 {
			b.to, b.max = p, w.rnd.IntN(3) > 0
		}
	}
	w.rnd.Shuffle(len(b.imports), func(i, j int) { b.imports[i], b.imports[j] = b.imports[j], b.imports[i] })
	return b
}

// sources are what the build may find results in.
func (b *storyBuild) sources() []*known {
	all := []*known{b.daemon.has}
	for _, p := range b.imports {
		all = append(all, p.has)
	}
	return all
}

func (b *storyBuild) request() build.Request {
	r := build.Request{
		Exports: []build.Export{{Type: "story"}},
		Stepped: func(s []build.Step) { b.steps = s },
	}
	for _, p := range b.imports {
		r.CacheImports = append(r.CacheImports, p.option)
	}
	if b.to != nil {
		o := build.CacheOption{Type: b.to.option.Type, Attrs: map[string]string{"mode": "min"}}
		maps.Copy(o.Attrs, b.to.option.Attrs)
		if b.max {
			o.Attrs["mode"] = "max"
		}
		r.CacheExports = []build.CacheOption{o}
	}
	return r
}

func (b *storyBuild) run() {
	w := b.daemon.world
	req := b.request()
	if req.Graph, b.err = b.story.graph(w.t.Context()); b.err != nil {
		w.t.Errorf("make graph: %v", b.err)
		return
	}
	w.log("daemon %s builds %v, from %v, to %v", filepath.Base(b.daemon.root), b.story.steps, req.CacheImports, req.CacheExports)
	// A store that fails now and then may not hold a build for ever.
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Minute)
	defer cancel()
	var out map[string]string
	if out, b.err = b.daemon.builder.Build(ctx, req); b.err != nil {
		w.t.Errorf("build %v: %v", b.story.steps, b.err)
		return
	}
	if got, want := out["story"], b.story.made(len(b.story.steps)-1); got != want {
		w.t.Errorf("wrong result: %q, expected %q, of %v", got, want, b.story.steps)
	}
	var did []string
	for _, s := range b.steps {
		if i, ok := b.number(s); ok && s.Ran {
			did = append(did, s.Name)
			if !w.lossy && !b.expected[i] {
				w.t.Errorf("%s of %v ran on daemon %s, but its result was there", s.Name, b.story.steps, filepath.Base(b.daemon.root))
			}
		}
	}
	w.log("daemon %s ran %q of %d steps; expected at most %v", filepath.Base(b.daemon.root), did, len(b.story.steps), b.expected)
}

func (b *storyBuild) number(s build.Step) (i int, ok bool) {
	_, err := fmt.Sscanf(s.Name, "step %d", &i)
	return i, err == nil
}

// learn notes what must be there from now on.
func (b *storyBuild) learn(kept bool) {
	if b.err != nil {
		return
	}
	last := len(b.story.steps) - 1
	to := []*known{}
	if kept {
		to = append(to, b.daemon.has)
	}
	if b.to != nil && b.max {
		to = append(to, b.to.has)
	}
	for _, k := range to {
		for _, s := range b.steps {
			if i, ok := b.number(s); ok && (s.Made || i == last) {
				b.note(k, i)
			}
		}
	}
	if b.to != nil {
		b.note(b.to.has, last)
	}
}

// note says that k has the result of a step, and knows what all that lead to it
// have read.
func (b *storyBuild) note(k *known, i int) {
	k.results[b.story.key(i)] = true
	b.noteReads(k, i)
}

func (b *storyBuild) noteReads(k *known, i int) {
	for at := i; at >= 0; at = b.story.steps[at].base {
		for _, r := range b.story.steps[at].reads {
			k.contents[b.story.key(r)] = true
			b.noteReads(k, r)
		}
	}
}
