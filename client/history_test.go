package client_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/client/clienttest"
	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/api/policysession"
	"github.com/kiln-build/kiln/internal/api/sessionexporter"
	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
	"github.com/kiln-build/kiln/llb/pb"
)

func TestHistory(t *testing.T) {
	d := clienttest.Start(t, nil)
	const blob = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
	d.Blobs = map[string][]byte{blob: []byte("hello")}
	d.Events = []*control.BuildHistoryEvent{
		{Type: control.BuildHistoryEventType_COMPLETE, Record: &control.BuildHistoryRecord{
			Ref: "a", CreatedAt: timestamppb.New(time.Unix(1, 0)), Logs: &control.Descriptor{Digest: blob, Size: 5},
			Error: status.New(codes.NotFound, "gone").Proto(), NumTotalSteps: 3, Pinned: true,
			Exporters: []*control.Exporter{{Type: "image"}},
			Result:    &control.BuildResultInfo{Results: map[int64]*control.Descriptor{0: {Digest: "sha256:r"}}},
		}},
		{Type: control.BuildHistoryEventType_STARTED, Record: &control.BuildHistoryRecord{Ref: "b"}},
		{Type: control.BuildHistoryEventType_DELETED},
	}
	c := connect(t, d)
	var got []client.HistoryEvent
	keep := func(e client.HistoryEvent) error { got = append(got, e); return nil }
	if err := c.ListenBuildHistory(t.Context(), client.HistoryOpt{EarlyExit: true}, keep); err != nil || len(got) != 3 {
		t.Fatalf("%d events, %v", len(got), err)
	}
	r := got[0].Record
	if r.Ref != "a" || r.Err == nil || r.Err.Code != codes.NotFound || !r.Completed.IsZero() || r.TotalSteps != 3 || !r.Pinned ||
		r.Exports[0].Type != "image" || r.Result.Descriptors[0].Digest != "sha256:r" || r.Trace != nil {
		t.Errorf("record %+v", r)
	}
	if got[1].Type != client.HistoryStarted || got[2].Type != client.HistoryDeleted || got[2].Record != nil {
		t.Errorf("events %+v", got)
	}
	ra, err := c.OpenBlob(t.Context(), *r.Logs)
	if err != nil || readAll(t, ra, ra.Size()) != "hello" {
		t.Errorf("blob: %v", err)
	}
	if _, err := c.OpenBlob(t.Context(), ocispecs.Descriptor{Digest: "sha256:" + "0"}); err == nil {
		t.Error("a blob that is not there was opened")
	}
	if err := c.UpdateBuildHistory(t.Context(), client.HistoryUpdate{Ref: "a", Delete: true}); err != nil || !d.HistoryUpdates[0].GetDelete() {
		t.Errorf("update %v, %v", d.HistoryUpdates, err)
	}
	stop := errors.New("enough")
	if err := c.ListenBuildHistory(t.Context(), client.HistoryOpt{}, func(client.HistoryEvent) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v, want the caller's", err)
	}
}

// The daemon asks the client's policy and exporter over the session.
func TestSessionServices(t *testing.T) {
	d := clienttest.Start(t, func(ctx context.Context, b *clienttest.Build) (map[string]string, error) {
		if b.Request.GetSourcePolicySession() != b.Client.ID() || !b.Request.GetEnableSessionExporter() {
			return nil, errors.New("the request does not tell of the services")
		}
		answer, err := policysession.NewPolicyVerifierClient(b.Client.Conn()).CheckPolicy(ctx, &policysession.CheckPolicyRequest{
			Source: &gateway.ResolveSourceMetaResponse{Source: &pb.SourceOp{Identifier: "docker-image://x"}},
		})
		if err != nil {
			return nil, err
		}
		exporters := sessionexporter.NewExporterClient(b.Client.Conn())
		found, err := exporters.FindExporters(ctx, &sessionexporter.FindExportersRequest{Refs: []string{"r"}})
		if err != nil {
			return nil, err
		}
		_, err = exporters.FinalizeExport(ctx, &sessionexporter.FinalizeExportRequest{ExporterResponse: map[string]string{"k": "v"}})
		return map[string]string{
			"decision": answer.GetDecision().GetAction().String(), "exporter": found.GetExporters()[0].GetType(),
		}, err
	})
	x := &chooser{}
	r, err := connect(t, d).Solve(t.Context(), client.SolveOpt{
		Frontend: "x", SessionExporter: x,
		SourcePolicyVerifier: func(context.Context, *client.PolicyQuestion) (*client.PolicyDecision, *client.SourceMetaRequest, error) {
			return &client.PolicyDecision{Action: client.PolicyDeny}, nil, nil
		},
	}, discard{})
	if err != nil || r.Response["decision"] != "DENY" || r.Response["exporter"] != "image" || x.told["k"] != "v" {
		t.Errorf("response %v, told %v, %v", r, x.told, err)
	}
}

type chooser struct{ told map[string]string }

func (c *chooser) FindExporters(context.Context, map[string][]byte, []string) ([]client.Export, error) {
	return []client.Export{{Type: "image"}}, nil
}

func (c *chooser) FinalizeExport(_ context.Context, r map[string]string) error {
	c.told = r
	return nil
}

func TestReadSourcePolicy(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) string {
		name := filepath.Join(dir, "policy.json")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	p, err := client.ReadSourcePolicy(write(`{"version": 1, "rules": [
		{"action": "CONVERT", "selector": {"identifier": "a*", "match_type": "REGEX", "constraints": [{"key": "k", "condition": 1}]},
		 "updates": {"identifier": "b", "attrs": {"x": "y"}}},
		{"action": 1, "selector": {"identifier": "c"}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	first, second := p.GetRules()[0], p.GetRules()[1]
	if first.GetAction() != client.PolicyConvert || first.GetSelector().GetMatchType() != sourcepolicy.MatchType_REGEX ||
		first.GetSelector().GetConstraints()[0].GetCondition() != sourcepolicy.AttrMatch_NOTEQUAL || first.GetUpdates().GetAttrs()["x"] != "y" ||
		second.GetAction() != client.PolicyDeny {
		t.Errorf("policy %v", p)
	}
	for _, bad := range []string{`{`, `{"rules":[{"action":"PERHAPS"}]}`, `{"rules":[{"action":9}]}`, `{"rules":[{"selector":{"match_type":"X"}}]}`, `{"rules":[{"action":{}}]}`} {
		if p, err := client.ReadSourcePolicy(write(bad)); err == nil {
			t.Errorf("%s was read as %v", bad, p)
		}
	}
	if _, err := client.ReadSourcePolicy(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

// A local cache that is not there yet is left out; one that makes no sense is refused.
func TestLocalCache(t *testing.T) {
	var seen *control.CacheOptions
	d := clienttest.Start(t, func(_ context.Context, b *clienttest.Build) (map[string]string, error) {
		seen = b.Request.GetCache()
		return map[string]string{"cache.manifest": `{"mediaType":"x","digest":"sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824","size":5}`}, nil
	})
	c := connect(t, d)
	dir := t.TempDir()
	opt := func(attrs ...string) client.SolveOpt {
		o := client.SolveOpt{Frontend: "x", CacheImports: []client.CacheEntry{{Type: "local", Attrs: map[string]string{"src": filepath.Join(dir, "none")}}}}
		e := client.CacheEntry{Type: "local", Attrs: map[string]string{}}
		for i := 0; i < len(attrs); i += 2 {
			e.Attrs[attrs[i]] = attrs[i+1]
		}
		o.CacheExports = []client.CacheEntry{e}
		return o
	}
	if _, err := c.Solve(t.Context(), opt("dest", filepath.Join(dir, "out"), "tag", "main"), discard{}); err != nil {
		t.Fatal(err)
	}
	if len(seen.GetImports()) != 0 || len(seen.GetExports()) != 1 {
		t.Errorf("caches %v", seen)
	}
	if index, err := os.ReadFile(filepath.Join(dir, "out", "index.json")); err != nil || !strings.Contains(string(index), `"main"`) {
		t.Errorf("index %s, %v", index, err)
	}
	for _, bad := range [][]string{{}, {"dest", filepath.Join(dir, "out"), "reset", "perhaps"}} {
		if _, err := c.Solve(t.Context(), opt(bad...), discard{}); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}
