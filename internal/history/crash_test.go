package history

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// crashRoot names the folder that a process works on until it is killed.
const crashRoot = "KILN_TEST_HISTORY_CRASH_ROOT"

// TestCrashed is what is killed: it builds without end, and prints each ref once
// its build has ended.
func TestCrashed(t *testing.T) {
	root := os.Getenv(crashRoot)
	if root == "" {
		return // it is TestCrash that runs it
	}
	w := &world{t: t, root: root}
	w.open(Retention{MaxEntries: 1 << 20})
	for i := 0; ; i++ {
		ref := fmt.Sprintf("%d-%d", os.Getpid(), i)
		b, err := w.Begin(Record{Ref: ref}, false)
		if err != nil {
			t.Fatal(err)
		}
		for line := range 20 {
			b.Log().Append([]byte(crashLine(ref, line)))
			if line == 10 {
				if err := w.AttachAttestation(ref, "", attestation("of "+ref)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := b.End(Outcome{Error: []byte("same for all")}); err != nil {
			t.Fatal(err)
		}
		b.Release()
		if err := w.db.Flush(); err != nil {
			t.Fatal(err)
		}
		fmt.Println("ended " + ref)
		if i%3 == 0 {
			if err := w.Delete(ref); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func crashLine(ref string, n int) string { return fmt.Sprintf("%s line %d", ref, n) }

// A history whose process is killed at any moment has, after the next start,
// every build that had ended, whole, and at most one that was cut short.
func TestCrash(t *testing.T) {
	root := t.TempDir()
	ended := map[string]bool{}
	for range 12 {
		for _, ref := range crash(t, root) {
			ended[ref] = true
		}
		w := &world{t: t, root: root}
		w.open(Retention{MaxEntries: 1 << 20})
		cut := 0
		found := map[string]bool{}
		err := w.Listen(t.Context(), ListenOptions{EarlyExit: true}, func(e Event) error {
			found[e.Ref] = true
			if e.Kind != Complete {
				t.Errorf("build %s is under way", e.Ref)
			}
			r, err := w.Get(e.Ref)
			if err != nil {
				return err
			}
			if r.Failure != nil {
				cut++
			}
			checkCrashed(t, w, r)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if cut > 12 {
			t.Errorf("%d builds were cut short by at most 12 crashes", cut)
		}
		for ref := range ended {
			var pid, n int
			if _, err := fmt.Sscanf(ref, "%d-%d", &pid, &n); err != nil {
				t.Fatal(err)
			}
			if n%3 != 0 && !found[ref] {
				t.Errorf("build %s had ended and is gone", ref)
			}
		}
		checkFiles(t, w)
		w.close()
	}
	if len(ended) == 0 {
		t.Error("no build ended before its process was killed")
	}
}

// crash runs a process for a little while and kills it; it returns the builds
// that have ended.
func crash(t *testing.T, root string) (ended []string) {
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestCrashed$", "-test.v")
	cmd.Env = append(os.Environ(), crashRoot+"="+root)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var kill *time.Timer
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		ref, ok := strings.CutPrefix(lines.Text(), "ended ")
		if !ok {
			if strings.Contains(lines.Text(), "FAIL") || strings.Contains(lines.Text(), ".go:") {
				t.Error(lines.Text())
			}
			continue
		}
		if ended = append(ended, ref); kill == nil {
			kill = time.AfterFunc(time.Duration(rand.IntN(20_000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process ended by itself")
	}
	return ended
}

func checkCrashed(t *testing.T, w *world, r *Record) {
	t.Helper()
	lines := w.replay(r.Ref)
	var want []string
	for i := range 20 {
		want = append(want, crashLine(r.Ref, i))
	}
	if cut := r.Failure != nil; cut && len(lines) <= len(want) {
		want = want[:len(lines)]
	} else if r.Error == nil || w.read(r.Error.Digest) != "same for all" || r.Result == nil ||
		len(r.Result.Attestations) != 1 || w.read(r.Result.Attestations[0].Digest) != "of "+r.Ref {
		t.Errorf("record is %+v", r)
	}
	if !slices.Equal(lines, want) {
		t.Errorf("build %s has the log %q", r.Ref, lines)
	}
}

// checkFiles finds files that nobody needs.
func checkFiles(t *testing.T, w *world) {
	t.Helper()
	for dir, want := range map[string]int{"/blobs": len(w.Blobs()), "/live": 0} {
		files, err := os.ReadDir(w.root + "/history" + dir)
		if err != nil || len(files) != want {
			t.Errorf("%s has %d files, want %d (%v)", dir, len(files), want, err)
		}
	}
}
