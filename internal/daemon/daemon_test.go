package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"testing/synctest"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb"
)

// Messages are read kind by kind; they must tell things in the order in which
// they happened all the same.
func TestStatusKeepsOrder(t *testing.T) {
	d := digest.FromString("v")
	events := []progress.Event{
		{Vertex: &progress.Vertex{Digest: d, Name: "one"}},
		{Vertex: &progress.Vertex{Digest: d, Name: "two"}},
		{Status: &progress.Status{Vertex: d, ID: "three"}},
		{Log: &progress.Log{Vertex: d, Data: []byte("four")}},
		{Status: &progress.Status{Vertex: d, ID: "five"}},
		{Warning: &progress.Warning{Vertex: d, Short: []byte("six")}},
		{Vertex: &progress.Vertex{Digest: d, Name: "seven"}},
	}
	var got []string
	for _, m := range statusResponses(events) {
		for _, v := range m.Vertexes {
			got = append(got, v.Name)
		}
		for _, s := range m.Statuses {
			got = append(got, s.ID)
		}
		for _, l := range m.Logs {
			got = append(got, string(l.Msg))
		}
		for _, w := range m.Warnings {
			got = append(got, string(w.Short))
		}
	}
	if want := "[one two three four five six seven]"; fmt.Sprint(got) != want {
		t.Errorf("told %v, want %s", got, want)
	}
}

func TestStatusFitsMessages(t *testing.T) {
	var events []progress.Event
	for range 40 {
		events = append(events, progress.Event{Log: &progress.Log{Data: make([]byte, 1<<20)}})
	}
	logs := 0
	for _, m := range statusResponses(events) {
		logs += len(m.Logs)
		size := 0
		for _, l := range m.Logs {
			size += len(l.Msg)
		}
		if size > session.MaxMessage/2 {
			t.Errorf("a message of %d bytes", size)
		}
	}
	if logs != 40 {
		t.Errorf("%d logs of 40", logs)
	}
}

// Who follows late is told everything, and the end.
func TestEventLogReplays(t *testing.T) {
	l := newEventLog()
	l.Emit(progress.Event{Log: &progress.Log{Data: []byte("a")}})
	told := make(chan string, 1)
	go func() {
		var all string
		err := l.follow(t.Context(), func(es []progress.Event) error {
			for _, e := range es {
				all += string(e.Log.Data)
			}
			return nil
		})
		told <- fmt.Sprint(all, err)
	}()
	l.Emit(progress.Event{Log: &progress.Log{Data: []byte("b")}})
	l.close()
	l.Emit(progress.Event{Log: &progress.Log{Data: []byte("too late")}})
	if got := <-told; got != "ab<nil>" {
		t.Errorf("told %q", got)
	}
}

// Clients ask for a build before they start it (WIRE.md section 1.1).
func TestGetWaitsForBuild(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBuilds()
		found := make(chan error, 1)
		go func() {
			_, err := b.get(t.Context(), "early", time.Second)
			found <- err
		}()
		time.Sleep(500 * time.Millisecond)
		r, err := b.begin("early")
		if err != nil {
			t.Fatal(err)
		}
		if err := <-found; err != nil {
			t.Error(err)
		}
		if _, err := b.get(t.Context(), "never", time.Second); status.Code(err) != codes.NotFound {
			t.Errorf("an unknown build: %v", err)
		}
		if _, err := b.begin("early"); status.Code(err) != codes.AlreadyExists {
			t.Errorf("a second build of one ref: %v", err)
		}
		if b.idleFor() != 0 {
			t.Error("idle with a build under way")
		}
		b.end(r)
		time.Sleep(time.Minute)
		if b.idleFor() != time.Minute {
			t.Errorf("idle for %v", b.idleFor())
		}
		if _, err := b.get(t.Context(), "early", 0); err != nil {
			t.Errorf("an ended build is forgotten at once: %v", err)
		}
	})
}

func TestErrorsKeepWhatClientsNeed(t *testing.T) {
	err := error(&build.Error{
		Vertex: "sha256:aa", Err: fmt.Errorf("step: %w", fs.ErrNotExist),
		Sources: []build.Source{{File: llb.SourceFile{Name: "Dockerfile", Data: []byte("FROM x")}, Ranges: []llb.Range{{Start: llb.Position{Line: 1}}}}},
	})
	st := errorStatus(err)
	if codes.Code(st.Code) != codes.NotFound {
		t.Errorf("code %v", codes.Code(st.Code))
	}
	var types []string
	for _, d := range st.Details {
		types = append(types, d.TypeUrl)
	}
	want := "[github.com/moby/buildkit/errdefs.Vertex+json github.com/moby/buildkit/errdefs.Source+json]"
	if fmt.Sprint(types) != want {
		t.Errorf("details %v", types)
	}
	for err, code := range map[error]codes.Code{
		context.Canceled: codes.Canceled,
		fmt.Errorf("x: %w", context.DeadlineExceeded):             codes.DeadlineExceeded,
		status.Error(codes.Unimplemented, "no"):                   codes.Unimplemented,
		errors.New("plain"):                                       codes.Unknown,
		&frontend.UnsupportedError{Kind: "subrequest", Name: "x"}: codes.Unimplemented,
	} {
		if got := status.Code(wireError(err)); got != code {
			t.Errorf("%v: code %v, want %v", err, got, code)
		}
	}
}

// What a client returns may be anything (SECURITY.md, CVE-2024-23650).
func TestHostileResults(t *testing.T) {
	r := &running{ref: "b", refs: map[string]*gatewayRef{}}
	native := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	for name, w := range map[string]*gateway.Result{
		"unknown ref":      {Result: &gateway.Result_Ref{Ref: &gateway.Ref{Id: "nope"}}},
		"no platforms":     {Result: &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: map[string]*gateway.Ref{"linux/arm64": {}}}}},
		"platforms broken": {Metadata: map[string][]byte{"refs.platforms": []byte("[{}]")}},
		"platform empty": {
			Result:   &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: map[string]*gateway.Ref{"x": nil}}},
			Metadata: map[string][]byte{"refs.platforms": []byte(`{"Platforms":[{"ID":"x"}]}`)},
		},
	} {
		if _, err := r.result(w, native); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	for name, w := range map[string]*gateway.Result{
		"nothing":          nil,
		"the empty ref":    {Result: &gateway.Result_Ref{Ref: &gateway.Ref{}}},
		"nil ref":          {Result: &gateway.Result_Ref{}},
		"nil refs":         {Result: &gateway.Result_Refs{}},
		"platforms = null": {Metadata: map[string][]byte{"refs.platforms": []byte("null")}},
	} {
		if _, err := r.result(w, native); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
