// Package frontendtest is a gateway for tests of frontends: it has files and
// images that a test names, and runs nothing.
package frontendtest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// Gateway is a [frontend.Gateway] of a test. Its fields are set before it is used.
type Gateway struct {
	// Files are those of sources, by the source's identifier and their paths:
	// "local://context/main.go".
	Files map[string]string
	// Images are those that a registry has, by their full names with tag, such as
	// "docker.io/library/alpine:latest".
	Images map[string]ocispecs.ImageConfig
	// Run makes the files of a graph whose root is no source; nil makes none.
	Run func(*llb.Graph) (map[string]string, error)

	mu       sync.Mutex
	warnings []frontend.Warning
	resolved []string
	calls    []Call
}

// Call is a request that was handed to another frontend.
type Call struct {
	Name   string
	Opts   map[string]string
	Inputs map[string]*llb.Graph
}

// Warnings are those that the frontend gave.
func (g *Gateway) Warnings() []frontend.Warning {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.warnings
}

// Resolved are the identifiers of the sources that were resolved.
func (g *Gateway) Resolved() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.resolved
}

// Calls are the requests that were handed to other frontends.
func (g *Gateway) Calls() []Call {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.calls
}

// Solve returns the files of a source, or what Run makes.
func (g *Gateway) Solve(_ context.Context, graph *llb.Graph) (frontend.Ref, error) {
	if graph == nil || graph.Root.Vertex == nil {
		return ref{}, nil
	}
	if err := graph.Verify(); err != nil {
		return nil, err
	}
	if op, ok := graph.Root.Vertex.Op.(*llb.SourceOp); ok {
		files := ref{}
		for name, text := range g.Files {
			if p, ok := strings.CutPrefix(name, op.Identifier+"/"); ok {
				files[path.Clean(p)] = text
			}
		}
		return files, nil
	}
	if g.Run == nil {
		return ref{}, nil
	}
	files, err := g.Run(graph)
	return ref(files), err
}

// ResolveSource pins an image by the digest of its config.
func (g *Gateway) ResolveSource(_ context.Context, op *llb.SourceOp, opt frontend.ResolveOpt) (*frontend.SourceMeta, error) {
	g.mu.Lock()
	g.resolved = append(g.resolved, op.Identifier)
	g.mu.Unlock()
	name, isImage := strings.CutPrefix(op.Identifier, "docker-image://")
	if !isImage {
		return &frontend.SourceMeta{Op: op, Digest: digest.FromString(op.Identifier)}, nil
	}
	config, ok := g.Images[name]
	if !ok {
		return nil, fmt.Errorf("%s: not found", name)
	}
	p := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	if opt.Platform != nil {
		p = *opt.Platform
	}
	data, err := json.Marshal(ocispecs.Image{Platform: platforms.Normalize(p), Config: config, RootFS: ocispecs.RootFS{Type: "layers"}})
	if err != nil {
		return nil, err
	}
	return &frontend.SourceMeta{Op: op, Digest: digest.FromBytes(data), Config: data}, nil
}

// Warn keeps the warning.
func (g *Gateway) Warn(_ context.Context, _ digest.Digest, w frontend.Warning) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.warnings = append(g.warnings, w)
}

// Frontend keeps the request and answers with an empty result.
func (g *Gateway) Frontend(_ context.Context, name string, opts map[string]string, inputs map[string]*llb.Graph) (*frontend.Result, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, Call{name, opts, inputs})
	return &frontend.Result{Platforms: []frontend.PlatformResult{{Graph: &llb.Graph{}}}}, nil
}

// ref is files by their paths.
type ref map[string]string

// ReadFile returns a file.
func (r ref) ReadFile(_ context.Context, name string) ([]byte, error) {
	text, ok := r[path.Clean(cmp.Or(strings.TrimPrefix(name, "/"), "."))]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
	}
	return []byte(text), nil
}

// Evaluate has nothing to do.
func (ref) Evaluate(context.Context) error { return nil }
