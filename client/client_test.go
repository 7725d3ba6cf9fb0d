package client_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/platforms"
	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/client/clienttest"
	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session/auth"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/files"
	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/session/upload"
)

func connect(t *testing.T, d *clienttest.Daemon) *client.Client {
	t.Helper()
	c, err := client.New(d.Address, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// events is a sink that keeps what it gets.
type events struct {
	mu   sync.Mutex
	list []client.Event
}

func (e *events) Emit(ev client.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.list = append(e.list, ev)
}

// names is a destination that keeps the names and contents.
type names struct {
	mu    sync.Mutex
	files map[string]string
}

func (n *names) Stat(st *fsutil.Stat) (bool, error) { return true, nil }

func (n *names) Create(st *fsutil.Stat) (files.Content, error) {
	return &named{n: n, name: st.GetPath()}, nil
}

type named struct {
	bytes.Buffer
	n    *names
	name string
}

func (c *named) Commit() error {
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	if c.n.files == nil {
		c.n.files = map[string]string{}
	}
	c.n.files[c.name] = c.String()
	return nil
}

func (c *named) Abort() {}

// useAll is a build that uses all that a client offers, and tells what it saw.
func useAll(ctx context.Context, b *clienttest.Build) (map[string]string, error) {
	now := timestamppb.Now()
	b.Tell(&control.StatusResponse{
		Vertexes: []*control.Vertex{{Digest: "sha256:1", Name: "step", Started: now}},
		Logs:     []*control.VertexLog{{Vertex: "sha256:1", Stream: 1, Msg: []byte("hi"), Timestamp: now}},
	})
	ctx = sessiontest.Context(ctx, b.Client)
	var got names
	for _, name := range []string{"context", "dockerfile"} {
		if err := files.Receive(ctx, b.Client, files.ReceiveOptions{Name: name}, &got); err != nil {
			return nil, err
		}
	}
	value, err := secret.Daemon{}.Secret(ctx, "s")
	if err != nil {
		return nil, err
	}
	_, password, err := auth.Credentials(ctx, "reg.example")
	if err != nil {
		return nil, err
	}
	r, err := upload.Open(ctx, "/up")
	if err != nil {
		return nil, err
	}
	uploaded, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	tree, err := files.NewMemory(map[string][]byte{"result": []byte("made")}, files.Filter{})
	if err != nil {
		return nil, err
	}
	if err := files.Send(ctx, b.Client, tree, files.SendOptions{ExporterID: 0}); err != nil {
		return nil, err
	}
	for id := 1; id <= 2; id++ {
		w, err := export.Open(ctx, b.Client, id, nil)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write([]byte("archive")); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	}
	summary, err := json.Marshal([]string{
		got.files["a.txt"], got.files["Dockerfile"], string(value), password, string(uploaded),
		b.Client.SharedKey(), b.Request.GetFrontend(), b.Request.GetFrontendAttrs()["target"],
		b.Request.GetExporters()[2].GetType(), b.Request.GetExporterDeprecated(),
	})
	b.Tell(&control.StatusResponse{Vertexes: []*control.Vertex{{Digest: "sha256:1", Name: "step", Started: now, Completed: now}}})
	return map[string]string{"summary": string(summary)}, err
}

// One build that uses all that a client has to offer.
func TestSolve(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.txt"), []byte("from disk"), 0o644); err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	d := clienttest.Start(t, useAll)
	t.Setenv("KILN_TEST_SECRET", "secret")
	config := t.TempDir()
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte(`{"auths":{"reg.example":{"auth":"dXNlcjpwYXNz"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var sink events
	r, err := connect(t, d).Solve(context.Background(), client.SolveOpt{
		Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"target": "x"},
		Exports: []client.Export{
			{Type: "local", Dir: out}, {Type: "tar", File: filepath.Join(out, "f.tar")}, {Type: "oci", Writer: &stdout},
		},
		Attach: client.Attach{
			SharedKey: "key", Dirs: map[string]string{"context": dir}, DockerConfig: config,
			Files:   map[string]map[string][]byte{"dockerfile": {"Dockerfile": []byte("FROM scratch")}},
			Uploads: map[string]io.Reader{"up": strings.NewReader("up and away")},
			Secrets: []client.Secret{{ID: "s", Env: "KILN_TEST_SECRET"}},
		},
	}, &sink)
	if err != nil {
		t.Fatal(err)
	}
	const want = `["from disk","FROM scratch","secret","pass","up and away","key","dockerfile.v0","x","oci","local"]`
	if got := r.Response["summary"]; got != want {
		t.Errorf("the daemon saw %s, want %s", got, want)
	}
	if len(r.Ref) != 25 {
		t.Errorf("ref %q, want 25 characters", r.Ref)
	}
	for name, want := range map[string]string{"result": "made", "f.tar": "archive"} {
		if got, err := os.ReadFile(filepath.Join(out, name)); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
	}
	if stdout.String() != "archive" {
		t.Errorf("standard output holds %q", stdout.String())
	}
	if len(sink.list) != 3 || sink.list[1].Log == nil || sink.list[2].Vertex.Completed == nil {
		t.Errorf("events %+v, want a start, a log and an end", sink.list)
	}
}

func detail(t *testing.T, name, value string) *anypb.Any {
	t.Helper()
	return &anypb.Any{TypeUrl: "github.com/moby/buildkit/" + name + "+json", Value: []byte(value)}
}

func TestSolveFails(t *testing.T) {
	d := clienttest.Start(t, func(context.Context, *clienttest.Build) (map[string]string, error) {
		return nil, status.FromProto(&spb.Status{
			Code: int32(codes.Unknown), Message: "process failed",
			Details: []*anypb.Any{
				detail(t, "errdefs.Vertex", `{"digest":"sha256:abc"}`),
				detail(t, "gatewayapi.ExitMessage", `{"Code":7}`),
				detail(t, "errdefs.Source", `{"info":{"filename":"Dockerfile","data":"RlJPTSBh"},"ranges":[{"start":{"line":1},"end":{"line":1,"character":3}}]}`),
				detail(t, "errdefs.Source", `{"info":`),
				detail(t, "something.Else", `{}`),
			},
		}).Err()
	})
	_, err := connect(t, d).Solve(context.Background(), client.SolveOpt{Frontend: "x"}, &events{})
	var e *client.Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v, want a client.Error", err)
	}
	if e.Message != "process failed" || e.Vertex != "sha256:abc" || e.ExitCode != 7 || len(e.Sources) != 1 {
		t.Fatalf("error %+v", e)
	}
	s := e.Sources[0]
	if s.Filename != "Dockerfile" || string(s.Data) != "FROM a" || len(s.Ranges) != 1 || s.Ranges[0].EndChar != 3 {
		t.Errorf("source %+v", s)
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	d := clienttest.Start(t, func(ctx context.Context, b *clienttest.Build) (map[string]string, error) {
		cancel()
		<-ctx.Done()
		// What a daemon tells while it cancels still arrives.
		b.Tell(&control.StatusResponse{Vertexes: []*control.Vertex{{Digest: "sha256:1", Error: "context canceled"}}})
		ended <- ctx.Err()
		return nil, ctx.Err()
	})
	var sink events
	_, err := connect(t, d).Solve(ctx, client.SolveOpt{Frontend: "x"}, &sink)
	if status.Code(err) != codes.Canceled {
		t.Errorf("error %v, want Canceled", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the build ended with %v", err)
	}
	if len(sink.list) != 1 {
		t.Errorf("%d events, want the last word", len(sink.list))
	}
}

// A daemon that dies ends a build with a clear error, and soon.
func TestDaemonDies(t *testing.T) {
	var d *clienttest.Daemon
	d = clienttest.Start(t, func(ctx context.Context, b *clienttest.Build) (map[string]string, error) {
		d.Kill()
		<-ctx.Done()
		return nil, ctx.Err()
	})
	start := time.Now()
	_, err := connect(t, d).Solve(context.Background(), client.SolveOpt{Frontend: "x"}, &events{})
	if !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("error %v, want ErrUnreachable", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if err := connect(t, d).Ping(context.Background()); !errors.Is(err, client.ErrUnreachable) {
		t.Errorf("ping: %v, want ErrUnreachable", err)
	}
}

func TestManage(t *testing.T) {
	d := clienttest.Start(t, nil)
	d.Usage = []*control.UsageRecord{{ID: "u", Size: 5, RecordType: "regular", CreatedAt: timestamppb.New(time.Unix(1, 0))}}
	c, ctx := connect(t, d), context.Background()
	if v, err := c.Info(ctx); err != nil || v.Version != "1.2.3" {
		t.Errorf("info %v, %v", v, err)
	}
	if w, err := c.ListWorkers(ctx, nil); err != nil || len(w) != 1 || platforms.Format(w[0].Platforms[0]) != "linux/arm64/v8" || w[0].GC[0].MaxUsed != 1e9 {
		t.Errorf("workers %v, %v", w, err)
	}
	if u, err := c.DiskUsage(ctx, client.UsageOpt{}); err != nil || len(u) != 1 || u[0].Size != 5 || !u[0].LastUsed.IsZero() || u[0].Created.Unix() != 1 {
		t.Errorf("usage %v, %v", u, err)
	}
	if _, err := c.DiskUsage(ctx, client.UsageOpt{Filters: []string{"bad"}}); err == nil || err.Error() != "bad filter" {
		t.Errorf("error %v, want the daemon's", err)
	}
	var gone []client.Usage
	if err := c.Prune(ctx, client.PruneOpt{KeepFor: time.Hour}, func(u client.Usage) { gone = append(gone, u) }); err != nil || len(gone) != 1 {
		t.Errorf("pruned %v, %v", gone, err)
	}
	if d.PruneReq.GetKeepDuration() != int64(time.Hour) {
		t.Errorf("keep duration %d", d.PruneReq.GetKeepDuration())
	}
}

func TestAddress(t *testing.T) {
	for _, a := range []string{"", "/run/x", "docker-container://", "unix://", "tcp://", "http://x", "::"} {
		if _, err := client.New(a, client.Options{}); err == nil {
			t.Errorf("%q was taken", a)
		}
	}
	env := map[string]string{"BUILDKIT_HOST": "tcp://b:1"}
	get := func(k string) string { return env[k] }
	if got := client.AddressFromEnv(get); got != "tcp://b:1" {
		t.Errorf("address %q", got)
	}
	env["KILN_HOST"] = "tcp://k:1"
	if got := client.AddressFromEnv(get); got != "tcp://k:1" {
		t.Errorf("address %q", got)
	}
}

func TestBadRequests(t *testing.T) {
	d := clienttest.Start(t, func(context.Context, *clienttest.Build) (map[string]string, error) { return nil, nil })
	for name, opt := range map[string]client.SolveOpt{
		"secret that is not there": {Attach: client.Attach{Secrets: []client.Secret{{ID: "a", File: "/nonexistent"}}}},
		"layout that is none":      {Attach: client.Attach{Layouts: map[string]string{"a": t.TempDir()}}},
		"directory for a tar":      {Exports: []client.Export{{Type: "tar", Dir: "x"}}},
		"local without directory":  {Exports: []client.Export{{Type: "local"}}},
	} {
		if _, err := connect(t, d).Solve(context.Background(), opt, &events{}); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
