package pass

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/containerd/platforms"

	"github.com/kiln-build/kiln/llb"
)

// checkCapabilities refuses a graph that needs what this daemon does not have.
func (o Options) checkCapabilities(g *llb.Graph) (*llb.Graph, error) {
	known := map[string]bool{}
	for _, id := range o.capabilities() {
		known[id] = true
	}
	for _, v := range g.Vertices() {
		for _, id := range slices.Sorted(maps.Keys(v.Caps())) {
			if !known[id] {
				return nil, fmt.Errorf("requested experimental feature %q of %q is not supported by this daemon, update it or do without", id, v.Name())
			}
		}
	}
	return g, nil
}

func (o Options) capabilities() []string {
	if o.Caps != nil {
		return o.Caps
	}
	return llb.Caps()
}

// setPlatforms gives commands and images that name no platform the worker's,
// and spells all platforms in the normal way.
func (o Options) setPlatforms(g *llb.Graph) (*llb.Graph, error) {
	return g.Rewrite(func(v *llb.Vertex) ([]llb.Edge, error) {
		platform := v.Platform
		if platform == nil && hasPlatform(v.Op) {
			platform = &o.Worker
		}
		if platform == nil {
			return keep(v)
		}
		normal := platforms.Normalize(*platform)
		if v.Platform != nil && reflect.DeepEqual(*v.Platform, normal) {
			return keep(v)
		}
		changed := v.With(v.Op, v.Inputs)
		changed.Platform = &normal
		return keep(changed)
	})
}

// hasPlatform reports whether what op yields depends on the platform.
func hasPlatform(op llb.Op) bool {
	switch op := op.(type) {
	case *llb.ExecOp:
		return true
	case *llb.SourceOp:
		return op.Scheme() == "docker-image" || op.Scheme() == "oci-layout"
	}
	return false
}

// pinLocals has local sources that name no session read from that of the
// client. Without one, any session of any build that waits for the same step
// could be asked.
func (o Options) pinLocals(g *llb.Graph) (*llb.Graph, error) {
	if o.SessionID == "" {
		return g, nil
	}
	return g.Rewrite(func(v *llb.Vertex) ([]llb.Edge, error) {
		op, ok := v.Op.(*llb.SourceOp)
		if !ok || op.Scheme() != "local" || op.Attrs[llb.AttrLocalSession] != "" {
			return keep(v)
		}
		attrs := maps.Clone(op.Attrs)
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs[llb.AttrLocalSession] = o.SessionID
		return keep(v.With(&llb.SourceOp{Identifier: op.Identifier, Attrs: attrs}, nil))
	})
}
