package cache_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/snapshot"
	"github.com/kiln-build/kiln/internal/solver"
)

// crashRoot tells the test program to work until it is killed.
const crashRoot = "KILN_TEST_CRASH_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(crashRoot); root != "" {
		fmt.Fprintln(os.Stderr, work(root))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// chainLength is how many steps stand on each other in what work does.
const chainLength = 6

func stepKey(i int) solver.Key { return solver.Key(fmt.Sprint("step ", i)) }

// stepText is large enough to be in the middle of when the end comes.
func stepText(i int) string { return strings.Repeat(fmt.Sprint("step ", i, "\n"), 1000) }

// work goes on where the last process was killed, making steps forever.
func work(root string) error {
	s, err := openStack(root, snapshot.Overlay)
	if err != nil {
		return err
	}
	ctx := context.Background()
	next := 0
	for ; ; next++ {
		if _, err := s.cache.Load(ctx, stepKey(next)); err != nil {
			break
		}
	}
	fmt.Println("open")
	var r *layer.Ref
	for i := next; ; i++ {
		if i%chainLength == 0 {
			r = nil
		} else if r == nil { // standing on what the last process left
			out, err := s.cache.Load(ctx, stepKey(i-1))
			if err != nil {
				return fmt.Errorf("load step %d: %w", i-1, err)
			}
			r = out[0].(*layer.Ref)
		}
		if r, err = s.step(r, fmt.Sprint(i%chainLength), stepText(i)); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if err := s.cache.Save(ctx, stepKey(i), []solver.Result{r}); err != nil {
			return err
		}
		if i%7 == 0 {
			if _, err := s.layers.Blobs(ctx, r, layer.Variant{}); err != nil {
				return err
			}
		}
		if i%50 == 49 { // pruning, too, may be cut short
			old := map[string]bool{}
			for _, k := range []int{i - 44, i - 43} {
				if out, err := s.cache.Load(ctx, stepKey(k)); err == nil {
					old[out[0].(*layer.Ref).ID()] = true
				}
			}
			err := s.layers.Prune(ctx, layer.PruneOptions{Filter: func(r layer.Record) bool { return old[r.ID] }}, nil)
			if err != nil {
				return err
			}
		}
	}
}

// Killed at any moment, a store opens again, and every hit is whole.
func TestKilledAtAnyMoment(t *testing.T) {
	root := t.TempDir()
	const kills = 20
	hits := 0
	for round := range kills {
		killWork(t, root, time.Duration(rand.IntN(120))*time.Millisecond)
		hits = verify(t, root, round)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d hits after %d kills", hits, kills)
	if hits < kills {
		t.Errorf("only %d hits after %d kills", hits, kills)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	if err != nil || len(mounts) > 0 {
		t.Errorf("%d mounts are left (%v)", len(mounts), err)
	}
}

func killWork(t *testing.T, root string, after time.Duration) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), crashRoot+"="+root)
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("open\n"))); err != nil {
		_ = cmd.Wait()
		t.Fatalf("the store did not open: %v: %s", err, said.String())
	}
	time.Sleep(after) // the moment is random, not waited for
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.Exited() {
		t.Fatalf("it ended by itself: %v: %s", err, said.String())
	}
}

// verify reads every hit and returns how many there are.
func verify(t *testing.T, root string, round int) int {
	t.Helper()
	s, err := openStack(root, snapshot.Overlay)
	if err != nil {
		t.Fatalf("round %d: %v", round, err)
	}
	if told := s.db.Recovered() + s.snaps.Recovered(); told != "" {
		t.Errorf("round %d: %s", round, told)
	}
	hits, misses := 0, 0
	for i := 0; misses < 100; i++ { // what is pruned is a miss in between
		out, err := s.cache.Load(context.Background(), stepKey(i))
		if errors.Is(err, solver.ErrNotFound) {
			misses++
			continue
		} else if err != nil {
			t.Fatalf("round %d: load step %d: %v", round, i, err)
		}
		hits, misses = hits+1, 0
		want := map[string]string{}
		for k := i - i%chainLength; k <= i; k++ {
			want[fmt.Sprint(k%chainLength)] = stepText(k)
		}
		got, err := s.read(out[0].(*layer.Ref))
		if err != nil || !maps.Equal(got, want) {
			t.Errorf("round %d: step %d has %d files, want %d (%v)", round, i, len(got), len(want), err)
		}
		if i%7 == 0 {
			if _, err := s.layers.Blobs(context.Background(), out[0].(*layer.Ref), layer.Variant{}); err != nil {
				t.Errorf("round %d: blobs of step %d: %v", round, i, err)
			}
		}
	}
	if err := s.close(); err != nil {
		t.Errorf("round %d: %v", round, err)
	}
	return hits
}
