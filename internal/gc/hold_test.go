package gc

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/layer"
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

// old is the past, of which each build takes a MiB of the folder.
type old struct {
	dir    string
	asked  []int64
	builds int
}

func (o *old) Shrink(bytes int64) (freed int64, err error) {
	o.asked = append(o.asked, bytes)
	for ; o.builds > 1 && freed < bytes; o.builds-- {
		freed += 1 << 20
	}
	return freed, o.write()
}

func (o *old) write() error {
	return os.WriteFile(filepath.Join(o.dir, "all"), make([]byte, o.builds<<20), 0o600)
}

// TestPastGivesWay holds the cap where what is known of old builds has grown: what
// they have beyond their share goes before the cache does, and the rest of it
// before a build has to end.
func TestPastGivesWay(t *testing.T) {
	g, root := newGate(t)
	c := g.Collector
	past := &old{dir: filepath.Join(root, "history"), builds: 40}
	c.Past = past
	if err := errors.Join(os.Mkdir(past.dir, 0o700), past.write()); err != nil {
		t.Fatal(err)
	}
	layers := c.Layers.(*fakeLayers)
	layers.usage = []layer.Usage{thing("cached", "regular", time.Hour, 50<<20)}

	// 90 of 95 MiB are taken, and 20 are wanted.
	if err := c.Hold(t.Context(), 20<<20); err != nil {
		t.Fatal(err)
	}
	if past.builds > 25 || past.builds < 20 || layers.prunes != 0 {
		t.Errorf("%d of 40 builds are left and there were %d prunes, want about 24 and none", past.builds, layers.prunes)
	}
	// All of the cache goes, and then as many builds as it takes.
	if err := c.Hold(t.Context(), 90<<20); err != nil {
		t.Fatal(err)
	}
	if past.builds > 5 || past.builds < 1 || layers.prunes == 0 || len(layers.usage) != 0 {
		t.Errorf("%d builds and %d layers are left after %d prunes, want at most 5 and none", past.builds, len(layers.usage), layers.prunes)
	}
	full := new(FullError)
	if err := c.Hold(t.Context(), 99<<20); !errors.As(err, &full) || past.builds != 1 {
		t.Errorf("error is %v with %d builds left, want that there is no room though but one is", err, past.builds)
	}
}
