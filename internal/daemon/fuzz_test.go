package daemon

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// fuzzDefinition is a definition of a few operations.
func fuzzDefinition(f *testing.F) *pb.Definition {
	f.Helper()
	s := llb.Image("alpine").File(llb.Copy(llb.Local("context"), "/a", "/b")).Run(llb.Shlex("true"), llb.AddSecret("/s")).Root()
	def, err := s.Marshal(f.Context(), llb.LinuxAmd64)
	if err != nil {
		f.Fatal(err)
	}
	return def.ToPB()
}

// FuzzSolveRequest decodes requests of builds: what is taken is a valid build.
func FuzzSolveRequest(f *testing.F) {
	def := fuzzDefinition(f)
	for _, r := range []*control.SolveRequest{
		{Ref: "a", Definition: def},
		{Ref: "b", Frontend: "dockerfile.v0", FrontendAttrs: map[string]string{"target": "x"}, FrontendInputs: map[string]*pb.Definition{"i": def}},
		{Ref: "c", ExporterDeprecated: "image", Entitlements: []string{"network.host"}, CompatibilityVersion: 20},
		{Ref: "d", Cache: &control.CacheOptions{Exports: []*control.CacheOptionsEntry{{Type: "registry"}}, Imports: []*control.CacheOptionsEntry{{Type: "local"}}}},
		{Ref: "e", SourcePolicy: &sourcepolicy.Policy{Version: 1, Rules: []*sourcepolicy.Rule{{Action: 1, Selector: &sourcepolicy.Selector{Identifier: "*"}}}}},
	} {
		data, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	s := &controlService{Server: &Server{}}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &control.SolveRequest{}
		if proto.Unmarshal(data, r) != nil {
			return
		}
		r.Session, r.SourcePolicySession = "", "" // of which there are none
		req, err := s.request(context.Background(), r, &running{})
		if err != nil {
			return
		}
		for name, g := range map[string]*llb.Graph{"definition": req.Graph} {
			if g == nil {
				continue
			}
			if err := g.Verify(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, g := range req.Inputs {
			if err := g.Verify(); err != nil {
				t.Errorf("input %s: %v", name, err)
			}
		}
	})
}
