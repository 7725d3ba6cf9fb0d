package sdk

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// Dockerfile is a Dockerfile to make an image of.
type Dockerfile struct {
	// Dir has the file, by the name File.
	Dir  llb.State
	File string
	// Context is what the Dockerfile's COPY sees.
	Context  llb.State
	Target   string            // a stage; "" is the last one
	Args     map[string]string // of ARG
	Platform ocispecs.Platform
}

// Dockerfile has the daemon's own frontend make the image of a Dockerfile.
func (b *Build) Dockerfile(ctx context.Context, d Dockerfile) (*Image, error) {
	to, ok := b.gw.(frontend.Forwarder)
	if !ok {
		return nil, errors.New("build a Dockerfile: the daemon runs no other frontends for this one")
	}
	opts := map[string]string{"filename": d.File, "platform": platforms.FormatAll(d.Platform)}
	for k, v := range b.opts { // what the user put in place of images
		kind, _, named := strings.Cut(k, ":")
		if named && slices.Contains([]string{"context", "input-metadata", "local-sessionid"}, kind) || k == "image-resolve-mode" {
			opts[k] = v
		}
	}
	if d.Target != "" {
		opts["target"] = d.Target
	}
	for name, value := range d.Args {
		opts["build-arg:"+name] = value
	}
	inputs := maps.Clone(b.inputs)
	if inputs == nil {
		inputs = map[string]*llb.Graph{}
	}
	for name, st := range map[string]llb.State{"dockerfile": d.Dir, "context": d.Context} {
		g, err := st.Graph(ctx, llb.Platform(d.Platform))
		if err != nil {
			return nil, err
		}
		inputs[name] = g
	}
	res, err := to.Frontend(ctx, "dockerfile.v0", opts, inputs)
	if err != nil {
		return nil, fmt.Errorf("build %s: %w", d.File, err)
	}
	if len(res.Platforms) != 1 {
		return nil, fmt.Errorf("build %s: it has %d results, expected one", d.File, len(res.Platforms))
	}
	if g := res.Platforms[0].Graph; g == nil || g.Root.Vertex == nil {
		return baseImage(llb.Scratch(), res.Platforms[0].Config)
	}
	st, err := stateOf(res.Platforms[0].Graph)
	if err != nil {
		return nil, err
	}
	return baseImage(st, res.Platforms[0].Config)
}
