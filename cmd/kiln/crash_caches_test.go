package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// cachesDockerfile has what a cache for others can consist of.
const cachesDockerfile = `FROM base AS one
ARG N
RUN mkdir /a && for i in 1 2 3 4 5 6 7 8 9; do echo $i > /a/$i; done && head -c 8000000 /dev/zero > /a/large
COPY tree /tree
FROM base AS two
ARG N
RUN --mount=type=cache,id=kept,target=/c echo two > /two && cat /two > /c/two
FROM one
COPY --from=two /two /two
RUN cat /two /a/? > /all
`

// cachesCap is how many MiB the daemon's folder may take: less than five
// variants of the build together.
const cachesCap = 32

// TestKillWhileCachesMove kills the daemon while it builds, exports, imports
// and prunes. Whatever is left of its own cache and of the one for others, a
// build makes the right thing of it, what a build has finished is cached after
// the next crash, and the daemon's folder takes no more than its cap.
func TestKillWhileCachesMove(t *testing.T) {
	t.Parallel()
	b := newBuilder(t, "SOURCE_DATE_EPOCH=1700000000")
	if err := os.CopyFS(filepath.Join(b.dir, "tree"), os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	b.write("Dockerfile", cachesDockerfile)
	b.state.flags = []string{"--cap", fmt.Sprintf("%dm", cachesCap)}
	b.start()
	began := time.Now()
	want := b.tar("reference")
	usual := time.Since(began)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, a build takes %v", seed, usual)
	c := &cacheCrasher{builder: b, want: want, usual: usual, random: rand.New(rand.NewPCG(seed, 0)), place: filepath.Join(b.state.run, "cache")}
	// Each round kills twice, and builds at least twice.
	for i := range max(1, *kills/5) {
		n := fmt.Sprint("kill", i%7) // some are known from before
		if i%5 == 0 {
			c.fill()
		}
		what := c.crash(n)
		b.start()
		c.capHolds()
		if got := b.tar(n); !bytes.Equal(got, want) {
			t.Fatalf("seed %d, kill %d, in the middle of %q: the build made something else", seed, i, what)
		}
		c.finishedStays(n)
		if i%3 == 0 {
			c.importable(n)
		}
	}
	t.Logf("the daemon's folder took up to %d bytes", c.largest)
}

type cacheCrasher struct {
	*builder
	want   []byte
	usual  time.Duration
	random *rand.Rand
	place  string // folder of the cache for others

	largest int64 // bytes that the daemon's folder was seen to take
}

// crash kills the daemon at a moment of something, and returns what that was.
func (c *cacheCrasher) crash(n string) []string {
	c.t.Helper()
	build := []string{"build", "-q", "--build-arg", "N=" + n, "-o", "type=cacheonly"}
	all := [][]string{
		append(build, "--no-cache", c.dir),
		append(build, "--no-cache", "--cache-to", "type=local,mode=max,mounts=kept,dest="+c.place, c.dir),
		append(build, "--cache-from", "type=local,mounts=kept,src="+c.place, c.dir),
		{"prune", "--all"},
		{"prune", "--max-used-space", "100k"},
	}
	what := all[c.random.IntN(len(all))]
	if what[0] == "prune" || c.random.IntN(2) == 0 {
		c.run("prune", "--all")
		if what[0] == "prune" {
			c.tar(n)
		}
	}
	cmd := c.command(what...)
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	time.Sleep(time.Duration(c.random.Int64N(int64(c.usual * 5 / 4))))
	c.kill()
	_ = cmd.Wait() // it may have come to its end before, or not
	return what
}

func (c *cacheCrasher) kill() {
	c.t.Helper()
	if err := c.state.daemon.Process.Kill(); err != nil {
		c.t.Fatal(err)
	}
	_ = c.state.daemon.Wait() // it was killed
	c.state.daemon = nil
}

func (c *cacheCrasher) run(args ...string) string {
	c.t.Helper()
	out, err := c.command(args...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// fill builds more than there is room for.
func (c *cacheCrasher) fill() {
	c.t.Helper()
	for i := range 5 {
		c.tar(fmt.Sprint("fill", i))
	}
	out := c.run("build", "--progress=plain", "--build-arg", "N=fill0", "-o", "type=cacheonly", c.dir)
	if !strings.Contains(out, "removed by garbage collection, to hold the cap") {
		c.t.Errorf("the cap has removed nothing of what was used first:\n%s", out)
	}
}

// capHolds measures the daemon's folder after a start. What a crash has left
// goes soon, if it must.
func (c *cacheCrasher) capHolds() {
	c.t.Helper()
	root := filepath.Join(c.state.run, "root")
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		n, err := folderUse(root)
		if err != nil {
			c.t.Fatal(err)
		}
		c.largest = max(c.largest, n)
		if n <= cachesCap<<20 {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("after a crash the daemon's folder takes %d bytes, and may take %d MiB", n, cachesCap)
		}
	}
}

// finishedStays kills the daemon after a build: its steps are there afterwards.
func (c *cacheCrasher) finishedStays(n string) {
	c.t.Helper()
	c.kill()
	c.start()
	c.capHolds()
	out := c.run("build", "--progress=plain", "--build-arg", "N="+n, "-o", "type=cacheonly", c.dir)
	if cached := regexp.MustCompile(`/\d\] (RUN|COPY) .*\n#\d+ CACHED`).FindAllString(out, -1); len(cached) != 5 {
		c.t.Errorf("%d of 5 steps that had ended were there after a crash:\n%s", len(cached), out)
	}
}

// importable builds on what a crash has left of the cache for others.
func (c *cacheCrasher) importable(n string) {
	c.t.Helper()
	c.run("prune", "--all")
	dest := filepath.Join(c.state.run, "imported.tar")
	out := c.run("build", "--progress=plain", "--build-arg", "N="+n, "--cache-from", "type=local,mounts=*,src="+c.place, "-o", "type=tar,dest="+dest, c.dir)
	got, err := os.ReadFile(dest)
	if err != nil {
		c.t.Fatal(err)
	}
	if !bytes.Equal(got, c.want) {
		c.t.Errorf("a build with an imported cache made something else:\n%s", out)
	}
}
