package gc

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/store"
)

// newGate has a cap of 100 MiB on an empty folder; steps say how much they will
// write by their names.
func newGate(t *testing.T) (*Gate, string) {
	t.Helper()
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	root := t.TempDir()
	needs := map[string]int64{"small": 1 << 20, "medium": 50 << 20, "huge": 200 << 20}
	return &Gate{
		Collector: &Collector{Root: root, Layers: &fakeLayers{}, Store: st, Cap: 100 << 20},
		Expect:    func(_, name string) int64 { return needs[name] },
	}, root
}

// entered is a step that has come to the gate.
type entered struct {
	leave func()
	err   error
}

func enter(ctx context.Context, g *Gate, name string) <-chan entered {
	done := make(chan entered, 1)
	go func() {
		leave, err := g.Enter(ctx, "key", name)
		done <- entered{leave, err}
	}()
	return done
}

// A step that there is no room for waits for those that are inside, and goes on
// when one of them has made room.
func TestGateWaits(t *testing.T) {
	g, root := newGate(t)
	first := <-enter(t.Context(), g, "small")
	if first.err != nil {
		t.Fatal(first.err)
	}
	written := filepath.Join(root, "written")
	if err := os.WriteFile(written, make([]byte, 60<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	g.Collector.measured.at = time.Time{} // as if it were long ago
	second := enter(t.Context(), g, "medium")
	gone, cancel := context.WithCancelCause(t.Context())
	third := enter(gone, g, "medium")
	select {
	case e := <-second:
		t.Fatalf("50 MiB are let in where 60 of 100 are taken: %v", e.err)
	case <-time.After(100 * time.Millisecond):
	}
	// Who does not want to wait any more does not.
	why := errors.New("the client has left")
	cancel(why)
	if e := <-third; !errors.Is(e.err, why) {
		t.Errorf("error is %v, want %v", e.err, why)
	}
	if err := os.Remove(written); err != nil {
		t.Fatal(err)
	}
	first.leave()
	first.leave() // counts once
	e := <-second
	if e.err != nil {
		t.Fatalf("there is room, and yet: %v", e.err)
	}
	if g.inside != 1 {
		t.Errorf("%d are inside, want the second alone", g.inside)
	}
	e.leave()
}

// Where nobody is inside whose end could help, there is no use in waiting.
func TestGateRefuses(t *testing.T) {
	g, _ := newGate(t)
	e := <-enter(t.Context(), g, "huge")
	full := new(FullError)
	if !errors.As(e.err, &full) || full.Need != 200<<20 || full.Cap != 100<<20 {
		t.Errorf("error is %v, want that there is no room for 200 MiB below 100", e.err)
	}
	// An error of another kind is no reason to wait, either.
	first := <-enter(t.Context(), g, "small")
	if first.err != nil {
		t.Fatal(first.err)
	}
	defer first.leave()
	g.Collector.Root = filepath.Join(g.Collector.Root, "nowhere")
	g.Collector.measured.at = time.Time{}
	if e := <-enter(t.Context(), g, "small"); !errors.Is(e.err, os.ErrNotExist) {
		t.Errorf("error is %v, want that the folder does not exist", e.err)
	}
}
