package conformance

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/kiln-build/kiln/conformance/peer"
)

// aheadProgram is the file of a frontend whose processes only this test has.
const aheadProgram = "asimage-ahead"

// TestFrontendStartedAhead: a frontend that is used again and again finds a container
// that waits for it. It is the same in there as in a new one, each serves one build,
// and none is left by a prune, an end of the daemon or a crash.
func TestFrontendStartedAhead(t *testing.T) {
	a := newAhead(t)
	a.start(t)
	cold := a.use(t)
	if all := waiting(t); len(all) > 0 {
		t.Fatalf("processes %v wait for a frontend that was used once", all)
	}
	a.use(t)
	before := awaitWaiting(t, 1)
	warm := a.use(t)
	if after := awaitWaiting(t, 1); slices.Equal(before, after) {
		t.Errorf("process %v still waits: the build has not used it", before)
	}
	sameWithin(t, cold, warm)

	prune(t, a.daemon)
	if all := waiting(t); len(all) > 0 {
		t.Errorf("processes %v wait after a prune", all)
	}
	a.use(t)
	a.use(t)
	awaitWaiting(t, 1)
	a.daemon.Stop()
	awaitWaiting(t, 0)

	a.start(t)
	a.use(t)
	a.use(t)
	awaitWaiting(t, 1)
	if err := syscall.Kill(a.daemon.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	a.daemon.Stop() // waits for its end
	awaitWaiting(t, 0)
	a.start(t)
	a.use(t)
	prune(t, a.daemon)
	left, err := os.ReadDir(filepath.Join(a.daemon.Dir, "root", "run", "run"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("containers %v are left", left)
	}
}

// ahead is a frontend's image and a daemon of the test's own.
type ahead struct {
	image  string
	daemon *peer.Daemon
	uses   int
}

func newAhead(t *testing.T) *ahead {
	t.Helper()
	host := serveRegistry(t)
	image, dir := host+"/test/frontend:ahead", t.TempDir()
	compile(t, "./asimage", filepath.Join(dir, aheadProgram))
	push(t, dir, "FROM scratch\nENV FROM_IMAGE=yes\nWORKDIR /work\nCOPY "+aheadProgram+" /\nENTRYPOINT [\"/"+aheadProgram+"\", \"argument\"]\n"+
		"LABEL moby.buildkit.frontend.network.none=true\n", image)
	program, err := filepath.Abs(filepath.Join("..", "bin", "kiln"))
	if err != nil {
		t.Fatal(err)
	}
	at, err := os.MkdirTemp("", "kiln-ahead-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(at) })
	d := peer.NewKiln(program, shared.base, at)
	d.Config = "[registry.\"" + host + "\"]\nhttp = true\n"
	t.Cleanup(d.Stop)
	return &ahead{image: image, daemon: d}
}

func (a *ahead) start(t *testing.T) {
	t.Helper()
	if err := a.daemon.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// use builds with the frontend, which tells what it sees.
func (a *ahead) use(t *testing.T) string {
	t.Helper()
	a.uses++
	nonce := strconv.Itoa(a.uses)
	end := frontendRun{image: a.image, attrs: map[string]string{"mode": "confined", "nonce": nonce}}.on(t.Context(), t, a.daemon)
	if end.err != "" {
		t.Fatalf("build %s: %s", nonce, end.err)
	}
	said, ok := strings.CutSuffix(end.files["confined"], "nonce "+nonce+"\n")
	if !ok {
		t.Fatalf("build %s was told %q", nonce, said)
	}
	return said
}

// sameWithin compares what a frontend saw in a new container and in one that waited.
func sameWithin(t *testing.T, cold, warm string) {
	t.Helper()
	const own = "mount /dev/kiln-late ro,nosuid,nodev"
	was, is := strings.Split(cold, "\n"), strings.Split(warm, "\n")
	for _, l := range was {
		if !slices.Contains(is, l) {
			t.Errorf("a new container has %q, one that waited has not", l)
		}
	}
	for _, l := range is {
		if !slices.Contains(was, l) && !strings.HasPrefix(l, own) {
			t.Errorf("a container that waited has %q, a new one has not", l)
		}
	}
	if !strings.Contains(warm, own) {
		t.Errorf("in the container there is no %q: was it a new one?\n%s", own, warm)
	}
}

// prune removes all that is not in use, and expects that to be all.
func prune(t *testing.T, d *peer.Daemon) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	c := dial(ctx, t, d)
	defer c.Close()
	if err := c.Prune(ctx, nil, client.PruneAll); err != nil {
		t.Fatal(err)
	}
	left, err := c.DiskUsage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range left {
		t.Errorf("after a prune, %s is left: %s, in use: %t", u.ID, u.Description, u.InUse)
	}
}

// waiting are the processes that wait for a build of this test.
func waiting(t *testing.T) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		text, err := os.ReadFile(name)
		if err != nil || !strings.HasPrefix(string(text), "/dev/kiln-late\x00/"+aheadProgram) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func awaitWaiting(t *testing.T, n int) (pids []int) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if pids = waiting(t); len(pids) == n {
			return pids
		}
		if time.Now().After(end) {
			t.Fatalf("processes %v wait, want %d", pids, n)
		}
	}
}
