package daemon

import (
	"errors"
	"log/slog"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/errdefs"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/history"
)

// attesting has a build's provenance recorded, and tells the build which version
// of behaviour the client asks for.
func (s *Server) attesting(run *running, r *control.SolveRequest, req *build.Request) error {
	version := int(r.CompatibilityVersion)
	if err := build.CheckCompatibility(version); err != nil {
		return grpcstatus.Error(codes.InvalidArgument, err.Error())
	}
	req.CompatibilityVersion = version
	if run.record == nil || !run.record.Recorded() {
		return nil
	}
	req.Attested = func(platform, predicateType string, predicate []byte) {
		err := s.config.History.AttachAttestation(run.ref, platform, history.Blob{
			MediaType: history.MediaTypeAttestation, Annotations: map[string]string{history.PredicateType: predicateType}, Data: predicate,
		})
		if err != nil && !errors.Is(err, history.ErrNotFound) {
			slog.Error("record provenance", "ref", run.ref, "error", err)
		}
	}
	return nil
}

// attestDetails are the details of errors about attestations and older behaviour
// (BuildKit's solver/errdefs).
func attestDetails(st *status.Status, err error) {
	if f, ok := errors.AsType[*build.FeatureError](err); ok {
		st.Details = appendDetail(st.Details, "errdefs.CompatibilityFeature",
			&errdefs.CompatibilityFeature{Version: int64(f.Version), Feature: f.Feature})
	}
	if m, ok := errors.AsType[*build.MaterialsError](err); ok {
		gaps := &errdefs.ProvenanceMaterialsIncomplete{}
		for _, name := range m.Locals {
			gaps.Incomplete = append(gaps.Incomplete, &errdefs.ProvenanceMaterialIncomplete{Name: name, Reason: "local_source"})
		}
		for _, g := range m.Gaps {
			gaps.Incomplete = append(gaps.Incomplete, &errdefs.ProvenanceMaterialIncomplete{
				Op: string(g.Op), Name: g.Name, Method: g.Method, Uri: g.URI, Reason: g.Reason,
			})
		}
		st.Details = appendDetail(st.Details, "errdefs.ProvenanceMaterialsIncomplete", gaps)
	}
}
