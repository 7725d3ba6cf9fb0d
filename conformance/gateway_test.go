package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/llbbuild"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/conformance/peer"
)

// gatewayCase is what a client does that acts as the frontend of its build.
type gatewayCase func(t *testing.T, ctx context.Context, c gateway.Client)

// TestGateway has BuildKit's own client library act as a frontend, against
// either daemon: what holds for the one must hold for the other.
func TestGateway(t *testing.T) {
	cases := map[string]gatewayCase{
		"Pipe":          gatewayPipe,
		"Terminal":      gatewayTerminal,
		"ExecTerminal":  gatewayExecTerminal,
		"Signals":       gatewaySignals,
		"FirstEnds":     gatewayFirstEnds,
		"Release":       gatewayRelease,
		"ExitCodes":     gatewayExitCodes,
		"Process":       gatewayProcess,
		"Mounts":        gatewayMounts,
		"Files":         gatewayFiles,
		"Special":       gatewaySpecialFiles,
		"RefFiles":      gatewayRefFiles,
		"Empty":         gatewayEmpty,
		"State":         gatewayState,
		"Entitlements":  gatewayEntitlements,
		"FailedRun":     gatewayFailedRun,
		"FailedFile":    gatewayFailedFile,
		"FailedContent": gatewayFailedContent,
		"Inputs":        gatewayInputs,
		"Nested":        gatewayNested,
	}
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		for name, f := range cases {
			t.Run(d.Name+"/"+name, func(t *testing.T) {
				if err := asFrontend(t, d, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
					f(t, ctx, c)
					return gateway.NewResult(), nil
				}); err != nil {
					t.Errorf("the build: %v", err)
				}
			})
		}
	}
}

// asFrontend runs f as the frontend of a build on a daemon.
func asFrontend(t *testing.T, d *peer.Daemon, f gateway.BuildFunc) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return asFrontendIn(ctx, t, d, f)
}

func asFrontendIn(ctx context.Context, t *testing.T, d *peer.Daemon, f gateway.BuildFunc) error {
	t.Helper()
	c, err := client.New(ctx, d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	store, err := contentlocal.NewStore(shared.base.Dir)
	if err != nil {
		t.Fatal(err)
	}
	inputs, err := base().File(llb.Mkfile("/input", 0o644, []byte("given"))).Marshal(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Build(ctx, client.SolveOpt{
		OCIStores: map[string]content.Store{"base": store},
		Session: []session.Attachable{secretsprovider.FromMap(map[string][]byte{
			"token": []byte("hush"),
		})},
		FrontendInputs: map[string]llb.State{"given": defState(t, inputs)},
	}, "conformance", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		return f(ctx, c)
	}, nil)
	return err
}

func defState(t *testing.T, def *llb.Definition) llb.State {
	t.Helper()
	op, err := llb.NewDefinitionOp(def.ToPB())
	if err != nil {
		t.Fatal(err)
	}
	return llb.NewState(op)
}

// base is the image that the client has in an OCI layout.
func base() llb.State {
	return llb.OCILayout("not/real@"+shared.base.Digest, llb.OCIStore("", "base")).AddEnv("PATH", "/bin")
}

func solve(t *testing.T, ctx context.Context, c gateway.Client, st llb.State) gateway.Reference {
	t.Helper()
	ref, err := trySolve(t, ctx, c, st)
	if err != nil {
		t.Fatalf("solve: %v", err)
	}
	return ref
}

func trySolve(t *testing.T, ctx context.Context, c gateway.Client, st llb.State) (gateway.Reference, error) {
	t.Helper()
	def, err := st.Marshal(ctx)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if err != nil {
		return nil, err
	}
	return res.Ref, nil
}

// container makes one with the base as its root.
func container(t *testing.T, ctx context.Context, c gateway.Client, more ...gateway.Mount) gateway.Container {
	t.Helper()
	return containerOf(t, ctx, c, gateway.NewContainerRequest{Mounts: append([]gateway.Mount{
		{Dest: "/", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, base())},
	}, more...)})
}

func containerOf(t *testing.T, ctx context.Context, c gateway.Client, req gateway.NewContainerRequest) gateway.Container {
	t.Helper()
	ctr, err := c.NewContainer(ctx, req)
	if err != nil {
		t.Fatalf("make container: %v", err)
	}
	return ctr
}

// transcript is the output of a process.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *transcript) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *transcript) Close() error { return nil }

func (o *transcript) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// await waits for a process to have written something.
func (o *transcript) await(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(o.String(), want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %q, got %q", want, o.String())
		}
	}
}

func start(t *testing.T, ctx context.Context, ctr gateway.Container, req gateway.StartRequest) gateway.ContainerProcess {
	t.Helper()
	if req.Env == nil {
		req.Env = []string{"PATH=/bin"}
	}
	p, err := ctr.Start(ctx, req)
	if err != nil {
		t.Fatalf("start %q: %v", req.Args, err)
	}
	return p
}

// output runs a process to its end and returns what it wrote.
func output(t *testing.T, ctx context.Context, ctr gateway.Container, args ...string) (string, error) {
	t.Helper()
	var out transcript
	p := start(t, ctx, ctr, gateway.StartRequest{Args: args, Stdout: &out, Stderr: &out})
	err := p.Wait()
	return out.String(), err
}

func mustOutput(t *testing.T, ctx context.Context, ctr gateway.Container, want string, args ...string) {
	t.Helper()
	if got, err := output(t, ctx, ctr, args...); err != nil || got != want {
		t.Errorf("%q ended with %v and wrote %q, want %q", args, err, got, want)
	}
}

func exitCode(err error) int {
	var exit *gwpb.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit.ExitCode)
	}
	return -1
}

// gatewayPipe: echo testing | cat | cat > /tmp/test, each a process of its own.
func gatewayPipe(t *testing.T, ctx context.Context, c gateway.Client) {
	ctr := container(t, ctx, c)
	defer ctr.Release(context.WithoutCancel(ctx))
	held, hold := io.Pipe()
	defer hold.Close()
	start(t, ctx, ctr, gateway.StartRequest{Args: []string{"cat"}, Stdin: held})
	r, w := io.Pipe()
	p2 := start(t, ctx, ctr, gateway.StartRequest{
		Args: []string{"cat"}, Stdin: io.NopCloser(strings.NewReader(strings.Repeat("testing ", 100000))), Stdout: w,
	})
	p3 := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sh", "-c", "cat > /out"}, Stdin: r})
	if err := p2.Wait(); err != nil {
		t.Errorf("first cat: %v", err)
	}
	w.Close()
	if err := p3.Wait(); err != nil {
		t.Errorf("second cat: %v", err)
	}
	got, err := output(t, ctx, ctr, "cat", "/out")
	if err != nil || got != strings.Repeat("testing ", 100000) {
		t.Errorf("ended with %v and wrote %d bytes", err, len(got))
	}
	// Two files of one process, told apart.
	var stdout, stderr transcript
	p := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sh", "-c", "echo one; echo two >&2"}, Stdout: &stdout, Stderr: &stderr})
	if err := p.Wait(); err != nil || stdout.String() != "one\n" || stderr.String() != "two\n" {
		t.Errorf("ended with %v and wrote %q and %q", err, stdout.String(), stderr.String())
	}
}

func gatewayTerminal(t *testing.T, ctx context.Context, c gateway.Client) {
	ctr := container(t, ctx, c)
	defer ctr.Release(context.WithoutCancel(ctx))
	converse(t, ctx, ctr)
}

func gatewayExecTerminal(t *testing.T, ctx context.Context, c gateway.Client) {
	ctr := container(t, ctx, c)
	defer ctr.Release(context.WithoutCancel(ctx))
	start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", "50"}})
	converse(t, ctx, ctr)
}

// converse types into a shell on a terminal.
func converse(t *testing.T, ctx context.Context, ctr gateway.Container) {
	t.Helper()
	r, w := io.Pipe()
	var out transcript
	p := start(t, ctx, ctr, gateway.StartRequest{
		Args: []string{"sh"}, Tty: true, Stdin: r, Stdout: &out, Stderr: &out, Env: []string{"PATH=/bin", "PS1=% "},
	})
	out.await(t, "% ")
	for _, size := range []gateway.WinSize{{Rows: 40, Cols: 80}, {Rows: 60, Cols: 100}} {
		if err := p.Resize(ctx, size); err != nil {
			t.Errorf("resize: %v", err)
		}
		want := fmt.Sprintf("%d %d", size.Rows, size.Cols)
		for range 100 { // the size takes its time
			fmt.Fprintln(w, "busybox stty size; echo measured")
			time.Sleep(50 * time.Millisecond)
			if strings.Contains(out.String(), want) {
				break
			}
		}
		out.await(t, want)
	}
	fmt.Fprintln(w, `echo "term=$TERM"; exit 99`)
	if err := p.Wait(); exitCode(err) != 99 || !strings.Contains(err.Error(), "exit code: 99") {
		t.Errorf("ended with %v, want exit code 99", err)
	}
	out.await(t, "term=xterm")
	w.Close()
}

func gatewaySignals(t *testing.T, ctx context.Context, c gateway.Client) {
	const script = `trap 'echo got; exit 111' %[1]s; touch /up-%[1]s; while :; do sleep 0.05; done`
	ready := func(ctr gateway.Container, name string) {
		t.Helper()
		st := gateway.StatContainerRequest{StatRequest: gateway.StatRequest{Path: "/up-" + name}}
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := ctr.StatFile(ctx, st); err == nil {
				return
			} else if time.Now().After(end) {
				t.Fatalf("waited 20 s for the process to be ready: %v", err)
			}
		}
	}
	for name, sig := range map[string]syscall.Signal{"INT": syscall.SIGINT, "HUP": syscall.SIGHUP} {
		// BuildKit ends a container when any of its processes fails.
		ctr := container(t, ctx, c)
		defer ctr.Release(context.WithoutCancel(ctx))
		start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", "50"}})
		var out transcript
		p := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sh", "-c", fmt.Sprintf(script, name)}, Stdout: &out})
		ready(ctr, name)
		if err := p.Signal(ctx, sig); err != nil {
			t.Errorf("signal: %v", err)
		}
		if err := p.Wait(); exitCode(err) != 111 || out.String() != "got\n" {
			t.Errorf("%s: ended with %v and wrote %q", name, err, out.String())
		}
	}
	first := container(t, ctx, c)
	defer first.Release(context.WithoutCancel(ctx))
	var out transcript
	p := start(t, ctx, first, gateway.StartRequest{Args: []string{"sh", "-c", fmt.Sprintf(script, "TERM")}, Stdout: &out})
	ready(first, "TERM")
	if err := p.Signal(ctx, syscall.SIGTERM); err != nil {
		t.Errorf("signal: %v", err)
	}
	if err := p.Wait(); exitCode(err) != 111 {
		t.Errorf("the first process ended with %v", err)
	}
}

// gatewayFirstEnds: what runs beside the first process is killed with it.
func gatewayFirstEnds(t *testing.T, ctx context.Context, c gateway.Client) {
	ctr := container(t, ctx, c)
	defer ctr.Release(context.WithoutCancel(ctx))
	first := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", "1"}})
	var out transcript
	second := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sh", "-c", "echo up; sleep 50"}, Stdout: &out})
	if err := second.Wait(); exitCode(err) != 137 || !strings.Contains(err.Error(), "exit code: 137") {
		t.Errorf("the second process ended with %v, want exit code 137", err)
	}
	if err := first.Wait(); err != nil {
		t.Errorf("the first process ended with %v", err)
	}
}

func gatewayRelease(t *testing.T, ctx context.Context, c gateway.Client) {
	ctr := container(t, ctx, c)
	held, hold := io.Pipe()
	defer hold.Close()
	first := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"cat"}, Stdin: held})
	second := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", "50"}})
	begin := time.Now()
	if err := ctr.Release(ctx); err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("release: %v, want it to tell that processes were canceled", err)
	}
	for name, p := range map[string]gateway.ContainerProcess{"first": first, "second": second} {
		if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "context canceled") {
			t.Errorf("the %s process ended with %v, want it canceled", name, err)
		}
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the release took %v", took)
	}
}

func gatewayExitCodes(t *testing.T, ctx context.Context, c gateway.Client) {
	for _, want := range []int{0, 1, 99} {
		ctr := container(t, ctx, c)
		_, err := output(t, ctx, ctr, "sh", "-c", fmt.Sprintf("exit %d", want))
		if got := exitCode(err); got != want {
			t.Errorf("exit %d: ended with %v", want, err)
		}
		if err := ctr.Release(ctx); exitCode(err) != want {
			t.Errorf("release after exit %d: %v", want, err)
		}
	}
	ctr := container(t, ctx, c)
	defer ctr.Release(context.WithoutCancel(ctx))
	if _, err := output(t, ctx, ctr, "/no-such-program"); err == nil {
		t.Error("a program that does not exist ended well")
	}
}

// gatewayProcess: environment, secrets, user, working directory, host name and
// further hosts.
func gatewayProcess(t *testing.T, ctx context.Context, c gateway.Client) {
	root := solve(t, ctx, c, base().File(llb.Mkdir("/etc", 0o755).
		Mkfile("/etc/passwd", 0o644, []byte("root:x:0:0::/root:/bin/sh\nmaker:x:1000:1001::/home:/bin/sh\n")).
		Mkfile("/etc/group", 0o644, []byte("root:x:0:\nmakers:x:1001:\nextra:x:7:maker\n"))))
	ctr := containerOf(t, ctx, c, gateway.NewContainerRequest{
		Mounts:     []gateway.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: root}},
		Hostname:   "named",
		ExtraHosts: []*pb.HostIP{{Host: "some.host", IP: "169.254.11.22"}},
		NetMode:    pb.NetMode_NONE,
	})
	defer ctr.Release(context.WithoutCancel(ctx))
	start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", "50"}})
	var out transcript
	p := start(t, ctx, ctr, gateway.StartRequest{
		Args: []string{"/bin/sh", "-c", `/bin/id -u; /bin/id -g; /bin/id -G; pwd; echo $A $SECRET; echo $PATH`},
		Env:  []string{"A=b"}, User: "maker", Cwd: "/bin", Stdout: &out, Stderr: &out,
		SecretEnv: []*pb.SecretEnv{{ID: "token", Name: "SECRET"}},
	})
	want := "1000\n1001\n1001 7\n/bin\nb hush\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
	if err := p.Wait(); err != nil || out.String() != want {
		t.Errorf("ended with %v and wrote %q, want %q", err, out.String(), want)
	}
	mustOutput(t, ctx, ctr, "named\n", "busybox", "hostname")
	mustOutput(t, ctx, ctr, "169.254.11.22\tsome.host\n", "busybox", "grep", "some.host", "/etc/hosts")
	mustOutput(t, ctx, ctr, "lo\n", "ls", "/sys/class/net")
}

func gatewayMounts(t *testing.T, ctx context.Context, c gateway.Client) {
	files := llb.Scratch().File(llb.Mkdir("/sub", 0o755).Mkfile("/sub/file", 0o644, []byte("content")))
	ctr := container(t, ctx, c,
		gateway.Mount{Dest: "/whole", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, files)},
		gateway.Mount{Dest: "/part", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, files), Selector: "/sub", Readonly: true},
		gateway.Mount{Dest: "/cache", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: t.Name()}},
		gateway.Mount{Dest: "/tmpfs", MountType: pb.MountType_TMPFS},
		gateway.Mount{Dest: "/run/token", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "token", Mode: 0o400}},
		gateway.Mount{Dest: "/run/none", MountType: pb.MountType_SECRET, SecretOpt: &pb.SecretOpt{ID: "none", Optional: true}},
	)
	defer ctr.Release(context.WithoutCancel(ctx))
	start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", "50"}})
	mustOutput(t, ctx, ctr, "content", "cat", "/whole/sub/file")
	mustOutput(t, ctx, ctr, "content", "cat", "/part/file")
	mustOutput(t, ctx, ctr, "hush", "cat", "/run/token")
	mustOutput(t, ctx, ctr, "", "sh", "-c", "echo x > /whole/new; echo cached > /cache/kept; echo x > /tmpfs/x; ! (echo x > /part/x) 2>/dev/null; ! [ -e /run/none ]")
	again := container(t, ctx, c,
		gateway.Mount{Dest: "/whole", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, files)},
		gateway.Mount{Dest: "/cache", MountType: pb.MountType_CACHE, CacheOpt: &pb.CacheOpt{ID: t.Name()}},
	)
	defer again.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, again, "cached\nsub\n", "sh", "-c", "cat /cache/kept; ls /whole")
	_, err := c.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/elsewhere", MountType: pb.MountType_BIND}}})
	if grpcerrors.Code(err) != codes.InvalidArgument {
		t.Errorf("a container without a root: %v, want an invalid argument", err)
	}
}

// gatewayFiles: files of a container's mounts, as they are at the moment.
func gatewayFiles(t *testing.T, ctx context.Context, c gateway.Client) {
	files := llb.Scratch().File(llb.Mkfile("/a.txt", 0o640, []byte("0123456789")).Mkfile("/b.md", 0o600, nil).Symlink("a.txt", "/link"))
	ctr := container(t, ctx, c, gateway.Mount{Dest: "/data", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, files)})
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "", "sh", "-c", "echo live > /live; mkdir /dir; echo more >> /data/a.txt")
	read := func(mount int, name string, part *gateway.FileRange) (string, error) {
		dt, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{MountIndex: mount, ReadRequest: gateway.ReadRequest{Filename: name, Range: part}})
		return string(dt), err
	}
	if got, err := read(0, "/live", nil); err != nil || got != "live\n" {
		t.Errorf("read: %q %v", got, err)
	}
	if got, err := read(1, "/a.txt", &gateway.FileRange{Offset: 8, Length: 4}); err != nil || got != "89mo" {
		t.Errorf("read a part: %q %v", got, err)
	}
	if got, err := read(1, "/missing", nil); err == nil || !strings.Contains(err.Error(), "/missing") {
		t.Errorf("read what is missing: %q %v", got, err)
	}
	if _, err := read(7, "/a.txt", nil); err == nil || !strings.Contains(err.Error(), "out of bounds") {
		t.Errorf("read of a mount that is none: %v", err)
	}
	entries, err := ctr.ReadDir(ctx, gateway.ReadDirContainerRequest{MountIndex: 1, ReadDirRequest: gateway.ReadDirRequest{Path: "/"}})
	if err != nil || len(entries) != 3 || entries[0].Path != "a.txt" || entries[2].Linkname != "a.txt" {
		t.Errorf("list: %v %v", entries, err)
	}
	st, err := ctr.StatFile(ctx, gateway.StatContainerRequest{MountIndex: 1, StatRequest: gateway.StatRequest{Path: "/link"}})
	if err != nil || st.Size != 15 || st.Mode != 0o640 || st.Path != "link" {
		t.Errorf("stat of a link: %v %v", st, err)
	}
	st, err = ctr.StatFile(ctx, gateway.StatContainerRequest{MountIndex: 0, StatRequest: gateway.StatRequest{Path: "/dir"}})
	if err != nil || !st.IsDir() || st.Size != 0 {
		t.Errorf("stat of a directory: %v %v", st, err)
	}
}

// gatewaySpecialFiles: a fifo or a device that a process made is not opened.
func gatewaySpecialFiles(t *testing.T, ctx context.Context, c gateway.Client) {
	ctr := container(t, ctx, c)
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "", "sh", "-c", "busybox mkfifo /fifo; busybox mknod /device c 5 0")
	for _, name := range []string{"/fifo", "/device"} {
		_, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: gateway.ReadRequest{Filename: name}})
		if err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("read %s: %v", name, err)
		}
	}
	for _, part := range []gateway.FileRange{{Offset: -1, Length: 3}, {Length: -1}} {
		_, err := ctr.ReadFile(ctx, gateway.ReadContainerRequest{ReadRequest: gateway.ReadRequest{Filename: "/bin/busybox", Range: &part}})
		if err == nil || !strings.Contains(err.Error(), "invalid range") {
			t.Errorf("read %+v: %v", part, err)
		}
	}
}

// gatewayRefFiles: files of results.
func gatewayRefFiles(t *testing.T, ctx context.Context, c gateway.Client) {
	ref := solve(t, ctx, c, llb.Scratch().File(llb.Mkdir("/dir", 0o755).Mkfile("/dir/a.txt", 0o640, []byte("0123456789")).
		Mkfile("/dir/b.md", 0o600, nil).Symlink("dir/a.txt", "/link")))
	got, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/link", Range: &gateway.FileRange{Offset: 3, Length: 2}})
	if err != nil || string(got) != "34" {
		t.Errorf("read: %q %v", got, err)
	}
	if _, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/dir"}); err == nil {
		t.Error("a directory was read")
	}
	if _, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/none"}); err == nil || !strings.Contains(err.Error(), "no such file") || !strings.Contains(err.Error(), "/none") {
		t.Errorf("read what is missing: %v", err)
	}
	entries, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/dir", IncludePattern: "*.txt"})
	if err != nil || len(entries) != 1 || entries[0].Path != "a.txt" || entries[0].Size != 10 {
		t.Errorf("list: %v %v", entries, err)
	}
	st, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/link"})
	if err != nil || st.Path != "a.txt" || st.Mode != 0o640 || st.Size != 10 {
		t.Errorf("stat of a link: %v %v", st, err)
	}
	if err := ref.Evaluate(ctx); err != nil {
		t.Errorf("evaluate: %v", err)
	}
}

// gatewayEmpty: results without files.
func gatewayEmpty(t *testing.T, ctx context.Context, c gateway.Client) {
	res, err := c.Solve(ctx, gateway.SolveRequest{})
	if err != nil || res.Ref != nil || res.Refs != nil {
		t.Errorf("nothing solved: %+v %v", res, err)
	}
	ref := solve(t, ctx, c, llb.Diff(base(), base()))
	entries, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/"})
	if err != nil || len(entries) != 0 {
		t.Errorf("no difference: %v %v", entries, err)
	}
}

// gatewayState: a result is the input of further steps.
func gatewayState(t *testing.T, ctx context.Context, c gateway.Client) {
	ref := solve(t, ctx, c, base().File(llb.Mkfile("/one", 0o644, []byte("1"))))
	st, err := ref.ToState()
	if err != nil {
		t.Fatalf("result as a state: %v", err)
	}
	ref = solve(t, ctx, c, st.Run(llb.Args([]string{"/bin/sh", "-c", "cat /one /one > /two"})).Root())
	got, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/two"})
	if err != nil || string(got) != "11" {
		t.Errorf("read: %q %v", got, err)
	}
}

// gatewayEntitlements: what a build may not do, its containers may not either.
func gatewayEntitlements(t *testing.T, ctx context.Context, c gateway.Client) {
	for want, mode := range map[string]pb.SecurityMode{
		"security.insecure is not allowed": pb.SecurityMode_INSECURE,
		"invalid security mode":            pb.SecurityMode(2),
	} {
		ctr := container(t, ctx, c)
		p := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"true"}, SecurityMode: mode})
		if err := p.Wait(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("security mode %d: %v, want %q", mode, err, want)
		}
		_ = ctr.Release(ctx)
	}
	ctr := containerOf(t, ctx, c, gateway.NewContainerRequest{
		Mounts: []gateway.Mount{{Dest: "/", Ref: solve(t, ctx, c, base())}}, NetMode: pb.NetMode_HOST,
	})
	p := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"true"}})
	if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "network.host is not allowed") {
		t.Errorf("the host's network: %v", err)
	}
	_ = ctr.Release(ctx)
}

// gatewayFailedRun: a debugger looks into what a failed command left.
func gatewayFailedRun(t *testing.T, ctx context.Context, c gateway.Client) {
	input := llb.Scratch().File(llb.Mkfile("/foo", 0o644, []byte("input")))
	run := base().Run(llb.Args([]string{"/bin/sh", "-c", "echo left > /data; echo changed > /rw/data; exit 7"}),
		llb.AddMount("/rw", input), llb.AddMount("/gone", input, llb.ForceNoOutput), llb.AddMount("/ro", input, llb.Readonly))
	_, err := trySolve(t, ctx, c, run.Root())
	var failed *errdefs.SolveError
	if !errors.As(err, &failed) {
		t.Fatalf("the failure has no state: %v", err)
	}
	if exitCode(err) != 7 {
		t.Errorf("the failure has exit code %d", exitCode(err))
	}
	exec := failed.Op.GetExec()
	if exec == nil || len(exec.Mounts) != 4 || len(failed.MountIDs) != 4 || len(failed.InputIDs) != 4 {
		t.Fatalf("the failure's op is %v, of %d inputs and %d mounts", failed.Op, len(failed.InputIDs), len(failed.MountIDs))
	}
	req := gateway.NewContainerRequest{NetMode: exec.Network, Platform: failed.Op.Platform}
	before := gateway.NewContainerRequest{}
	for i, m := range exec.Mounts {
		mount := gateway.Mount{Selector: m.Selector, Dest: m.Dest, Readonly: m.Readonly, MountType: m.MountType, ResultID: failed.MountIDs[i]}
		req.Mounts = append(req.Mounts, mount)
		mount.ResultID = failed.InputIDs[i]
		before.Mounts = append(before.Mounts, mount)
	}
	ctr := containerOf(t, ctx, c, req)
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "left\nchanged\ninputinputinput", "sh", "-c", "cat /data /rw/data /rw/foo /gone/foo /ro/foo")
	ctr = containerOf(t, ctx, c, before)
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "input", "sh", "-c", "[ ! -e /data ] && [ ! -e /rw/data ] && cat /rw/foo")
}

func gatewayFailedFile(t *testing.T, ctx context.Context, c gateway.Client) {
	_, err := trySolve(t, ctx, c, llb.Scratch().File(
		llb.Mkdir("/found", 0o700).Mkfile("/found/foo", 0o600, []byte("made")).Mkfile("/notfound/foo", 0o600, nil)))
	var failed *errdefs.SolveError
	if !errors.As(err, &failed) {
		t.Fatalf("the failure has no state: %v", err)
	}
	subject, ok := failed.Subject.(*errdefs.Solve_File)
	if !ok || subject.File.Index != 2 || len(failed.InputIDs) != 0 || len(failed.MountIDs) != 3 {
		t.Fatalf("the failure is of %+v, inputs %q, mounts %q", failed.Subject, failed.InputIDs, failed.MountIDs)
	}
	ctr := container(t, ctx, c, gateway.Mount{Dest: "/input", MountType: pb.MountType_BIND, ResultID: failed.MountIDs[2]})
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "made", "cat", "/input/found/foo")

	_, err = trySolve(t, ctx, c, base().File(llb.Copy(
		llb.Mkdir("/foo", 0o600).Mkfile("/foo/bar", 0o700, []byte("copied")).WithState(llb.Scratch()), "/foo/bar", "/notfound/baz")))
	if !errors.As(err, &failed) {
		t.Fatalf("the failure has no state: %v", err)
	}
	if subject, ok = failed.Subject.(*errdefs.Solve_File); !ok || len(failed.InputIDs) != 1 || len(failed.MountIDs) != 3 {
		t.Fatalf("the failure is of %+v, inputs %q, mounts %q", failed.Subject, failed.InputIDs, failed.MountIDs)
	}
	action := failed.Op.GetFile().Actions[subject.File.Index]
	read := failed.MountIDs[int(action.SecondaryInput)-len(failed.InputIDs)]
	ctr = container(t, ctx, c, gateway.Mount{Dest: "/secondary", MountType: pb.MountType_BIND, ResultID: read})
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "copied", "cat", "/secondary/foo/bar")
}

func gatewayFailedContent(t *testing.T, ctx context.Context, c gateway.Client) {
	input := llb.Scratch().File(llb.Mkdir("/found", 0o700).Mkfile("/found/data", 0o600, []byte("there")))
	_, err := trySolve(t, ctx, c, base().Run(llb.Args([]string{"/bin/true"}),
		llb.AddMount("/src", input, llb.SourcePath("/notfound"), llb.Readonly)).Root())
	var failed *errdefs.SolveError
	if !errors.As(err, &failed) {
		t.Fatalf("the failure has no state: %v", err)
	}
	if _, ok := failed.Subject.(*errdefs.Solve_Cache); !ok || len(failed.InputIDs) != 1 || len(failed.MountIDs) != 0 || failed.Op.GetExec() == nil {
		t.Fatalf("the failure is of %+v, inputs %q, mounts %q, op %v", failed.Subject, failed.InputIDs, failed.MountIDs, failed.Op)
	}
	ctr := container(t, ctx, c, gateway.Mount{Dest: "/problem", MountType: pb.MountType_BIND, ResultID: failed.InputIDs[0]})
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "there", "cat", "/problem/found/data")
}

func gatewayInputs(t *testing.T, ctx context.Context, c gateway.Client) {
	inputs, err := c.Inputs(ctx)
	if err != nil || len(inputs) != 1 {
		t.Fatalf("inputs: %v %v", inputs, err)
	}
	got, err := solve(t, ctx, c, inputs["given"]).ReadFile(ctx, gateway.ReadRequest{Filename: "/input"})
	if err != nil || string(got) != "given" {
		t.Errorf("read: %q %v", got, err)
	}
}

// gatewayNested: a step writes a definition, and another evaluates it.
func gatewayNested(t *testing.T, ctx context.Context, c gateway.Client) {
	inner, err := base().Run(llb.Args([]string{"/bin/sh", "-c", "echo inner > /made"})).Root().Marshal(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := llb.WriteTo(inner, &text); err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string][]llbbuild.BuildOption{
		pb.LLBDefaultDefinitionFile: nil, "sub/other": {llbbuild.WithFilename("sub/other")},
	} {
		file := llb.Scratch().File(llb.Mkdir("/sub", 0o755).Mkfile("/"+name, 0o600, text.Bytes()))
		made := solve(t, ctx, c, file.With(llbbuild.Build(opts...)).Run(llb.Args([]string{"/bin/sh", "-c", "cat /made /made > /twice"})).Root())
		got, err := made.ReadFile(ctx, gateway.ReadRequest{Filename: "/twice"})
		if err != nil || string(got) != "inner\ninner\n" {
			t.Errorf("%s: read %q %v", name, got, err)
		}
	}
	for want, file := range map[string]llb.State{
		"no such file":       llb.Scratch().File(llb.Mkfile("/elsewhere", 0o600, nil)),
		"not a regular file": llb.Scratch().File(llb.Mkdir("/"+pb.LLBDefaultDefinitionFile, 0o755)),
	} {
		if _, err := trySolve(t, ctx, c, file.With(llbbuild.Build())); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestGatewayNestedInItself: a definition that evaluates the place where it is
// from ends with an error.
func TestGatewayNestedInItself(t *testing.T) {
	var text []byte
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		_, _ = w.Write(text)
	}))
	defer server.Close()
	st := llb.HTTP(server.URL, llb.Filename(pb.LLBDefaultDefinitionFile)).With(llbbuild.Build())
	def, err := st.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := llb.WriteTo(def, &buf); err != nil {
		t.Fatal(err)
	}
	text = buf.Bytes()
	if err := asFrontend(t, shared.kiln, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		_, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		return nil, err
	}); err == nil || !strings.Contains(err.Error(), "contains the build itself") {
		t.Errorf("%v", err)
	}
}

// TestGatewayErrors: what a frontend returns as its error reaches whoever
// waits for the build, with all details.
func TestGatewayErrors(t *testing.T) {
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		err := asFrontend(t, d, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
			ctr := container(t, ctx, c)
			defer ctr.Release(context.WithoutCancel(ctx))
			_, err := output(t, ctx, ctr, "sh", "-c", "exit 99")
			return nil, err
		})
		if exitCode(err) != 99 || !strings.Contains(err.Error(), "exit code: 99") || strings.Contains(err.Error(), "rpc error") {
			t.Errorf("%s: a process's exit came back as %v", d.Name, err)
		}
		err = asFrontend(t, d, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
			_, err := trySolve(t, ctx, c, base().Run(llb.Args([]string{"/bin/sh", "-c", "exit 5"})).Root())
			return nil, err
		})
		var failed *errdefs.SolveError
		var vertex *errdefs.VertexError
		if !errors.As(err, &failed) || !errors.As(err, &vertex) || exitCode(err) != 5 {
			t.Errorf("%s: a failed step came back as %v, without %t %t", d.Name, err, failed == nil, vertex == nil)
		}
		err = asFrontend(t, d, func(context.Context, gateway.Client) (*gateway.Result, error) {
			return nil, errors.New("expected to fail")
		})
		if err == nil || !strings.Contains(err.Error(), "expected to fail") || strings.Contains(err.Error(), "rpc error") {
			t.Errorf("%s: a plain error came back as %v", d.Name, err)
		}
	}
}

// TestGatewayVanishes: the processes of a client that is gone are gone, too.
func TestGatewayVanishes(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const mark = "4711.0815"
	err := asFrontendIn(ctx, t, shared.kiln, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		ctr := container(t, ctx, c)
		start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", mark}})
		start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sh", "-c", "sleep " + mark + " & wait"}})
		for end := time.Now().Add(20 * time.Second); running(t, mark) < 3; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d of 3 processes run after 20 s", running(t, mark))
			}
		}
		cancel() // the connection breaks off
		return gateway.NewResult(), nil
	})
	if err == nil {
		t.Error("the build of a client that is gone ended well")
	}
	for end := time.Now().Add(20 * time.Second); running(t, mark) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d processes still run 20 s later", running(t, mark))
		}
	}
}

// running counts the machine's processes that have a word among their arguments.
func running(t *testing.T, word string) (n int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range all {
		if text, err := os.ReadFile(name); err == nil && strings.Contains(string(text), word) && !strings.Contains(string(text), "conformance.test") {
			n++
		}
	}
	return n
}
