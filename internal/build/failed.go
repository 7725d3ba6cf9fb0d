package build

import (
	"errors"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// Failed tells of a step that failed, so that a debugger can look into it. Its
// refs live as long as the frontend's part of the build.
type Failed struct {
	Step *llb.Vertex
	// Inputs are what the step began with and Mounts what it left; nil is an
	// empty file system, or one that is not kept.
	Inputs, Mounts []*Ref
	Action         int // the failed action of a file operation; llb.None if it is none
	Input          int // the input whose content could not be read; llb.None if it is none
}

// Failed finds the step that an error comes from; nil if it comes from none. The same
// failure is told once, however often it is met.
func (br *Bridge) Failed(err error) *Failed {
	var step *solver.Error
	if !errors.As(err, &step) {
		return nil
	}
	br.mu.Lock()
	known := br.failures[step]
	br.mu.Unlock()
	if known != nil {
		return known
	}
	f := &Failed{Step: br.step(step.Vertex), Action: llb.None, Input: llb.None}
	if f.Step == nil {
		return nil
	}
	var state *op.Failure
	if errors.As(err, &state) {
		f.Action, f.Input = state.Action, state.Input
		f.Inputs, f.Mounts = br.stateRefs(state.Inputs), br.stateRefs(state.Mounts)
	}
	br.mu.Lock()
	defer br.mu.Unlock()
	if br.failures == nil {
		br.failures = map[*solver.Error]*Failed{}
	}
	br.failures[step] = f
	return f
}

func (br *Bridge) stateRefs(states []*op.State) []*Ref {
	out := make([]*Ref, len(states))
	for i, s := range states {
		if s != nil {
			out[i] = &Ref{br: br, state: s}
		}
	}
	return out
}

// step finds a vertex among all that was solved.
func (br *Bridge) step(d digest.Digest) *llb.Vertex {
	br.mu.Lock()
	defer br.mu.Unlock()
	for _, g := range br.graphs {
		for _, v := range g.Vertices() {
			if v.Digest() == d {
				return v
			}
		}
	}
	return nil
}
