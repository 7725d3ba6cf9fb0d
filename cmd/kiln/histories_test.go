package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/cachetest"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/llb"
)

var (
	histories = flag.Int("histories", 120, "how many histories TestHistories plays")
	oneStory  = flag.Uint64("history", 0, "the one history that TestHistories plays, by its seed")
)

// A story is a graph of commands. What each makes is a function of what it is
// and of what it reads, and so is its key, which is what an oracle needs.
type story struct {
	steps []storyStep
}

type storyStep struct {
	tag   string
	salt  string // changes the definition, and not what is made
	base  int    // the step that it is built on; -1 is none
	reads []int  // steps whose content counts
}

func newStory(rnd *rand.Rand, variant uint64) *story {
	s := &story{}
	change := rand.New(rand.NewPCG(variant, 1))
	for i := range 3 + rnd.IntN(5) {
		step := storyStep{tag: fmt.Sprint("t", rnd.IntN(4)), base: -1}
		if i > 0 && rnd.IntN(2) == 0 {
			step.base = rnd.IntN(i)
		}
		for r := range i {
			if r != step.base && rnd.IntN(3) == 0 {
				step.reads = append(step.reads, r)
			}
		}
		switch change.IntN(6) {
		case 0:
			step.salt = fmt.Sprint("s", change.IntN(2))
		case 1:
			step.tag = fmt.Sprint("u", change.IntN(2))
		}
		s.steps = append(s.steps, step)
	}
	return s
}

// made is what the file of step i says.
func (s *story) made(i int) string {
	var b strings.Builder
	b.WriteString(s.steps[i].tag + "(")
	if at := s.steps[i].base; at >= 0 {
		b.WriteString(s.made(at))
	}
	for _, r := range s.steps[i].reads {
		b.WriteString("," + s.made(r))
	}
	return b.String() + ")"
}

// key is what the cache must know step i by.
func (s *story) key(i int) string {
	st := s.steps[i]
	b := fmt.Sprintf("%s %q %d", st.tag, st.salt, len(st.reads))
	if st.base >= 0 {
		b += "\n" + s.key(st.base)
	}
	for _, r := range st.reads {
		b += "\nof " + s.made(r)
	}
	return fmt.Sprintf("[%s]", b)
}

// graph is the story as LLB.
func (s *story) graph(ctx context.Context) (*llb.Graph, error) {
	var made []llb.State
	for i, st := range s.steps {
		base, args := llb.Scratch(), ""
		if st.base >= 0 {
			base, args = made[st.base], "$(cat /out)"
		}
		opts := []llb.RunOption{llb.WithCustomName(fmt.Sprint("step ", i))}
		for n, r := range st.reads {
			args += fmt.Sprintf(",$(cat /in%d/out)", n)
			opts = append(opts, llb.AddMount(fmt.Sprintf("/in%d", n), made[r], llb.Readonly))
		}
		script := fmt.Sprintf(`x="%s(%s)"; echo "$x" > /out # %s`, st.tag, args, st.salt)
		made = append(made, base.Run(append(opts, llb.Args([]string{"sh", "-c", script}))...).Root())
	}
	return made[len(made)-1].Graph(ctx)
}

// known is what a daemon or a place is sure to have: results by key, and digests
// of what keys have made.
type known struct{ results, contents map[string]bool }

func newKnown() *known { return &known{map[string]bool{}, map[string]bool{}} }

// expected is which steps a serial builder would run that has what all of from have.
func (s *story) expected(from []*known) map[int]bool {
	has := func(pick func(*known) map[string]bool, k string) bool {
		for _, f := range from {
			if pick(f)[k] {
				return true
			}
		}
		return false
	}
	ran, done := map[int]bool{}, map[int]bool{}
	var need, identify func(i int)
	identify = func(i int) {
		for at := i; at >= 0; at = s.steps[at].base {
			for _, r := range s.steps[at].reads {
				identify(r)
				if !has(func(k *known) map[string]bool { return k.contents }, s.key(r)) {
					need(r)
				}
			}
		}
	}
	need = func(i int) {
		if done[i] {
			return
		}
		done[i] = true
		identify(i)
		if has(func(k *known) map[string]bool { return k.results }, s.key(i)) {
			return
		}
		ran[i] = true
		if s.steps[i].base >= 0 {
			need(s.steps[i].base)
		}
		for _, r := range s.steps[i].reads {
			need(r)
		}
	}
	need(len(s.steps) - 1)
	return ran
}

// memoryPlace is a cache.Place of records alone, in memory.
type memoryPlace struct{ shelves map[string]*memoryShelf }

type memoryShelf struct {
	*cachetest.Shelf
	name string
}

func (s *memoryShelf) Origin() string { return "memory:" + s.name }

func (memoryPlace) Name() string { return "exporting cache to memory" }
func (memoryPlace) Reader(context.Context, map[string]string) (cache.Reader, error) {
	return nil, errors.New("a place in memory has records alone")
}

func (memoryPlace) Writer(context.Context, map[string]string) (cache.Writer, error) {
	return nil, errors.New("a place in memory has records alone")
}

func (p memoryPlace) Shelf(_ context.Context, attrs map[string]string, _ bool) (cache.Shelf, error) {
	return p.shelves[attrs["name"]], nil
}

// memoryFetcher gets blobs from places in memory, and all others from next.
type memoryFetcher struct {
	place memoryPlace
	next  layer.Fetcher
}

func (f memoryFetcher) Fetch(ctx context.Context, origin string, d ocispecs.Descriptor) (io.ReadCloser, error) {
	if name, ok := strings.CutPrefix(origin, "memory:"); ok {
		return f.place.shelves[name].Fetch(ctx, origin, d)
	}
	return f.next.Fetch(ctx, origin, d)
}

// world is some daemons that share some places.
type world struct {
	t       *testing.T
	seed    uint64
	rnd     *rand.Rand
	memory  memoryPlace
	daemons []*storyDaemon
	places  []*storyPlace
	lossy   bool // places lose and fail: results must be right, hits may be missed

	mu     sync.Mutex // of what places and daemons are known to have
	logged []string
}

type storyPlace struct {
	option build.CacheOption
	shelf  *memoryShelf // nil for a registry
	has    *known
}

func newWorld(t *testing.T, seed uint64, host string) *world {
	w := &world{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), memory: memoryPlace{map[string]*memoryShelf{}}}
	w.lossy = w.rnd.IntN(4) == 0
	for i := range 1 + w.rnd.IntN(2) {
		p := &storyPlace{has: newKnown()}
		if !w.lossy && w.rnd.IntN(3) == 0 {
			p.option = build.CacheOption{Type: "registry", Attrs: map[string]string{"ref": fmt.Sprintf("%s/history-%d:p%d", host, seed, i)}}
		} else {
			name := fmt.Sprint(i)
			p.shelf = &memoryShelf{cachetest.NewShelf(), name}
			w.memory.shelves[name] = p.shelf
			p.option = build.CacheOption{Type: "memory", Attrs: map[string]string{"name": name, "format": "kiln"}}
		}
		w.places = append(w.places, p)
	}
	for i := range 1 + w.rnd.IntN(3) {
		d := &storyDaemon{root: filepath.Join(t.TempDir(), fmt.Sprint(i)), world: w, has: newKnown()}
		d.open()
		w.daemons = append(w.daemons, d)
	}
	return w
}

func (w *world) log(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.logged = append(w.logged, fmt.Sprintf(format, args...))
}

// TestHistories plays builds, exports, imports, prunes and restarts of several
// daemons, in any order and at once. No result is wrong, and no step runs whose
// result a serial oracle finds with what was there when the build began.
func TestHistories(t *testing.T) {
	server := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := server.Listener.Addr().String()
	seeds := make(chan uint64)
	var g sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() {
			for seed := range seeds {
				playHistory(t, seed, host)
			}
		})
	}
	if *oneStory != 0 {
		seeds <- *oneStory
	} else {
		for i := range *histories {
			if t.Failed() {
				break
			}
			seeds <- uint64(i) + 1
		}
	}
	close(seeds)
	g.Wait()
}

func playHistory(t *testing.T, seed uint64, host string) {
	ok := t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
		w := newWorld(t, seed, host)
		defer w.close()
		for range 3 + w.rnd.IntN(4) {
			w.round()
		}
		if t.Failed() || *oneStory != 0 {
			t.Logf("%s", strings.Join(w.logged, "\n"))
		}
	})
	if !ok {
		t.Errorf("replay with: go test ./cmd/kiln -run TestHistories -history=%d", seed)
	}
}

func (w *world) close() {
	for _, d := range w.daemons {
		d.close()
	}
}

// round has up to three things happen at once.
func (w *world) round() {
	if w.lossy {
		w.lose()
	}
	if w.rnd.IntN(4) == 0 {
		d := w.daemons[w.rnd.IntN(len(w.daemons))]
		w.log("daemon %s is restarted", filepath.Base(d.root))
		d.close()
		d.open()
	}
	var builds []*storyBuild
	pruned := map[*storyDaemon]bool{}
	for range 1 + w.rnd.IntN(3) {
		d := w.daemons[w.rnd.IntN(len(w.daemons))]
		if w.rnd.IntN(5) == 0 {
			pruned[d] = true
		} else {
			builds = append(builds, w.newBuild(d))
		}
	}
	var g sync.WaitGroup
	for d := range pruned {
		d.has = newKnown() // from now on nothing is sure
		g.Go(d.prune)
	}
	for _, b := range builds {
		b.expected = b.story.expected(b.sources())
		g.Go(b.run)
	}
	g.Wait()
	w.log("--")
	for _, b := range builds {
		b.learn(!pruned[b.daemon])
	}
}

// lose has places in memory lose blobs and records, and fail.
func (w *world) lose() {
	for _, p := range w.places {
		if blobs := p.shelf.Blobs(); len(blobs) > 0 && w.rnd.IntN(2) == 0 {
			p.shelf.Lose(blobs[w.rnd.IntN(len(blobs))])
		}
		names := p.shelf.Names()
		if len(names) > 1 && w.rnd.IntN(3) == 0 { // one thing's record under the name of another
			p.shelf.Change(names[w.rnd.IntN(len(names))], p.shelf.Record(names[w.rnd.IntN(len(names))]))
		}
		if len(names) > 0 && w.rnd.IntN(3) == 0 {
			p.shelf.Change(names[w.rnd.IntN(len(names))], nil)
		}
	}
}
