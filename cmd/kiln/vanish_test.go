package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/llb"
)

// vanishing is a client that is killed in a build.
type vanishing struct {
	name       string
	dockerfile string
	buildctl   bool
	args       []string
	// unread is what the client may write without anybody reading it, "-" its
	// standard output.
	unread bool
	// The client is killed some time after it has shown this, or after its start.
	shown  string
	delays []time.Duration
	// until, if not nil, is also waited for.
	until chan struct{}
}

// TestClientVanishes kills clients at many moments of their builds: nothing of
// these is left, and another build never knows.
func TestClientVanishes(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	debug := startDebugged(b)
	big, err := os.Create(filepath.Join(b.dir, "big"))
	if err != nil {
		t.Fatal(err)
	}
	if err := big.Truncate(300 << 20); err != nil {
		t.Fatal(err)
	}
	if err := big.Close(); err != nil {
		t.Fatal(err)
	}
	slow := newSlowRegistry(t)
	heavy := "FROM base\nARG N\nRUN dd if=/dev/urandom of=/heavy bs=1M count=64 && echo $N > /n\n"
	ms := func(list ...int) (out []time.Duration) {
		for _, n := range list {
			out = append(out, time.Duration(n)*time.Millisecond)
		}
		return out
	}
	upload, run := "FROM base\nCOPY big /\n", "FROM base\nARG N\nRUN echo begun; sleep 300\n"
	cases := []vanishing{
		{name: "upload", dockerfile: upload, args: []string{"-o", "type=cacheonly"}, delays: ms(20, 60, 150, 400)},
		{name: "upload", dockerfile: upload, buildctl: true, delays: ms(50, 200)},
		{name: "run", dockerfile: run, args: []string{"-o", "type=cacheonly"}, shown: "begun\n", delays: ms(0, 100)},
		{name: "run", dockerfile: run, buildctl: true, shown: "begun\n", delays: ms(50)},
		{name: "proxied run", dockerfile: run, args: []string{"-o", "type=cacheonly", "--proxy-network"}, shown: "begun\n", delays: ms(0, 100)},
		{name: "loud run", dockerfile: "FROM base\nARG N\nRUN echo begun; yes\n", args: []string{"-o", "type=cacheonly"}, shown: "begun\n", delays: ms(200)},
		{name: "archive", dockerfile: heavy, args: []string{"-o", "type=oci,dest=" + filepath.Join(b.dir, "heavy.tar")}, shown: "exporting", delays: ms(0, 50)},
		{name: "archive that nobody reads", dockerfile: heavy, args: []string{"-o", "type=tar,dest=-"}, unread: true, shown: "exporting to client tarball", delays: ms(200)},
		{name: "folder", dockerfile: heavy, args: []string{"-o", "type=local,dest=" + filepath.Join(b.dir, "folder")}, shown: "exporting to client directory", delays: ms(0)},
		{name: "push", dockerfile: heavy, args: []string{"-o", "type=image,push=true,name=" + slow.host + "/x"}, shown: "exporting", delays: ms(50), until: slow.asked},
		{name: "push", dockerfile: heavy, buildctl: true, args: []string{"--output", "type=image,push=true,name=" + slow.host + "/x"}, shown: "exporting", delays: ms(50), until: slow.asked},
	}
	b.write("Dockerfile", heavy) // and what is warm before
	b.tar("warm")
	before := b.traces(debug)
	others := b.keepBuilding()
	kills, through := 0, 0
	for _, c := range cases {
		for _, delay := range c.delays {
			kills++
			if !b.vanish(c, fmt.Sprint("kill", kills), delay) {
				through++ // a machine may be that fast
			}
		}
	}
	for i := range 2 {
		kills++
		b.vanishInContainer(fmt.Sprint("exec", i), i == 1)
	}
	if through > kills/4 {
		t.Errorf("of %d clients to be killed, %d came through", kills, through)
	}
	if n := others(); n == 0 {
		t.Error("no other build ended while clients were killed")
	} else {
		t.Logf("%d kills, %d of them too late, beside %d builds", kills, through, n)
	}
	slow.server.CloseClientConnections() // idle ones may stay open for a while
	b.nothingLeft(debug, before)
	b.write("Dockerfile", "FROM base\nARG N\nRUN echo $N > /n\n")
	b.tar("after")
	b.noPanic()
}

// noPanic checks that the daemon has caught no panic.
func (b *builder) noPanic() {
	b.t.Helper()
	text, err := os.ReadFile(filepath.Join(b.state.run, "daemon.log"))
	if err != nil {
		b.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, "panic") {
			b.t.Errorf("the daemon's log: %s", line)
		}
	}
}

// vanish starts a client and kills it, and tells whether it was not through before.
func (b *builder) vanish(c vanishing, n string, delay time.Duration) (killed bool) {
	b.t.Helper()
	dir := filepath.Join(b.dir, n)
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	// Each its own, so that nothing is there already.
	if err := os.Link(filepath.Join(b.dir, "big"), filepath.Join(dir, "big")); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(c.dockerfile), 0o644); err != nil {
		b.t.Fatal(err)
	}
	var cmd *exec.Cmd
	if c.buildctl {
		cmd = exec.Command(filepath.Join(filepath.Dir(b.kiln), "buildctl"), append([]string{
			"--addr", "unix://" + filepath.Join(b.state.run, "sock"), "build", "--progress=plain", "--frontend", "dockerfile.v0", "--local", "context=" + dir,
			"--local", "dockerfile=" + dir, "--opt", "build-arg:N=" + n, "--oci-layout", "base=" + b.base, "--opt", "context:base=oci-layout://base@" + baseDigest(b.t, b.base),
		}, c.args...)...)
		cmd.Env = b.env
	} else {
		cmd = b.command(append([]string{"build", "--progress=plain", "--build-arg", "N=" + n}, append(c.args, dir)...)...)
	}
	if c.unread {
		r, w, err := os.Pipe()
		if err != nil {
			b.t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		cmd.Stdout = w
	}
	shown := &shownText{changed: make(chan struct{}, 1)}
	cmd.Stderr = shown
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	if !shown.wait(c.shown, 2*time.Minute) {
		b.t.Errorf("%s: the client has not shown %q:\n%s", c.name, c.shown, shown)
	}
	if c.until != nil {
		select {
		case <-c.until:
		case <-time.After(2 * time.Minute):
			b.t.Errorf("%s: what is waited for has not come:\n%s", c.name, shown)
		}
	}
	time.Sleep(delay)
	_ = cmd.Process.Kill() // how it ended shows in Wait
	err := cmd.Wait()
	if err != nil && !cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		b.t.Errorf("%s: the build ended with %v:\n%s", c.name, err, shown)
	}
	if out, err := b.command("du").CombinedOutput(); err != nil {
		b.t.Fatalf("%s: the daemon does not answer: %v\n%s", c.name, err, out)
	}
	return err != nil
}

// baseDigest is the digest of the one image of a layout.
func baseDigest(t *testing.T, layout string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(regexp.MustCompile(`sha256:[0-9a-f]{64}`).Find(text))
}

// shownText is what a program has shown so far.
type shownText struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func (s *shownText) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.text.Len() < 1<<20 {
		s.text.Write(p)
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (s *shownText) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *shownText) wait(text string, atMost time.Duration) bool {
	for end := time.After(atMost); !strings.Contains(s.String(), text); {
		select {
		case <-s.changed:
		case <-end:
			return false
		}
	}
	return true
}

// vanishInContainer cuts a client off that drives a build and has a process in
// a container, which may be a loud one.
func (b *builder) vanishInContainer(ref string, loud bool) {
	b.t.Helper()
	var mu sync.Mutex
	var conns []net.Conn
	c, err := client.New("unix://"+filepath.Join(b.state.run, "sock"), client.Options{Dial: func(ctx context.Context) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(b.state.run, "sock"))
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, conn)
		return conn, err
	}})
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	script := "echo begun; sleep 300"
	if loud {
		script = "echo begun; exec yes"
	}
	begun := &shownText{changed: make(chan struct{}, 1)}
	ctx, cancel := context.WithTimeout(b.t.Context(), time.Minute)
	defer cancel()
	_, err = c.Build(ctx, client.SolveOpt{Ref: ref, Attach: client.Attach{Dirs: map[string]string{"base": filepath.Dir(b.kiln)}}}, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		def, err := llb.Local("base", llb.IncludePatterns([]string{"context/busybox"})).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		res, err := g.Solve(ctx, client.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		if err != nil {
			return nil, err
		}
		container, err := g.NewContainer(ctx, client.ContainerRequest{Mounts: []client.ContainerMount{{Dest: "/", Ref: res.Ref}}})
		if err != nil {
			return nil, err
		}
		if _, err := container.Start(ctx, client.ProcessRequest{Args: []string{"/context/busybox", "sh", "-c", script}, Env: []string{"PATH=/context"}, Stdout: begun}); err != nil {
			return nil, err
		}
		if !begun.wait("begun", 2*time.Minute) {
			b.t.Errorf("the process of a container has not begun")
		}
		mu.Lock()
		defer mu.Unlock()
		for _, conn := range conns {
			conn.Close()
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}, discardEvents{})
	if err == nil {
		b.t.Error("a build whose client vanished came to its end")
	}
}

type discardEvents struct{}

func (discardEvents) Emit(client.Event) {}

// keepBuilding builds other things, one after the other, until the function is
// called that it returns, which tells how many builds there were.
func (b *builder) keepBuilding() (stop func() int) {
	b.t.Helper()
	dir := filepath.Join(b.state.run, "others")
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM base\nARG N\nRUN sleep 1; echo $N > /n\nCOPY Dockerfile /copied\nRUN cat /n\n"), 0o644); err != nil {
		b.t.Fatal(err)
	}
	quit, done := make(chan struct{}), make(chan int)
	go func() {
		count := 0
		defer func() { done <- count }()
		for ; ; count++ {
			select {
			case <-quit:
				return
			default:
			}
			n, dest := fmt.Sprint("other", count), filepath.Join(dir, "out")
			out, err := b.command("build", "--progress=plain", "--build-arg", "N="+n, "-o", "type=local,dest="+dest, dir).CombinedOutput()
			if err != nil {
				b.t.Errorf("a build beside those whose clients vanish: %v\n%s", err, out)
				return
			}
			if text, err := os.ReadFile(filepath.Join(dest, "n")); err != nil || string(text) != n+"\n" {
				b.t.Errorf("a build beside those whose clients vanish made %q, %v", text, err)
			}
			if err := os.RemoveAll(dest); err != nil {
				b.t.Error(err)
			}
		}
	}()
	return func() int { close(quit); return <-done }
}

// traces is what builds may leave: processes, mounts, temporary files and
// goroutines, these as a number.
type traces struct {
	found      map[string]bool
	goroutines int
}

func (b *builder) traces(debug *debugged) traces {
	b.t.Helper()
	out := traces{map[string]bool{}, debug.goroutines(b.t)}
	for _, l := range leftovers(b.state.run, b.state.daemon) {
		out.found[l] = true
	}
	root := filepath.Join(b.state.run, "root")
	for _, dir := range []string{"tmp", "run", "layers", "content/ingest"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ os.DirEntry, err error) error {
			if err == nil {
				out.found["file "+path] = true
			}
			if os.IsNotExist(err) { // it has gone since it was listed
				return nil
			}
			return err
		})
		if err != nil {
			b.t.Fatal(err)
		}
	}
	return out
}

// nothingLeft waits until there are no more traces of builds than before.
func (b *builder) nothingLeft(debug *debugged, before traces) {
	b.t.Helper()
	var left []string
	for range 600 {
		now := b.traces(debug)
		left = nil
		for name := range now.found {
			if !before.found[name] {
				left = append(left, name)
			}
		}
		if now.goroutines > before.goroutines {
			left = append(left, fmt.Sprintf("%d goroutines, before there were %d", now.goroutines, before.goroutines))
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	b.t.Errorf("left behind: %q\n%s", left, debug.stacks(b.t))
}

// debugged is the debug address of a daemon.
type debugged struct{ http http.Client }

// startDebugged starts the builder's daemon with a debug address.
func startDebugged(b *builder) *debugged {
	b.t.Helper()
	socket := filepath.Join(b.state.run, "debug")
	config := filepath.Join(b.state.run, "kiln.toml")
	if err := os.WriteFile(config, []byte("[grpc]\ndebugAddress = \"unix://"+socket+"\"\n"), 0o644); err != nil {
		b.t.Fatal(err)
	}
	if err := b.state.start(b.kiln, b.env, "oci", "--config", config); err != nil {
		b.t.Fatal(err)
	}
	return &debugged{http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // each would be a goroutine
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
	}}}
}

func (d *debugged) stacks(t *testing.T) string {
	t.Helper()
	resp, err := d.http.Get("http://debug/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// goroutines is how many goroutines the daemon has.
func (d *debugged) goroutines(t *testing.T) int {
	t.Helper()
	text := d.stacks(t)
	total := regexp.MustCompile(`total (\d+)`).FindStringSubmatch(text)
	if total == nil {
		t.Fatalf("no goroutines are counted: %.200s", text)
	}
	n, err := strconv.Atoi(total[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// slowRegistry takes next to nothing of what is pushed to it.
type slowRegistry struct {
	server *httptest.Server
	host   string
	asked  chan struct{} // somebody begins to push a layer
}

func newSlowRegistry(t *testing.T) *slowRegistry {
	t.Helper()
	s := &slowRegistry{asked: make(chan struct{})}
	next := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength > 16<<20 || r.ContentLength < 0 && (r.Method == http.MethodPut || r.Method == http.MethodPatch) {
			select {
			case s.asked <- struct{}{}:
			case <-r.Context().Done():
				return
			}
			buf := make([]byte, 1<<10)
			for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
				if _, err := r.Body.Read(buf); err != nil {
					tick.Stop()
					return
				}
			}
		}
		next.ServeHTTP(w, r)
	}))
	t.Cleanup(func() { s.server.CloseClientConnections(); s.server.Close() })
	s.host = strings.TrimPrefix(s.server.URL, "http://")
	return s
}
