package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/llb"
)

// findReplacement uses what the user put in place of a frontend's image by an
// option "context:IMAGE"; false if there is none.
func findReplacement(ctx context.Context, br *build.Bridge, image *frontendImage, req frontend.Request) (bool, error) {
	named, err := reference.ParseNormalizedNamed(image.name)
	if err != nil {
		return false, fmt.Errorf("read frontend image %q: %w", image.name, err)
	}
	short := shortName(named)
	worker := platforms.FormatAll(platforms.Normalize(req.Worker))
	value, ok := req.Opts["context:"+short+"::"+worker]
	if !ok {
		if value, ok = req.Opts["context:"+short]; !ok {
			return false, nil
		}
	}
	scheme, rest, _ := strings.Cut(value, ":")
	rest = strings.TrimPrefix(rest, "//")
	switch scheme {
	case "docker-image":
		var target reference.Named
		if target, err = reference.ParseNormalizedNamed(rest); err == nil {
			err = useImage(ctx, br, image, req.Worker, &llb.SourceOp{Identifier: "docker-image://" + reference.TagNameOnly(target).String()})
		}
	case "oci-layout":
		err = useLayout(ctx, br, image, req.Worker, named, rest)
	case "input":
		err = useInput(image, req, rest)
	default:
		err = fmt.Errorf("a frontend can be replaced by docker-image, oci-layout or input, not by %q", value)
	}
	if err != nil {
		return true, fmt.Errorf("named context %s: %w", short, err)
	}
	return true, nil
}

// useLayout uses an image of a client's layout, "STORE@DIGEST".
func useLayout(ctx context.Context, br *build.Bridge, image *frontendImage, worker ocispecs.Platform, named reference.Named, spec string) error {
	ref, err := reference.Parse(spec)
	if err != nil {
		return fmt.Errorf("read layout reference %q: %w", spec, err)
	}
	store, isNamed := ref.(reference.Named)
	digested, isDigested := ref.(reference.Digested)
	if !isNamed || !isDigested {
		return fmt.Errorf("read layout reference %q: expected STORE@sha256:DIGEST", spec)
	}
	shown, err := reference.WithDigest(reference.TrimNamed(named), digested.Digest())
	if err != nil {
		return fmt.Errorf("name layout %q: %w", spec, err)
	}
	return useImage(ctx, br, image, worker, &llb.SourceOp{
		Identifier: "oci-layout://" + shown.String(), Attrs: map[string]string{"oci.store": store.Name()},
	})
}

// useInput uses a graph of the request, with the image config that came with it.
func useInput(image *frontendImage, req frontend.Request, name string) error {
	g := req.Inputs[name]
	if g == nil {
		return fmt.Errorf("request has no input %q", name)
	}
	image.graph = g
	text, ok := req.Opts["input-metadata:"+name]
	if !ok {
		return nil
	}
	var fields map[string][]byte
	if err := json.Unmarshal([]byte(text), &fields); err != nil {
		return fmt.Errorf("read metadata of input %s: %w", name, err)
	}
	data, ok := fields["containerimage.config"]
	if !ok {
		return nil
	}
	var config ocispecs.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return fmt.Errorf("read config of input %s: %w", name, err)
	}
	image.config = config.Config
	return nil
}
