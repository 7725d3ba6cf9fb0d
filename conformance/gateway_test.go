package conformance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"

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
		"Cancel":        gatewayCancel,
		"CancelShared":  gatewayCancelShared,
		"SSH":           gatewaySSH,
		"NotStarted":    gatewayNotStarted,
		"Environment":   gatewayEnvironment,
		"SignalNames":   gatewaySignalNames,
		"LocalSource":   gatewayLocalSource,
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
		for end := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
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
	second := start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", "1000"}})
	begin := time.Now()
	if err := ctr.Release(ctx); err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("release: %v, want it to tell that processes were canceled", err)
	}
	for name, p := range map[string]gateway.ContainerProcess{"first": first, "second": second} {
		if err := p.Wait(); err == nil || !strings.Contains(err.Error(), "context canceled") {
			t.Errorf("the %s process ended with %v, want it canceled", name, err)
		}
	}
	if took := time.Since(begin); took > 2*time.Minute { // on a machine that is very busy
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
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	mark := fmt.Sprintf("4711.%d", time.Now().UnixNano()) // of no other run on this machine
	err := asFrontendIn(ctx, t, shared.kiln, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		ctr := container(t, ctx, c)
		start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sleep", mark}})
		start(t, ctx, ctr, gateway.StartRequest{Args: []string{"sh", "-c", "sleep " + mark + " & wait"}})
		for end := time.Now().Add(2 * time.Minute); running(t, mark) < 3; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%d of 3 processes run", running(t, mark))
			}
		}
		cancel() // the connection breaks off
		return gateway.NewResult(), nil
	})
	if err == nil {
		t.Error("the build of a client that is gone ended well")
	}
	for end := time.Now().Add(2 * time.Minute); running(t, mark) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d processes still run", running(t, mark))
		}
	}
}
