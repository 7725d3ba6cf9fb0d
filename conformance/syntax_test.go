package conformance

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/conformance/peer"
)

// TestDockerfileImage has Kiln build each context of testdata twice: by its own
// frontend, and by BuildKit's, which runs as an image. The images must be equal.
func TestDockerfileImage(t *testing.T) {
	dir := t.TempDir()
	compile(t, "github.com/moby/buildkit/frontend/dockerfile/cmd/dockerfile-frontend", filepath.Join(dir, "dockerfile-frontend"))
	name := serveRegistry(t) + "/test/dockerfile:1"
	push(t, dir, `FROM scratch
LABEL moby.buildkit.frontend.network.none=true
LABEL moby.buildkit.frontend.caps=moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts
COPY dockerfile-frontend /bin/
ENTRYPOINT ["/bin/dockerfile-frontend"]
`, name)
	contexts, err := filepath.Glob(filepath.Join("testdata", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	if len(contexts) < 5 {
		t.Fatalf("testdata has %d contexts, want 5 or more", len(contexts))
	}
	for _, path := range contexts {
		t.Run(filepath.Base(path), func(t *testing.T) {
			context := unpack(t, filepath.Base(path))
			var images []image
			for _, more := range [][]string{nil, {"BUILDKIT_SYNTAX=" + name}} {
				dest := filepath.Join(t.TempDir(), "image.tar")
				command(t, shared.kiln, shared.kiln.BuildArgs(peer.Build{
					Context: context, Output: "type=oci,dest=" + dest,
					Args: append([]string{"SOURCE_DATE_EPOCH=1700000000", "GIVEN=by the command line"}, more...),
				})...)
				images = append(images, open(t, dest))
			}
			// That the argument has an effect at all.
			printed := failing(t, shared.kiln, shared.kiln.BuildArgs(peer.Build{Context: context, Args: []string{"BUILDKIT_SYNTAX=" + name + "-missing"}})...)
			if !strings.Contains(printed, name+"-missing") {
				t.Errorf("an image that is not there: %s", printed)
			}
			compareConfigs(t, images[0].config, images[1].config)
			compareFiles(t, images[0].files, images[1].files)
			if images[0].digest != images[1].digest {
				t.Errorf("the manifest is %s, by the image %s", images[0].digest, images[1].digest)
			}
		})
	}
}
