package conformance

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/identity"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/conformance/peer"
)

// recorded is a build that a history knows, and what its client was told.
type recorded struct {
	ref  string
	told told
	err  error
}

// told is what a client is told of a build while it runs, or later.
type told struct {
	logs     map[string]string // by vertex and stream
	vertices map[digest.Digest]*client.Vertex
	warnings int
}

func newTold() told {
	return told{logs: map[string]string{}, vertices: map[digest.Digest]*client.Vertex{}}
}

func (w *told) add(s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		w.vertices[v.Digest] = v
	}
	for _, l := range s.Logs {
		w.logs[fmt.Sprint(l.Vertex, " ", l.Stream)] += string(l.Data)
	}
	w.warnings += len(s.Warnings)
}

// historian is a client of a daemon's history.
type historian struct {
	t   *testing.T
	d   *peer.Daemon
	ctx context.Context
	c   *client.Client
}

// TestHistory has BuildKit's own client library ask either daemon for its
// history: what holds for the one must hold for the other.
func TestHistory(t *testing.T) {
	cases := map[string]func(*historian){
		"Record":   historyRecord,
		"Failure":  historyFailure,
		"Internal": historyInternal,
		"Events":   historyEvents,
		"Delete":   historyDelete,
		"Active":   historyActive,
		"Unknown":  historyUnknown,
		"Filters":  historyFilters,
		"Trace":    historyTrace,
		"Content":  historyContent,
	}
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		for name, f := range cases {
			t.Run(d.Name+"/"+name, func(t *testing.T) { f(newHistorian(t, d)) })
		}
	}
}

func newHistorian(t *testing.T, d *peer.Daemon) *historian {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	t.Cleanup(cancel)
	c := dial(ctx, t, d)
	t.Cleanup(func() { _ = c.Close() }) // the daemon may have been killed
	return &historian{t, d, ctx, c}
}

// build runs a script in the base image.
func (h *historian) build(script string, change func(*client.SolveOpt)) recorded {
	h.t.Helper()
	// No two runs are the same, so that none is cached.
	run := base().AddEnv("UNIQUE", fmt.Sprint(rand.Uint64())).Run(llb.Args([]string{"/bin/sh", "-c", script}), llb.WithCustomName("the script"))
	def, err := run.Root().Marshal(h.ctx)
	if err != nil {
		h.t.Fatal(err)
	}
	opt := client.SolveOpt{Ref: identity.NewID(), OCIStores: baseStores(h.t)}
	if change != nil {
		change(&opt)
	}
	r := recorded{ref: opt.Ref, told: newTold()}
	ch := make(chan *client.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range ch {
			r.told.add(s)
		}
	}()
	_, r.err = h.c.Solve(h.ctx, def, opt, ch)
	<-done
	return r
}

// listen returns what a listener is told at once.
func (h *historian) listen(r *controlapi.BuildHistoryRequest) (all []*controlapi.BuildHistoryEvent) {
	h.t.Helper()
	r.EarlyExit = true
	stream, err := h.c.ControlClient().ListenBuildHistory(h.ctx, r)
	if err != nil {
		h.t.Fatal(err)
	}
	header, err := stream.Header()
	if err != nil {
		h.t.Fatal(err)
	}
	if now := header.Get("buildkit-current-timestamp"); len(now) != 1 {
		h.t.Errorf("the time is %q", now)
	} else if at, err := time.Parse(time.RFC3339Nano, now[0]); err != nil || time.Since(at) > time.Minute {
		h.t.Errorf("the time is %s (%v)", at, err)
	}
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			h.t.Fatal(err)
		}
		all = append(all, e)
	}
}

// record returns the record of a build that has ended.
func (h *historian) record(ref string) *controlapi.BuildHistoryRecord {
	h.t.Helper()
	all := h.listen(&controlapi.BuildHistoryRequest{Ref: ref})
	if len(all) != 1 || all[0].Type != controlapi.BuildHistoryEventType_COMPLETE || all[0].Record.Ref != ref {
		h.t.Fatalf("of build %s is told %v", ref, all)
	}
	return all[0].Record
}

func (h *historian) blob(d *controlapi.Descriptor) []byte {
	h.t.Helper()
	store := proxy.NewContentStore(h.c.ContentClient())
	data, err := content.ReadBlob(h.ctx, store, ocispecs.Descriptor{
		MediaType: d.MediaType, Digest: digest.Digest(d.Digest), Size: d.Size,
	})
	if err != nil {
		h.t.Fatalf("read blob %s: %v", d.Digest, err)
	}
	if digest.FromBytes(data) != digest.Digest(d.Digest) {
		h.t.Errorf("blob %s has other content", d.Digest)
	}
	return data
}

// stored is what the log of a record tells.
func (h *historian) stored(d *controlapi.Descriptor) told {
	h.t.Helper()
	if d.MediaType != "application/vnd.buildkit.status.v0" {
		h.t.Errorf("media type of the log is %s", d.MediaType)
	}
	w := newTold()
	for data := h.blob(d); len(data) > 0; {
		n := binary.LittleEndian.Uint32(data)
		m := &controlapi.StatusResponse{}
		if err := proto.Unmarshal(data[4:4+n], m); err != nil {
			h.t.Fatal(err)
		}
		w.add(client.NewSolveStatus(m))
		data = data[4+n:]
	}
	return w
}

// status is what a client is told that asks for a build's status.
func (h *historian) status(ref string) told {
	h.t.Helper()
	stream, err := h.c.ControlClient().Status(h.ctx, &controlapi.StatusRequest{Ref: ref})
	if err != nil {
		h.t.Fatal(err)
	}
	w := newTold()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return w
		}
		if err != nil {
			h.t.Fatal(err)
		}
		w.add(client.NewSolveStatus(m))
	}
}

func (h *historian) update(r *controlapi.UpdateBuildHistoryRequest) error {
	_, err := h.c.ControlClient().UpdateBuildHistory(h.ctx, r)
	return err
}

// same compares what was told live with what is told later.
func (h *historian) same(live, later told) {
	h.t.Helper()
	if !maps.Equal(live.logs, later.logs) {
		h.t.Errorf("logs were %q, are %q", live.logs, later.logs)
	}
	if live.warnings != later.warnings || len(live.vertices) != len(later.vertices) {
		h.t.Errorf("told of %d vertices and %d warnings, later of %d and %d",
			len(live.vertices), live.warnings, len(later.vertices), later.warnings)
	}
	for d, v := range live.vertices {
		w := later.vertices[d]
		if w == nil || w.Name != v.Name || w.Cached != v.Cached || w.Error != v.Error || (w.Completed == nil) != (v.Completed == nil) {
			h.t.Errorf("a vertex was %+v, is %+v", v, w)
		}
	}
}

func historyRecord(h *historian) {
	var out bytes.Buffer
	r := h.build("echo to stdout; echo to stderr >&2; seq 20000", func(o *client.SolveOpt) {
		o.FrontendAttrs = map[string]string{"some": "attribute"}
		o.Exports = []client.ExportEntry{{
			Type: client.ExporterOCI, Attrs: map[string]string{"name": "example.com/x"},
			Output: func(map[string]string) (io.WriteCloser, error) { return nopCloser{&out}, nil },
		}}
	})
	if r.err != nil {
		h.t.Fatal(r.err)
	}
	rec := h.record(r.ref)
	if rec.FrontendAttrs["some"] != "attribute" || rec.Frontend != "" || rec.Error != nil || rec.ExternalError != nil || rec.Pinned {
		h.t.Errorf("record is %v", rec)
	}
	if e := rec.Exporters; len(e) != 1 || e[0].Type != "oci" || e[0].Attrs["name"] != "example.com/x" {
		h.t.Errorf("exporters are %v", e)
	}
	if rec.CompletedAt.AsTime().Before(rec.CreatedAt.AsTime()) || time.Since(rec.CreatedAt.AsTime()) > time.Minute {
		h.t.Errorf("it was from %v to %v", rec.CreatedAt.AsTime(), rec.CompletedAt.AsTime())
	}
	completed, cached := 0, 0
	for _, v := range r.told.vertices {
		if v.Completed != nil {
			completed++
		}
		if v.Cached {
			cached++
		}
	}
	if int(rec.NumTotalSteps) != len(r.told.vertices) || int(rec.NumCompletedSteps) != completed || int(rec.NumCachedSteps) != cached {
		h.t.Errorf("counted %d of %d steps, %d cached; want %d of %d, %d", rec.NumCompletedSteps, rec.NumTotalSteps, rec.NumCachedSteps,
			completed, len(r.told.vertices), cached)
	}
	if image := rec.Result.GetResults()[0]; image == nil || image.MediaType != ocispecs.MediaTypeImageManifest && image.MediaType != ocispecs.MediaTypeImageIndex {
		h.t.Errorf("the image is %v", image)
	} else if !proto.Equal(image, rec.Result.ResultDeprecated) {
		h.t.Errorf("old clients see the image %v", rec.Result.ResultDeprecated)
	}
	h.same(r.told, h.stored(rec.Logs))
	h.same(r.told, h.status(r.ref))
	all := strings.Join(slices.Sorted(maps.Values(r.told.logs)), "")
	for _, want := range []string{"to stdout\n1\n2\n", "19999\n20000\n", "to stderr\n"} {
		if !strings.Contains(all, want) {
			h.t.Errorf("no %q among %d bytes of logs", want, len(all))
		}
	}
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

func historyFailure(h *historian) {
	r := h.build("echo it goes wrong; exit 3", nil)
	if r.err == nil {
		h.t.Fatal("a script that fails is no failure")
	}
	rec := h.record(r.ref)
	if rec.Error == nil || !strings.Contains(rec.Error.Message, "exit code: 3") || len(rec.Error.Details) > 0 {
		h.t.Errorf("error is %v", rec.Error)
	}
	if rec.ExternalError == nil {
		h.t.Fatal("no error with details")
	}
	st := &rpcstatus.Status{}
	if err := proto.Unmarshal(h.blob(rec.ExternalError), st); err != nil {
		h.t.Fatal(err)
	}
	var types []string
	for _, d := range st.Details {
		types = append(types, d.TypeUrl)
	}
	if !slices.Contains(types, "github.com/moby/buildkit/errdefs.Vertex+json") || st.Message != rec.Error.Message || st.Code != rec.Error.Code {
		h.t.Errorf("error with details is %v, %d: %s", types, st.Code, st.Message)
	}
	h.same(r.told, h.stored(rec.Logs))
}

func historyInternal(h *historian) {
	r := h.build("echo hidden", func(o *client.SolveOpt) { o.Internal = true })
	if r.err != nil {
		h.t.Fatal(r.err)
	}
	if all := h.listen(&controlapi.BuildHistoryRequest{Ref: r.ref}); len(all) > 0 {
		h.t.Errorf("an internal build is recorded: %v", all)
	}
}

func historyFilters(h *historian) {
	repo := "https://example.com/" + identity.NewID() + ".git"
	attrs := func(o *client.SolveOpt) { o.FrontendAttrs = map[string]string{"vcs:source": repo} }
	good, bad := h.build("echo good", attrs), h.build("exit 1", attrs)
	if good.err != nil || bad.err == nil {
		h.t.Fatalf("builds ended with %v and %v", good.err, bad.err)
	}
	ours := "repository==" + repo
	for filter, want := range map[string][]string{
		ours:                          {good.ref, bad.ref},
		ours + ",status==completed":   {good.ref},
		ours + ",status==error":       {bad.ref},
		ours + ",status!=completed":   {bad.ref},
		ours + ",status==canceled":    nil,
		ours + ",ref~=^" + good.ref:   {good.ref},
		ours + ",ref!=" + good.ref:    {bad.ref},
		ours + ",startedAt>1h":        {good.ref, bad.ref},
		ours + ",startedAt<1h":        nil,
		ours + ",completedAt>=1h":     {good.ref, bad.ref},
		ours + ",completedAt<=1h":     nil,
		ours + ",duration<10m":        {good.ref, bad.ref},
		ours + ",duration>=10m":       nil,
		"ref==" + bad.ref:             {bad.ref},
		"repository~=example.com/abc": nil,
	} {
		var got []string
		for _, e := range h.listen(&controlapi.BuildHistoryRequest{Filter: []string{filter}}) {
			got = append(got, e.Record.Ref)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			h.t.Errorf("filter %q gives %q, want %q", filter, got, want)
		}
	}
	all := h.listen(&controlapi.BuildHistoryRequest{Filter: []string{ours}, Limit: 1})
	if len(all) != 1 || all[0].Record.Ref != bad.ref {
		h.t.Errorf("the newest build is %v", all)
	}
	either := h.listen(&controlapi.BuildHistoryRequest{Filter: []string{"ref==" + good.ref, "ref==" + bad.ref}})
	if len(either) != 2 {
		h.t.Errorf("of two filters one is enough, told %v", either)
	}
	for _, r := range []*controlapi.BuildHistoryRequest{{Filter: []string{"ref+foo"}}, {Filter: []string{"duration>long"}}, {Limit: -1}} {
		r.EarlyExit = true
		stream, err := h.c.ControlClient().ListenBuildHistory(h.ctx, r)
		if err == nil {
			_, err = stream.Recv()
		}
		if err == nil || errors.Is(err, io.EOF) {
			h.t.Errorf("%v: no error", r)
		}
	}
}

func historyTrace(h *historian) {
	r := h.build("echo traced", nil)
	if err := h.update(&controlapi.UpdateBuildHistoryRequest{Ref: r.ref, Finalize: true}); err != nil {
		h.t.Fatal(err)
	}
	rec := h.record(r.ref)
	if rec.Trace == nil || rec.Trace.MediaType != "application/vnd.buildkit.otlp.json.v0" || rec.Generation == 0 {
		h.t.Fatalf("trace is %v, generation %d", rec.Trace, rec.Generation)
	}
	dec := json.NewDecoder(bytes.NewReader(h.blob(rec.Trace)))
	names, traces := map[string]bool{}, map[string]bool{}
	var events []string
	for {
		var span struct {
			Name        string
			SpanContext struct{ TraceID, SpanID string }
			StartTime   time.Time
			EndTime     time.Time
			Events      []struct {
				Name       string
				Time       time.Time
				Attributes []struct {
					Key   string
					Value struct{ Value any }
				}
			}
		}
		if err := dec.Decode(&span); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			h.t.Fatal(err)
		}
		names[span.Name], traces[span.SpanContext.TraceID] = true, true
		for _, e := range span.Events {
			if span.Name == "the script" && !e.Time.Before(span.StartTime) && !e.Time.After(span.EndTime) {
				events = append(events, fmt.Sprint(e.Name, e.Attributes))
			}
		}
		if len(span.SpanContext.SpanID) != 16 || span.EndTime.Before(span.StartTime) {
			h.t.Errorf("span is %+v", span)
		}
	}
	if want := []string{"ExecOp started[]", "Container created[]", "Container started[]", "Container exited[{exit.code {0}}]"}; !slices.Equal(events, want) {
		h.t.Errorf("events of the script are %q, want %q", events, want)
	}
	if !names["the script"] || len(traces) != 1 {
		h.t.Errorf("spans are %v in %d traces", slices.Sorted(maps.Keys(names)), len(traces))
	}
}

// historyContent reads parts of blobs, and what there is not.
func historyContent(h *historian) {
	r := h.build("echo content", nil)
	logs := h.record(r.ref).Logs
	store := proxy.NewContentStore(h.c.ContentClient())
	info, err := store.Info(h.ctx, digest.Digest(logs.Digest))
	if err != nil || info.Size != logs.Size {
		h.t.Errorf("info is %+v (%v)", info, err)
	}
	ra, err := store.ReaderAt(h.ctx, ocispecs.Descriptor{Digest: digest.Digest(logs.Digest)})
	if err != nil {
		h.t.Fatal(err)
	}
	part := make([]byte, 10)
	if n, err := ra.ReadAt(part, 5); n != len(part) || err != nil || !bytes.Equal(part, h.blob(logs)[5:15]) {
		h.t.Errorf("a part is %q (%v)", part[:n], err)
	}
	if err := ra.Close(); err != nil {
		h.t.Error(err)
	}
	listed := false
	err = store.Walk(h.ctx, func(i content.Info) error {
		listed = listed || i.Digest == info.Digest
		return nil
	})
	if err != nil || !listed {
		h.t.Errorf("the log is listed: %v (%v)", listed, err)
	}
	if _, err := store.Info(h.ctx, digest.FromString("nothing")); err == nil {
		h.t.Error("there is a blob of nothing")
	}
	w, err := store.Writer(h.ctx, content.WithRef("x"))
	if err == nil {
		_, err = w.Write([]byte("x"))
		err = errors.Join(err, w.Commit(h.ctx, 1, digest.FromString("x")))
	}
	if err == nil {
		h.t.Error("a client can write")
	}
	if err := store.Delete(h.ctx, info.Digest); err == nil {
		h.t.Error("a client can delete")
	}
}
