package gateway

import (
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/gateway"
)

// What a client returns may be anything (CVE-2024-23650).
func TestHostileResults(t *testing.T) {
	r := NewPhase("b", nil)
	native := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	for name, w := range map[string]*gateway.Result{
		"unknown ref":      {Result: &gateway.Result_Ref{Ref: &gateway.Ref{Id: "nope"}}},
		"no platforms":     {Result: &gateway.Result_Refs{Refs: &gateway.RefMap{Refs: map[string]*gateway.Ref{"linux/arm64": {}}}}},
		"platforms = null": {Metadata: map[string][]byte{"refs.platforms": []byte("null")}},
		"platform no id": {
			Metadata: map[string][]byte{"refs.platforms": []byte(`{"Platforms":[{"Platform":{"os":"linux","architecture":"amd64"}}]}`)},
		},
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
		"nothing":       nil,
		"the empty ref": {Result: &gateway.Result_Ref{Ref: &gateway.Ref{}}},
		"nil ref":       {Result: &gateway.Result_Ref{}},
		"nil refs":      {Result: &gateway.Result_Refs{}},
	} {
		if _, err := r.result(w, native); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
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
		res, err := NewPhase("fuzzed", nil).result(w, ocispecs.Platform{OS: "linux", Architecture: "amd64"})
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
