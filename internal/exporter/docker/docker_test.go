package docker_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/exporter/docker"
	"github.com/kiln-build/kiln/internal/exporter/exportertest"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// oneLayer answers every ref with the same layer.
type oneLayer []byte

func (l oneLayer) Blobs(ctx context.Context, _ *layer.Ref, _ layer.Variant) ([]layer.Blob, error) {
	d := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: digest.FromBytes(l), Size: int64(len(l))}
	return []layer.Blob{{Desc: d, DiffID: digest.FromString("x")}}, ctx.Err()
}

func (l oneLayer) ReaderAt(context.Context, layer.Blob) (content.ReaderAt, error) {
	return readerAt{bytes.NewReader(l)}, nil
}

type readerAt struct{ *bytes.Reader }

func (readerAt) Close() error { return nil }

func subject(attrs map[string]string) exportertest.Subject {
	return exportertest.Subject{
		Exporter: docker.New(oneLayer(bytes.Repeat([]byte("x"), 3<<20))),
		Input: exporter.Input{Platforms: []exporter.Platform{{
			Ref: &layer.Ref{}, Platform: ocispecs.Platform{OS: "linux", Architecture: "amd64"},
		}}},
		Attrs: attrs, Digest: true, DropsAttestations: true,
		Response: []string{"containerimage.digest", "containerimage.config.digest", "containerimage.descriptor"},
	}
}

func TestSuite(t *testing.T) {
	exportertest.Run(t, func(*testing.T) exportertest.Subject {
		s := subject(map[string]string{"name": "app:v1"})
		s.Connect = func(t *testing.T) (*session.Caller, func(*testing.T) map[string]string) {
			name := filepath.Join(t.TempDir(), "out.tar")
			c := sessiontest.Connect(t, export.NewTargets(map[int]export.Target{0: export.FileTarget{Name: name}}))
			return c, func(t *testing.T) map[string]string {
				b, err := os.ReadFile(name)
				if os.IsNotExist(err) {
					return nil
				} else if err != nil {
					t.Fatal(err)
				}
				return map[string]string{"": string(b)}
			}
		}
		return s
	})
}

func TestOnePlatformOnly(t *testing.T) {
	s := subject(nil)
	s.Input.Platforms = append(s.Input.Platforms, s.Input.Platforms[0])
	c := sessiontest.Connect(t, export.NewTargets(nil))
	if _, err := s.Exporter.Export(t.Context(), s.Input, exporter.Target{Session: c}); err == nil {
		t.Error("an archive for two platforms was made")
	}
}
