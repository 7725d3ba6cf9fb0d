package daemon

import (
	"context"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/gateway"
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

// FuzzResult decodes what clients return that act as frontends.
func FuzzResult(f *testing.F) {
	for _, r := range []*gateway.Result{
		{Result: &gateway.Result_Ref{Ref: &gateway.Ref{}}},
		{
			Result:   &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: map[string]*gateway.Ref{"linux/amd64": {}}}},
			Metadata: map[string][]byte{"refs.platforms": []byte(`{"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}}]}`)},
		},
		{
			Result:       &gateway.Result_RefDeprecated{},
			Attestations: map[string]*gateway.Attestations{"": {Attestation: []*gateway.Attestation{{Ref: &gateway.Ref{}, Path: "p", InTotoSubjects: []*gateway.InTotoSubject{{Digest: []string{"sha256:a"}}}}}}},
		},
	} {
		data, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		w := &gateway.Result{}
		if proto.Unmarshal(data, w) != nil {
			return
		}
		res, err := (&running{refs: map[string]*gatewayRef{}}).result(w, ocispecs.Platform{OS: "linux", Architecture: "amd64"})
		if err != nil {
			return
		}
		for _, p := range res.Platforms {
			if p.Platform.OS == "" || p.Platform.Architecture == "" {
				t.Errorf("result %q is for no platform", p.ID)
			}
		}
	})
}
