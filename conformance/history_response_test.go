package conformance

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"

	"github.com/kiln-build/kiln/conformance/peer"
)

// TestHistoryResponse compares what the two daemons' records say of the result: of
// builds that export nothing all of it, of others at least what BuildKit's say.
func TestHistoryResponse(t *testing.T) {
	dir := t.TempDir()
	err := peer.WriteFiles(dir, map[string]string{
		"Dockerfile":      "FROM base\nLABEL a=b\nRUN echo hi > /hi\n",
		"fail/Dockerfile": "FROM base\nRUN exit 7\n",
	})
	if err != nil {
		t.Fatal(err)
	}
	exported := "--output=type=oci,name=example.com/x,dest=" + filepath.Join(dir, "out.tar")
	cases := map[string]struct {
		args   []string
		fails  bool
		export bool
	}{
		"one platform":      {},
		"several platforms": {args: []string{"--opt=platform=linux/amd64,linux/386"}},
		"labels and epoch":  {args: []string{"--opt=label:x=y", "--opt=build-arg:SOURCE_DATE_EPOCH=1700000000"}},
		"subrequest":        {args: []string{"--opt=requestid=frontend.subrequests.describe"}},
		"failure":           {args: []string{"--local=dockerfile=" + filepath.Join(dir, "fail")}, fails: true},
		"image":             {args: []string{exported}, export: true},
		"images":            {args: []string{exported, "--opt=platform=linux/amd64,linux/386"}, export: true},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			said := map[*peer.Daemon]map[string]string{}
			for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
				file := filepath.Join(t.TempDir(), "ref")
				args := append(shared.tools.BuildArgs(d, shared.base, peer.Build{Context: dir}), "--ref-file="+file)
				args = append(args, c.args...)
				if c.fails {
					failing(t, d, args...)
				} else {
					command(t, d, args...)
				}
				ref, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				said[d] = newHistorian(t, d).record(string(ref)).ExporterResponse
			}
			sameResponse(t, said[shared.kiln], said[shared.buildkit], c.export)
		})
	}
	t.Run("llb", func(t *testing.T) {
		said := map[*peer.Daemon]map[string]string{}
		for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
			said[d] = returnedMeta(newHistorian(t, d))
		}
		sameResponse(t, said[shared.kiln], said[shared.buildkit], false)
	})
}

// returnedMeta is what the record has of a build whose client is its frontend.
func returnedMeta(h *historian) map[string]string {
	h.t.Helper()
	opt := client.SolveOpt{Ref: identity.NewID(), OCIStores: baseStores(h.t)}
	_, err := h.c.Build(h.ctx, opt, "conformance", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		res := gateway.NewResult()
		res.SetRef(solve(h.t, ctx, c, base()))
		res.AddMeta("mine", []byte("said"))
		return res, nil
	}, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.record(opt.Ref).ExporterResponse
}

// sameResponse compares two responses; ours may say more if it may.
func sameResponse(t *testing.T, ours, theirs map[string]string, more bool) {
	t.Helper()
	if a, b := slices.Sorted(maps.Keys(ours)), slices.Sorted(maps.Keys(theirs)); !more && !slices.Equal(a, b) {
		t.Errorf("kiln says %q, buildkit %q", a, b)
	}
	for k, v := range theirs {
		same := sameJSON(ours[k], v)
		if strings.HasPrefix(k, "result.") { // of a subrequest: Kiln's frontend answers more, in its own words
			_, same = ours[k]
		}
		if !same {
			t.Errorf("%s is\n%s, of buildkit\n%s", k, ours[k], v)
		}
	}
}

func sameJSON(a, b string) bool {
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return a == b
	}
	return reflect.DeepEqual(x, y)
}
