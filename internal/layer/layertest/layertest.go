// Package layertest opens layer stores for tests of what is built on them.
package layertest

import (
	"path/filepath"
	"testing"

	"github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/snapshot"
)

// Open opens the layer store of the folder root until the end of the test. The
// records must stay open for as long.
func Open(t testing.TB, root string, records layer.Records) *layer.Store {
	t.Helper()
	snapshots, err := snapshot.Open(filepath.Join(root, "snapshots"), snapshot.Auto)
	if err != nil {
		t.Fatal(err)
	}
	Closing(t, snapshots.Close)
	blobs, err := content.Open(t.Context(), filepath.Join(root, "content"))
	if err != nil {
		t.Fatal(err)
	}
	layers, err := layer.NewStore(t.Context(), layer.Config{
		Dir: filepath.Join(root, "layers"), Snapshots: snapshots, Content: blobs, Records: records,
	})
	if err != nil {
		t.Fatal(err)
	}
	Closing(t, layers.Close)
	return layers
}

// Closing closes something at the end of a test, which that must not fail.
func Closing(t testing.TB, closing func() error) {
	t.Cleanup(func() {
		t.Helper()
		if err := closing(); err != nil {
			t.Error(err)
		}
	})
}
