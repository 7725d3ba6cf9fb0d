// Package oci exports images as archives in OCI's image layout.
//
// The archive is streamed to the client as a tar while it is made, or, with
// tar=false, written blob by blob into the client's content store "export".
package oci

import (
	"context"
	"io"

	"github.com/containerd/containerd/v2/core/content"

	"github.com/kiln-build/kiln/internal/exporter"
	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
	"github.com/kiln-build/kiln/internal/session/export"
)

// New returns an exporter of images whose layers are in layers.
func New(layers exporter.Layers) exporter.Exporter {
	return exporter.Archiver{
		Layers: layers,
		Docker: false,
		Open: func(ctx context.Context, to exporter.Target, response map[string]string) (io.WriteCloser, error) {
			return export.OpenHanding(ctx, to.Session, to.ID, response)
		},
		Store: func(to exporter.Target) (content.Store, error) {
			return sessioncontent.Store(to.Session, sessioncontent.ExportStore)
		},
	}
}
