package conformance

import (
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/kiln-build/kiln/conformance/peer"
)

// TestSameImages builds each context of testdata with Kiln and with the real
// BuildKit, and compares the images' configs and file trees.
func TestSameImages(t *testing.T) {
	contexts, err := filepath.Glob(filepath.Join("testdata", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	if len(contexts) < 5 {
		t.Fatalf("testdata has %d contexts, want 5 or more", len(contexts))
	}
	for _, path := range contexts {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			context := unpack(t, name)
			var images []image
			for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
				dest := filepath.Join(t.TempDir(), d.Name+".tar")
				command(t, d, d.BuildArgs(peer.Build{
					Context: context, Output: "type=oci,dest=" + dest,
					Args: []string{"SOURCE_DATE_EPOCH=1700000000", "GIVEN=by the command line"},
				})...)
				images = append(images, open(t, dest))
			}
			compareConfigs(t, images[0].config, images[1].config)
			compareFiles(t, images[0].files, images[1].files)
		})
	}
}

// compareConfigs compares all but the layers' digests, which depend on times
// that no two runs share.
func compareConfigs(t *testing.T, kiln, buildkit *v1.ConfigFile) {
	t.Helper()
	if a, b := len(kiln.RootFS.DiffIDs), len(buildkit.RootFS.DiffIDs); a != b {
		t.Errorf("Kiln's image has %d layers, BuildKit's %d", a, b)
	}
	kiln, buildkit = kiln.DeepCopy(), buildkit.DeepCopy()
	kiln.RootFS.DiffIDs, buildkit.RootFS.DiffIDs = nil, nil
	if a, b := indented(t, kiln), indented(t, buildkit); a != b {
		t.Errorf("Kiln's config:\n%s\nBuildKit's:\n%s", a, b)
	}
}

func indented(t *testing.T, v any) string {
	t.Helper()
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func compareFiles(t *testing.T, kiln, buildkit map[string]string) {
	t.Helper()
	names := maps.Clone(kiln)
	maps.Copy(names, buildkit)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if kiln[name] != buildkit[name] {
			t.Errorf("%s:\n  Kiln:     %s\n  BuildKit: %s", name, kiln[name], buildkit[name])
		}
	}
}
