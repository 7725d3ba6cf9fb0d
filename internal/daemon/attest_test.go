package daemon

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/build"
)

// TestErrorsOfExportsAreTyped checks the details that clients read (BuildKit's
// solver/errdefs).
func TestErrorsOfExportsAreTyped(t *testing.T) {
	for _, c := range []struct {
		err   error
		url   string
		value string
	}{
		{
			&build.FeatureError{Version: 10, Feature: "image exporter compression=zstd"},
			"github.com/moby/buildkit/errdefs.CompatibilityFeature+json", `{"version":10,"feature":"image exporter compression=zstd"}`,
		},
		{
			&build.MaterialsError{Locals: []string{"context"}},
			"github.com/moby/buildkit/errdefs.ProvenanceMaterialsIncomplete+json", `{"incomplete":[{"name":"context","reason":"local_source"}]}`,
		},
	} {
		st := errorStatus(fmt.Errorf("export: %w", c.err))
		if len(st.Details) != 1 || st.Details[0].TypeUrl != c.url || string(st.Details[0].Value) != c.value {
			t.Errorf("%v: details %v", c.err, st.Details)
		}
	}
}

func TestUnknownCompatibilityIsRefused(t *testing.T) {
	s := &Server{}
	for version, ok := range map[int64]bool{0: true, 10: true, 20: true, 30: true, 11: false, 40: false, -1: false} {
		var req build.Request
		err := s.attesting(&running{}, &control.SolveRequest{CompatibilityVersion: version}, &req)
		if (err == nil) != ok || ok && req.CompatibilityVersion != int(version) {
			t.Errorf("%d: %v", version, err)
		}
		if err != nil && !strings.Contains(err.Error(), "unsupported compatibility-version") {
			t.Errorf("%d: %v", version, err)
		}
	}
}
