package exporter

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/layer"
)

// storedLayers are layers in a store on disk.
type storedLayers struct {
	*memoryLayers
	store *blobs.Store
}

func (s storedLayers) ReaderAt(ctx context.Context, b layer.Blob) (content.ReaderAt, error) {
	return s.store.ReaderAt(ctx, b.Desc)
}

// fileStream takes files, or has them read.
type fileStream struct {
	bytes.Buffer
	takes bool
	taken int
}

func (s *fileStream) WriteFile(f *os.File, size int64, taken func(int64)) (bool, error) {
	if !s.takes {
		return false, nil
	}
	s.taken++
	n, err := io.CopyN(s, f, size)
	taken(n)
	return true, err
}

// TestArchiveOfFiles holds that an archive is the same, whoever reads its layers.
func TestArchiveOfFiles(t *testing.T) {
	m := twoLayers()
	m.data = append(m.data, bytes.Repeat([]byte{1}, 5*block)) // no padding
	img := assemble(t, m, single(""), map[string]string{"name": "app:v1"})
	var plain bytes.Buffer
	if err := WriteArchive(t.Context(), &plain, img, m, false); err != nil {
		t.Fatal(err)
	}
	store, err := blobs.Open(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for _, l := range m.data {
		w, err := blobs.NewWriter(store)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(l); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Keep(t.Context(), ocispecs.MediaTypeImageLayer, w.Digest()); err != nil {
			t.Fatal(err)
		}
	}
	for _, takes := range []bool{true, false} {
		to := &fileStream{takes: takes}
		if err := WriteArchive(t.Context(), to, img, storedLayers{m, store}, false); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(to.Bytes(), plain.Bytes()) {
			t.Errorf("takes=%v: an archive of %d bytes differs from one of %d that was not from files", takes, to.Len(), plain.Len())
		}
		if takes && to.taken != len(img.Layers) {
			t.Errorf("%d layers were handed over, want %d", to.taken, len(img.Layers))
		}
	}
}
