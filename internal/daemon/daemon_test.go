package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/store"
	"github.com/kiln-build/kiln/llb"
)

// openHistory returns a history of its own for a test.
func openHistory(t *testing.T) *history.History {
	t.Helper()
	db, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := history.Open(t.TempDir(), db, history.DefaultRetention())
	if err != nil {
		t.Fatal(errors.Join(err, db.Close()))
	}
	t.Cleanup(func() {
		if err := errors.Join(h.Close(), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return h
}

// openLog returns the log of a build that is in no history.
func openLog(t *testing.T) (*eventLog, *history.Build) {
	t.Helper()
	b, err := openHistory(t).Begin(history.Record{Ref: "test"}, true)
	if err != nil {
		t.Fatal(err)
	}
	return newEventLog(b.Log()), b
}

// told is what those who follow a log that has ended are sent.
func told(t *testing.T, l *eventLog) (all []*control.StatusResponse) {
	t.Helper()
	err := l.log.Follow(t.Context(), func(frames [][]byte) error {
		return sendFrames(frames, func(m *control.StatusResponse) error {
			all = append(all, m)
			return nil
		})
	})
	if err != nil {
		t.Error(err)
	}
	return all
}

// Messages are read kind by kind; they must tell things in the order in which
// they happened all the same.
func TestStatusKeepsOrder(t *testing.T) {
	d := digest.FromString("v")
	l, b := openLog(t)
	for _, e := range []progress.Event{
		{Vertex: &progress.Vertex{Digest: d, Name: "one"}},
		{Vertex: &progress.Vertex{Digest: d, Name: "two"}},
		{Status: &progress.Status{Vertex: d, ID: "three"}},
		{Log: &progress.Log{Vertex: d, Data: []byte("four")}},
		{Status: &progress.Status{Vertex: d, ID: "five"}},
		{Warning: &progress.Warning{Vertex: d, Short: []byte("six")}},
		{Vertex: &progress.Vertex{Digest: d, Name: "seven"}},
	} {
		l.Emit(e)
	}
	if err := b.End(history.Outcome{}); err != nil {
		t.Fatal(err)
	}
	var got []string
	messages := told(t, l)
	for _, m := range messages {
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
	if want := "[one two three four five six seven]"; fmt.Sprint(got) != want || len(messages) != 3 {
		t.Errorf("told %v in %d messages, want %s in 3", got, len(messages), want)
	}
	b.Release()
}

// A line of any length comes whole, in messages that are not too large.
func TestStatusFitsMessages(t *testing.T) {
	l, b := openLog(t)
	line := bytes.Repeat([]byte("0123456789abcde\n"), 40<<16)
	l.Emit(progress.Event{Log: &progress.Log{Data: line}})
	l.Emit(progress.Event{Vertex: &progress.Vertex{Name: strings.Repeat("long", 5<<20), Error: "bad \xff text"}})
	if err := b.End(history.Outcome{}); err != nil {
		t.Fatal(err)
	}
	var got []byte
	name := ""
	for _, m := range told(t, l) {
		for _, l := range m.Logs {
			got = append(got, l.Msg...)
		}
		for _, v := range m.Vertexes {
			name = v.Name
		}
		if size := proto.Size(m); size > session.MaxMessage/2 {
			t.Errorf("a message of %d bytes", size)
		}
	}
	if !bytes.Equal(got, line) {
		t.Errorf("told %d bytes of %d", len(got), len(line))
	}
	if name == "" || !strings.HasPrefix(name, "long") {
		t.Errorf("told the name %.10q", name)
	}
	b.Release()
}

// Who follows late is told everything, and the end.
func TestEventLogReplays(t *testing.T) {
	l, b := openLog(t)
	emit := func(text string) { l.Emit(progress.Event{Log: &progress.Log{Data: []byte(text)}}) }
	emit("a")
	heard := make(chan string, 1)
	go func() {
		var all string
		for _, m := range told(t, l) {
			for _, l := range m.Logs {
				all += string(l.Msg)
			}
		}
		heard <- all
	}()
	emit("b")
	l.close()
	if err := b.End(history.Outcome{}); err != nil {
		t.Fatal(err)
	}
	emit("too late")
	if got := <-heard; got != "ab" {
		t.Errorf("told %q", got)
	}
	b.Release()
}

// What has begun ends with the build, and is counted.
func TestEventLogEndsVertices(t *testing.T) {
	l, b := openLog(t)
	now := time.Now()
	vertex := func(name string, change func(*progress.Vertex)) {
		v := &progress.Vertex{Digest: digest.FromString(name), Name: name}
		change(v)
		l.Emit(progress.Event{Vertex: v})
	}
	vertex("known", func(*progress.Vertex) {})
	vertex("begun", func(v *progress.Vertex) { v.Started = &now })
	vertex("done", func(v *progress.Vertex) { v.Started, v.Completed = &now, &now })
	vertex("cached", func(v *progress.Vertex) { v.Started, v.Completed, v.Cached = &now, &now, true })
	l.Emit(progress.Event{Warning: &progress.Warning{Short: []byte("careful")}})
	l.close()
	if err := b.End(history.Outcome{}); err != nil {
		t.Fatal(err)
	}
	last := map[string]*control.Vertex{}
	for _, m := range told(t, l) {
		for _, v := range m.Vertexes {
			last[v.Name] = v
		}
	}
	if v := last["begun"]; v.Completed == nil || v.Error != "context canceled" {
		t.Errorf("what had begun is %v", v)
	}
	if last["known"].Completed != nil || last["done"].Error != "" {
		t.Errorf("told of %v", last)
	}
	if got, want := l.steps(), (history.Steps{Cached: 1, Completed: 3, Total: 4, Warnings: 1}); got != want {
		t.Errorf("counted %+v, want %+v", got, want)
	}
	b.Release()
}

// A client that acts as frontend is answered while the record of its build is made.
func TestBuildIsKnownBeforeItsRecord(t *testing.T) {
	past := openHistory(t)
	full := errors.New("the disk is full")
	for _, failure := range []error{nil, full} {
		synctest.Test(t, func(t *testing.T) {
			b := newBuilds()
			disk := make(chan struct{})
			began := make(chan error, 1)
			go func() {
				_, err := b.begin("slow", func() (*history.Build, error) {
					<-disk
					if failure != nil {
						return nil, failure
					}
					return past.Begin(history.Record{Ref: "slow"}, true)
				})
				began <- err
			}()
			r, err := b.get(t.Context(), "slow", time.Second)
			if err != nil {
				t.Fatal(err)
			}
			if r.phase == nil || b.running() != 1 {
				t.Errorf("%d builds are under way, the first with phase %v", b.running(), r.phase)
			}
			followed := make(chan error, 1)
			go func() {
				_, err := r.log(t.Context())
				followed <- err
			}()
			synctest.Wait()
			select {
			case err := <-followed:
				t.Fatalf("a log before there is one: %v", err)
			default:
			}
			close(disk)
			if err := <-began; !errors.Is(err, failure) {
				t.Errorf("begin: %v, want %v", err, failure)
			}
			if err := <-followed; (failure == nil) != (err == nil) || err != nil && status.Code(err) != codes.NotFound {
				t.Errorf("log: %v", err)
			}
			if failure == nil {
				r.record.Release()
				return
			}
			<-r.done
			if b.now("slow") != nil || b.running() != 0 {
				t.Errorf("what failed to begin is under way: %d builds", b.running())
			}
		})
	}
}

// Clients ask for a build before they start it (BuildKit's client/solve.go).
func TestGetWaitsForBuild(t *testing.T) {
	past := openHistory(t)
	open := func() (*history.Build, error) { return past.Begin(history.Record{Ref: "early"}, true) }
	synctest.Test(t, func(t *testing.T) {
		b := newBuilds()
		found := make(chan error, 1)
		go func() {
			_, err := b.get(t.Context(), "early", time.Second)
			found <- err
		}()
		time.Sleep(500 * time.Millisecond)
		r, err := b.begin("early", open)
		if err != nil {
			t.Fatal(err)
		}
		if err := <-found; err != nil {
			t.Error(err)
		}
		if _, err := b.get(t.Context(), "never", time.Second); status.Code(err) != codes.NotFound {
			t.Errorf("an unknown build: %v", err)
		}
		if _, err := b.begin("early", open); status.Code(err) != codes.AlreadyExists {
			t.Errorf("a second build of one ref: %v", err)
		}
		if b.idleFor() != 0 {
			t.Error("idle with a build under way")
		}
		if err := r.record.End(history.Outcome{}); err != nil {
			t.Error(err)
		}
		b.end(r)
		if b.now("early") != r {
			t.Error("a build that is in no history is forgotten at once")
		}
		time.Sleep(time.Minute)
		if b.idleFor() != time.Minute {
			t.Errorf("idle for %v", b.idleFor())
		}
		if b.now("early") != nil {
			t.Error("an ended build is remembered")
		}
	})
}

func TestErrorsKeepWhatClientsNeed(t *testing.T) {
	stack := make([]uintptr, 1)
	runtime.Callers(1, stack)
	err := error(&build.Error{
		Stack: stack, Vertex: "sha256:aa", Err: fmt.Errorf("step: %w", fs.ErrNotExist),
		Sources: []build.Source{{File: llb.SourceFile{Name: "Dockerfile", Data: []byte("FROM x")}, Ranges: []llb.Range{{Start: llb.Position{Line: 1}}}}},
	})
	st := errorStatus(err)
	if codes.Code(st.Code) != codes.Unknown {
		t.Errorf("code %v", codes.Code(st.Code))
	}
	var types []string
	for _, d := range st.Details {
		types = append(types, d.TypeUrl)
	}
	want := "[github.com/moby/buildkit/stack.Stack+json github.com/moby/buildkit/errdefs.Vertex+json github.com/moby/buildkit/errdefs.Source+json]"
	if fmt.Sprint(types) != want {
		t.Errorf("details %v", types)
	}
	if frame := string(st.Details[0].Value); !strings.Contains(frame, "daemon.TestErrorsKeepWhatClientsNeed") {
		t.Errorf("stack is %s", frame)
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

func TestTransferIsNamed(t *testing.T) {
	for id, want := range map[string]string{"transferring context:": "transferring", "extracting sha256:0": ""} {
		if got := wireStatus(&progress.Status{ID: id}).Name; got != want {
			t.Errorf("%s has name %q, want %q", id, got, want)
		}
	}
}
