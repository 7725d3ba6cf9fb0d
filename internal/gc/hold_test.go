package gc

import (
	"errors"
	"testing"
	"time"
)

// TestPressing has the disk fill between measurements: that is seen at once, and
// what was measured a moment ago is not trusted then.
func TestPressing(t *testing.T) {
	g, _ := newGate(t)
	c, free := g.Collector, int64(1<<40)
	c.free = func() (int64, error) { return free, nil }
	layers := c.Layers.(*fakeLayers)
	if err := c.Hold(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	measured := c.measured.at
	for _, tc := range []struct {
		taken int64 // MiB since the measurement
		want  bool
	}{{0, false}, {-50, false}, {50, false}, {94, false}, {96, true}, {200, true}} {
		free = 1<<40 - tc.taken<<20
		if got := c.Pressing(); got != tc.want {
			t.Errorf("%d MiB of a cap of 100 were taken: pressing is %v", tc.taken, got)
		}
	}
	if c.measured.at != measured {
		t.Error("to ask has measured anything")
	}

	// Others took it: there is room, and what is free now is what counts next.
	if err := c.Hold(t.Context(), 0); err != nil || c.measured.at == measured {
		t.Errorf("with a disk that fills, the last measurement was trusted, or else: %v", err)
	}
	if c.Pressing() {
		t.Error("what others took is held against the cap")
	}

	// This time it is ours, and in use.
	layers.usage = append(layers.usage, thing("busy", "regular", 0, 97<<20))
	layers.usage[0].InUse = true
	free -= 97 << 20
	full := new(FullError)
	if !c.Pressing() {
		t.Error("97 MiB more of a cap of 100 press nobody")
	}
	if err := c.Hold(t.Context(), 0); !errors.As(err, &full) {
		t.Errorf("error is %v, want that there is no room", err)
	}

	// While room is being made there is nobody to press.
	c.holding.Lock()
	if c.Pressing() {
		t.Error("pressing while room is being made")
	}
	c.holding.Unlock()
	c.free = func() (int64, error) { return 0, errors.New("no disk") }
	if c.measured.at = time.Now(); !c.Pressing() || c.Hold(t.Context(), 0) == nil {
		t.Error("a disk that cannot be asked is no error")
	}
	c.Cap = 0
	if c.Pressing() {
		t.Error("pressing without a cap")
	}
}
