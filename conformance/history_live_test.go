package conformance

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"

	"github.com/kiln-build/kiln/conformance/peer"
)

// next is what a listener is told next of a build.
func (h *historian) next(stream controlapi.Control_ListenBuildHistoryClient, ref string, kind controlapi.BuildHistoryEventType) *controlapi.BuildHistoryRecord {
	h.t.Helper()
	for {
		e, err := stream.Recv()
		if err != nil {
			h.t.Fatal(err)
		}
		// Traces come whenever they come, those of builds of before, too.
		if e.Record.Ref != ref || e.Type == controlapi.BuildHistoryEventType_COMPLETE && kind == controlapi.BuildHistoryEventType_DELETED {
			continue
		}
		if e.Type != kind {
			h.t.Fatalf("told %v, want %v", e, kind)
		}
		return e.Record
	}
}

// historyEvents follows a build from its start to the end of its record.
func historyEvents(h *historian) {
	ref := identity.NewID()
	stream, err := h.c.ControlClient().ListenBuildHistory(h.ctx, &controlapi.BuildHistoryRequest{Ref: ref})
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		h.t.Fatal(err)
	}
	r := h.build("echo x", func(o *client.SolveOpt) { o.Ref = ref })
	if r.err != nil {
		h.t.Fatal(r.err)
	}
	if rec := h.next(stream, ref, controlapi.BuildHistoryEventType_STARTED); rec.CreatedAt == nil || rec.CompletedAt != nil || rec.Logs != nil {
		h.t.Errorf("it began as %v", rec)
	}
	ended := h.next(stream, ref, controlapi.BuildHistoryEventType_COMPLETE)
	h.same(r.told, h.stored(ended.Logs))
	if err := h.update(&controlapi.UpdateBuildHistoryRequest{Ref: ref, Finalize: true}); err != nil {
		h.t.Error(err)
	}
	for _, pinned := range []bool{true, false} {
		if err := h.update(&controlapi.UpdateBuildHistoryRequest{Ref: ref, Pinned: pinned}); err != nil {
			h.t.Error(err)
		}
		if rec := h.record(ref); rec.Pinned != pinned || rec.Generation == 0 {
			h.t.Errorf("pinned %v: %v, generation %d", pinned, rec.Pinned, rec.Generation)
		}
	}
}

// historyDelete hears of a build until it is gone.
func historyDelete(h *historian) {
	stream, err := h.c.ControlClient().ListenBuildHistory(h.ctx, &controlapi.BuildHistoryRequest{ActiveOnly: true})
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := stream.Header(); err != nil {
		h.t.Fatal(err)
	}
	other := newHistorian(h.t, h.d).build("echo y", nil)
	if err := h.update(&controlapi.UpdateBuildHistoryRequest{Ref: other.ref, Delete: true}); err != nil {
		h.t.Fatal(err)
	}
	ref := other.ref
	h.next(stream, ref, controlapi.BuildHistoryEventType_STARTED)
	h.next(stream, ref, controlapi.BuildHistoryEventType_DELETED)
	// BuildKit says so only as long as nobody has listened for that one build.
	for _, r := range []string{ref, "no-such-build", ""} {
		if err := h.update(&controlapi.UpdateBuildHistoryRequest{Ref: r, Delete: true}); err == nil {
			h.t.Errorf("delete %q, which is not there: no error", r)
		}
	}
	if all := h.listen(&controlapi.BuildHistoryRequest{Ref: ref}); len(all) > 0 {
		h.t.Errorf("after it was deleted, told of %v", all)
	}
	if err := h.update(&controlapi.UpdateBuildHistoryRequest{Ref: ref, Pinned: true}); err == nil {
		h.t.Error("pin what is gone: no error")
	}
	if err := h.update(&controlapi.UpdateBuildHistoryRequest{Ref: ref, Finalize: true}); err != nil {
		h.t.Errorf("finalize what is gone: %v", err)
	}
}

// historyActive asks for a build while it runs.
func historyActive(h *historian) {
	ref := identity.NewID()
	var followed told
	err := asFrontendOf(h, ref, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		all := h.listen(&controlapi.BuildHistoryRequest{Ref: ref})
		for began := time.Now(); len(all) == 0 && h.d.Name == "buildkit" && time.Since(began) < 10*time.Second; {
			time.Sleep(10 * time.Millisecond) // it notes a build a moment after its frontend has begun
			all = h.listen(&controlapi.BuildHistoryRequest{Ref: ref})
		}
		all = append(all, h.listen(&controlapi.BuildHistoryRequest{Ref: ref, ActiveOnly: true})...)
		if len(all) != 2 || all[0].Type != controlapi.BuildHistoryEventType_STARTED || all[1].Record.Ref != ref {
			h.t.Errorf("of a build under way is told %v", all)
		}
		solve(h.t, ctx, c, base().AddEnv("UNIQUE", fmt.Sprint(rand.Uint64())).Run(llb.Args([]string{"/bin/sh", "-c", "echo said"})).Root())
		return gateway.NewResult(), nil
	}, &followed)
	if err != nil {
		h.t.Fatal(err)
	}
	h.same(followed, h.status(ref))
	if all := h.listen(&controlapi.BuildHistoryRequest{Ref: ref, ActiveOnly: true}); len(all) > 0 {
		h.t.Errorf("an ended build is active: %v", all)
	}
}

// asFrontendOf runs f as the frontend of a build, and follows what is told of it.
func asFrontendOf(h *historian, ref string, f gateway.BuildFunc, followed *told) error {
	store, err := contentlocal.NewStore(shared.base.Dir)
	if err != nil {
		return err
	}
	*followed = newTold()
	ch := make(chan *client.SolveStatus)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range ch {
			followed.add(s)
		}
	}()
	_, err = h.c.Build(h.ctx, client.SolveOpt{Ref: ref, OCIStores: map[string]content.Store{"base": store}}, "conformance", f, ch)
	<-done
	return err
}

func historyUnknown(h *historian) {
	for _, active := range []bool{true, false} {
		r := &controlapi.BuildHistoryRequest{Ref: "buildx-test-history-api-feature", ActiveOnly: active}
		if all := h.listen(r); len(all) > 0 {
			h.t.Errorf("of an unknown build is told %v", all)
		}
	}
}

// A daemon that is killed has, after its next start, every build that had ended,
// and says of the one under way that it failed, with the log as far as it came.
func TestHistorySurvivesKill(t *testing.T) {
	dir := t.TempDir()
	d := peer.NewKiln(filepath.Join("..", "bin", "kiln"), shared.base, filepath.Join(dir, "kiln"))
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer d.Stop()
	h := newHistorian(t, d)
	ended := h.build("echo ended", nil)
	if ended.err != nil {
		t.Fatal(ended.err)
	}
	if err := h.update(&controlapi.UpdateBuildHistoryRequest{Ref: ended.ref, Pinned: true}); err != nil {
		t.Error(err)
	}
	ref := identity.NewID()
	stopped := make(chan recorded, 1)
	go func() {
		stopped <- newHistorian(t, d).build("echo begun; sleep 60", func(o *client.SolveOpt) { o.Ref = ref })
	}()
	for said := ""; !strings.Contains(said, "begun"); {
		stream, err := h.c.ControlClient().Status(h.ctx, &controlapi.StatusRequest{Ref: ref})
		if err != nil {
			t.Fatal(err)
		}
		for !strings.Contains(said, "begun") {
			m, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range m.Logs {
				said += string(l.Msg)
			}
		}
	}
	time.Sleep(20 * time.Millisecond) // what was told is in the database a little later
	if err := syscall.Kill(d.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if r := <-stopped; r.err == nil {
		t.Error("the build has survived its daemon")
	}
	d.Stop()
	if err := d.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	h = newHistorian(t, d)
	rec := h.record(ended.ref)
	if !rec.Pinned || rec.Error != nil {
		t.Errorf("record is %v", rec)
	}
	h.same(ended.told, h.stored(rec.Logs))
	h.same(ended.told, h.status(ended.ref))
	rec = h.record(ref)
	if rec.Error == nil || rec.CompletedAt == nil {
		t.Errorf("the build under way became %v", rec)
	}
	if said := strings.Join(slices.Collect(maps.Values(h.stored(rec.Logs).logs)), ""); said != "begun\n" {
		t.Errorf("its log is %q", said)
	}
}
