package conformance

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gwpb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/conformance/corpus"
	"github.com/kiln-build/kiln/conformance/peer"
)

// dial returns a client of a daemon, which the caller closes.
func dial(ctx context.Context, t *testing.T, d *peer.Daemon) *client.Client {
	t.Helper()
	c, err := client.New(ctx, d.Addr())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// baseStores are the layouts by which builds know the base image.
func baseStores(t *testing.T) map[string]content.Store {
	t.Helper()
	store, err := contentlocal.NewStore(shared.base.Dir)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]content.Store{"base": store}
}

// asFrontend runs f as the frontend of a build on a daemon.
func asFrontend(t *testing.T, d *peer.Daemon, f gateway.BuildFunc) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	return asFrontendIn(ctx, t, d, f)
}

func asFrontendIn(ctx context.Context, t *testing.T, d *peer.Daemon, f gateway.BuildFunc) error {
	t.Helper()
	c := dial(ctx, t, d)
	defer c.Close()
	inputs, err := base().File(llb.Mkfile("/input", 0o644, []byte("given"))).Marshal(ctx)
	if err != nil {
		t.Fatal(err)
	}
	agent, _, err := corpus.ServeAgent(filepath.Join(t.TempDir(), "agent"))
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	agents, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{ID: "agent", Paths: []string{agent.Addr().String()}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Build(ctx, client.SolveOpt{
		OCIStores: baseStores(t),
		Session: []session.Attachable{agents, secretsprovider.FromMap(map[string][]byte{
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
	for end := time.Now().Add(2 * time.Minute); !strings.Contains(o.String(), want); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for %q, got %q", want, o.String())
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
