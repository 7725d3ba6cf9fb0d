// Package docker exports images as archives that "docker load" reads: an OCI
// image layout with the files of "docker save" beside it.
package docker

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
		Docker: true,
		Open: func(ctx context.Context, to exporter.Target, response map[string]string) (io.WriteCloser, error) {
			return export.OpenHanding(ctx, to.Session, to.ID, response)
		},
		Store: func(to exporter.Target) (content.Store, error) {
			return sessioncontent.Store(to.Session, sessioncontent.ExportStore)
		},
	}
}
