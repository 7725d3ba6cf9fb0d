// Package exporter lets a client say how a result is to be brought out once it
// knows what the result is (BuildKit's session/exporter). Both sides are here. A
// client without this service wants nothing further.
package exporter

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/sessionexporter"
	"github.com/kiln-build/kiln/internal/session"
)

// mostExporters is how many exporters a client may add to a build.
const mostExporters = 64

// Daemon is the daemon's side.
type Daemon struct{}

// FindExporters tells a client of a result, by its metadata and the names of its
// parts, and calls add with each exporter that the client wants, in order.
func (Daemon) FindExporters(ctx context.Context, c *session.Caller, meta map[string][]byte, refs []string, add func(kind string, attrs map[string]string)) error {
	if !c.Supports(sessionexporter.Exporter_FindExporters_FullMethodName) {
		return nil
	}
	resp, err := sessionexporter.NewExporterClient(c.Conn()).FindExporters(ctx, &sessionexporter.FindExportersRequest{Metadata: meta, Refs: refs})
	if absent(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("ask the client how to export: %w", err)
	}
	if n := len(resp.GetExporters()); n > mostExporters {
		return fmt.Errorf("the client wants %d exporters, at most %d can be had", n, mostExporters)
	}
	for _, e := range resp.GetExporters() {
		add(e.GetType(), e.GetAttrs())
	}
	return nil
}

// FinalizeExport tells a client what came of the exports.
func (Daemon) FinalizeExport(ctx context.Context, c *session.Caller, response map[string]string) error {
	if !c.Supports(sessionexporter.Exporter_FinalizeExport_FullMethodName) {
		return nil
	}
	_, err := sessionexporter.NewExporterClient(c.Conn()).FinalizeExport(ctx, &sessionexporter.FinalizeExportRequest{ExporterResponse: response})
	if err != nil && !absent(err) {
		return fmt.Errorf("tell the client what was exported: %w", err)
	}
	return nil
}

// absent tells whether a client's answer means that it does not serve a call.
func absent(err error) bool {
	c := status.Code(err)
	return c == codes.Unimplemented || c == codes.Unavailable
}

// Exporter is one way to bring out a result.
type Exporter struct {
	Type  string // such as "image"
	Attrs map[string]string
}

// Chooser is a client's choice.
type Chooser interface {
	// Find says how to export a result.
	Find(ctx context.Context, meta map[string][]byte, refs []string) ([]Exporter, error)
	// Done is told what came of it.
	Done(ctx context.Context, response map[string]string) error
}

// Provider serves a client's choice. It is a [session.Attachable].
type Provider struct {
	sessionexporter.UnimplementedExporterServer
	chooser Chooser
}

// NewProvider returns the provider of c's choice.
func NewProvider(c Chooser) *Provider { return &Provider{chooser: c} }

// Register attaches the provider to a session.
func (p *Provider) Register(s *grpc.Server) { sessionexporter.RegisterExporterServer(s, p) }

// FindExporters says how to export a result.
func (p *Provider) FindExporters(ctx context.Context, r *sessionexporter.FindExportersRequest) (*sessionexporter.FindExportersResponse, error) {
	found, err := p.chooser.Find(ctx, r.GetMetadata(), r.GetRefs())
	if err != nil {
		return nil, err
	}
	resp := &sessionexporter.FindExportersResponse{}
	for _, e := range found {
		resp.Exporters = append(resp.Exporters, &sessionexporter.ExporterRequest{Type: e.Type, Attrs: e.Attrs})
	}
	return resp, nil
}

// FinalizeExport says what came of it.
func (p *Provider) FinalizeExport(ctx context.Context, r *sessionexporter.FinalizeExportRequest) (*sessionexporter.FinalizeExportResponse, error) {
	return &sessionexporter.FinalizeExportResponse{}, p.chooser.Done(ctx, r.GetExporterResponse())
}
