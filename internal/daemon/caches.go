package daemon

import (
	"context"
	"fmt"
	"maps"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/session"
)

// caches reads which caches for others a Solve names, in the present and in the
// old way.
func caches(r *control.SolveRequest, req *build.Request) {
	c := r.GetCache()
	if ref := c.GetExportRefDeprecated(); ref != "" {
		attrs := map[string]string{"ref": ref}
		maps.Copy(attrs, c.GetExportAttrsDeprecated())
		req.CacheExports = append(req.CacheExports, build.CacheOption{Type: "registry", Attrs: attrs})
	}
	for _, e := range c.GetExports() {
		req.CacheExports = append(req.CacheExports, build.CacheOption{Type: e.GetType(), Attrs: e.GetAttrs()})
	}
	for _, ref := range c.GetImportRefsDeprecated() {
		req.CacheImports = append(req.CacheImports, build.CacheOption{Type: "registry", Attrs: map[string]string{"ref": ref}})
	}
	for _, i := range c.GetImports() {
		req.CacheImports = append(req.CacheImports, build.CacheOption{Type: i.GetType(), Attrs: i.GetAttrs()})
	}
}

// ExportClient asks a client how to bring out a result.
type ExportClient interface {
	FindExporters(ctx context.Context, c *session.Caller, meta map[string][]byte, refs []string, add func(kind string, attrs map[string]string)) error
	FinalizeExport(ctx context.Context, c *session.Caller, response map[string]string) error
}

// sessionChooser is a build.Chooser: the client, over its session. The refs that
// it is told can be read through the gateway.
type sessionChooser struct {
	client ExportClient
	caller *session.Caller
	run    *running
}

// Choose asks the client.
func (c *sessionChooser) Choose(ctx context.Context, meta map[string][]byte, refs []frontend.Ref) (chosen []build.Export, err error) {
	err = c.run.phase.Choose(refs, func(ids []string) error {
		return c.client.FindExporters(ctx, c.caller, meta, ids, func(kind string, attrs map[string]string) {
			chosen = append(chosen, build.Export{Type: kind, Attrs: attrs})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("choose exporters: %w", err)
	}
	return chosen, nil
}

// Done tells the client.
func (c *sessionChooser) Done(ctx context.Context, response map[string]string) error {
	return c.client.FinalizeExport(ctx, c.caller, response)
}
