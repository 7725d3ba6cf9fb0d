package corpus

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/kiln-build/kiln/conformance/peer"
)

// StartImage reads the corpus and starts two daemons of Kiln. In the pair, Kiln
// builds by its own frontend; in BuildKit's place is Kiln as well, but builds by
// BuildKit's frontend, a program in an image that the cases name as their syntax.
func StartImage(ctx context.Context, paths Paths) (pair *Pair, err error) {
	p := &Pair{}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	if p.Corpus, err = Open(ctx, paths.Conformance, paths.Dir); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.Corpus.Close)
	image, err := p.pushFrontend(ctx, paths)
	if err != nil {
		return nil, err
	}
	config, err := daemonConfig(paths.Dir)
	if err != nil {
		return nil, err
	}
	for builder, name := range map[**Builder]string{&p.Kiln: "own", &p.BuildKit: "by-image"} {
		d := peer.NewKiln(paths.Kiln, peer.Base{}, filepath.Join(paths.Dir, name))
		d.Config = config
		if *builder, err = p.start(ctx, d); err != nil {
			return nil, err
		}
	}
	p.BuildKit.syntax, p.bothKiln = image, true
	return p, nil
}

// pushFrontend makes an image of BuildKit's Dockerfile frontend, with the labels
// of the published one, and returns its name at the site.
func (c *Corpus) pushFrontend(ctx context.Context, paths Paths) (string, error) {
	const program = "dockerfile-frontend"
	at := filepath.Join(paths.Dir, program)
	cmd := exec.CommandContext(ctx, "go", "build", "-C", paths.Conformance, "-trimpath", "-o", at,
		"github.com/moby/buildkit/frontend/dockerfile/cmd/"+program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build BuildKit's Dockerfile frontend: %w: %s", err, out)
	}
	data, err := os.ReadFile(at)
	if err != nil {
		return "", err
	}
	layer, err := layerOf([]entry{dir("bin", 0o755), file("bin/"+program, 0o755, string(data))})
	if err != nil {
		return "", err
	}
	img, err := imageOf(imageConfig{layers: []string{program}, config: v1.Config{
		Env: []string{"PATH=/bin"}, Entrypoint: []string{"/bin/" + program}, Labels: map[string]string{
			"moby.buildkit.frontend.network.none": "true",
			"moby.buildkit.frontend.caps":         "moby.buildkit.frontend.inputs,moby.buildkit.frontend.subrequests,moby.buildkit.frontend.contexts",
		},
	}}, map[string]v1.Layer{program: layer})
	if err != nil {
		return "", err
	}
	tag, err := name.NewTag(c.site.Facts["REGISTRY"]+"/frontends/dockerfile:1", name.Insecure)
	if err != nil {
		return "", err
	}
	return tag.String(), remote.Write(tag, img, remote.WithContext(ctx))
}
