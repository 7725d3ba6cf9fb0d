package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"

	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/llb"
)

// witness is a registry that remembers what it was asked.
type witness struct {
	next http.Handler

	mu       sync.Mutex
	requests []string // "METHOD path", in the order of their answers
	blobs    []string // digests, in the order in which they were there
	came     chan struct{}
}

func newWitness() *witness {
	return &witness{next: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))), came: make(chan struct{})}
}

// ServeHTTP has the registry answer.
func (w *witness) ServeHTTP(to http.ResponseWriter, r *http.Request) {
	w.next.ServeHTTP(to, r)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.requests = append(w.requests, r.Method+" "+r.URL.Path)
	if d := r.URL.Query().Get("digest"); r.Method == http.MethodPut && d != "" {
		w.blobs = append(w.blobs, d)
		close(w.came)
		w.came = make(chan struct{})
	}
}

// seen returns what came until now, and what tells of the next blob.
func (w *witness) seen() (requests, blobs []string, next <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.requests), slices.Clone(w.blobs), w.came
}

// gated holds every container whose arguments have a word, until it may go.
type gated struct {
	executor.Executor
	word string
	held chan struct{} // closed when one is held
	open chan struct{}
}

// Start holds, or starts at once.
func (g gated) Start(ctx context.Context, spec executor.Spec, streams executor.IO) (executor.Container, error) {
	if strings.Contains(strings.Join(spec.Process.Args, " "), g.word) {
		close(g.held)
		select {
		case <-g.open:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	return g.Executor.Start(ctx, spec, streams)
}

const chainSteps = 6

// chain is a graph of steps that are each built on the one before; the last one
// says "last".
func chain(t *testing.T) *llb.Graph {
	t.Helper()
	s := llb.Scratch()
	for i := range chainSteps {
		name := fmt.Sprint(i)
		if i == chainSteps-1 {
			name = "last"
		}
		s = s.Run(llb.Args([]string{"sh", "-c", fmt.Sprintf("echo %s > /made-%s", name, name)})).Root()
	}
	g, err := s.Graph(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// uploading is a daemon, and a registry for its cache.
func uploading(t *testing.T) (*storyDaemon, *witness, build.Request) {
	t.Helper()
	w := newWitness()
	server := httptest.NewServer(w)
	t.Cleanup(server.Close)
	d := &storyDaemon{root: filepath.Join(t.TempDir(), "root"), world: &world{t: t}, has: newKnown()}
	d.open()
	t.Cleanup(d.close)
	return d, w, build.Request{Graph: chain(t), CacheExports: []build.CacheOption{{
		Type: "registry", Attrs: map[string]string{"ref": server.Listener.Addr().String() + "/cache:x", "mode": "max"},
	}}}
}

// TestUploadWhileBuilding holds the last step until the layers of all others have
// been pushed. A daemon that pushed at the end would wait for ever.
func TestUploadWhileBuilding(t *testing.T) {
	t.Parallel()
	d, registry, req := uploading(t)
	gate := gated{d.builder.Worker.Executor, "last", make(chan struct{}), make(chan struct{})}
	d.builder.Worker.Executor = gate
	ended := make(chan error, 1)
	go func() {
		_, err := d.builder.Build(t.Context(), req)
		ended <- err
	}()
	limit := time.After(5 * time.Minute)
	select {
	case <-gate.held:
	case err := <-ended:
		t.Fatalf("the build ended before its last step: %v", err)
	}
	var before []string
	for {
		_, blobs, next := registry.seen()
		// The layers of all other steps, and the empty config of records.
		if before = blobs; len(before) >= chainSteps {
			break
		}
		select {
		case <-next:
		case err := <-ended:
			t.Fatalf("the build ended without its last step: %v", err)
		case <-limit:
			t.Fatalf("while the last of %d steps runs, only %d blobs are pushed: %v", chainSteps, len(before), before)
		}
	}
	close(gate.open)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	_, all, _ := registry.seen()
	// The last step's layer, and the config of the index.
	if after := all[len(before):]; len(after) != 2 {
		t.Errorf("after the last step %d blobs are pushed, expected its layer and a config: %v", len(after), after)
	}
	if twice := len(all) - len(slices.Compact(slices.Sorted(slices.Values(all)))); twice != 0 {
		t.Errorf("%d blobs were pushed twice: %v", twice, all)
	}
}

// TestCachedExportAsksLittle exports what was exported before: however many steps
// there are, the registry is asked which records and which index it has.
func TestCachedExportAsksLittle(t *testing.T) {
	t.Parallel()
	d, registry, req := uploading(t)
	for round := range 3 {
		before, _, _ := registry.seen()
		if _, err := d.builder.Build(t.Context(), req); err != nil {
			t.Fatal(err)
		}
		all, _, _ := registry.seen()
		asked := all[len(before):]
		writes := slices.DeleteFunc(slices.Clone(asked), func(r string) bool {
			return strings.HasPrefix(r, http.MethodGet+" ") || strings.HasPrefix(r, http.MethodHead+" ")
		})
		switch {
		case round == 0 && len(writes) < chainSteps:
			t.Fatalf("the first export writes %d times only: %v", len(writes), writes)
		case round > 0 && (len(asked) > 2 || len(writes) > 0):
			t.Errorf("export %d, of what is there, makes %d requests: %v", round, len(asked), asked)
		}
	}
}
