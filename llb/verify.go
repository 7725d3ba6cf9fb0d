package llb

import (
	"errors"
	"fmt"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Verify reports the first thing that is wrong with the graph. In a graph that
// passes, every number is in range, every enum is known, there is no cycle, and
// every vertex can be encoded.
func (g *Graph) Verify() error {
	order, acyclic := g.walk()
	if !acyclic {
		return errors.New("graph has a cycle")
	}
	for _, v := range order {
		if err := v.verify(); err != nil {
			return err
		}
	}
	if g.Root.Vertex != nil {
		if err := g.Root.verify(); err != nil {
			return fmt.Errorf("graph root: %w", err)
		}
	} else if g.Root.Index != 0 {
		return fmt.Errorf("graph root is output %d of scratch", g.Root.Index)
	}
	return g.Sources.verify()
}

func (v *Vertex) verify() error {
	if v.Op == nil {
		return errors.New("vertex has no operation")
	}
	for i, in := range v.Inputs {
		if in.Vertex == nil {
			return fmt.Errorf("input %d of %s has no vertex", i, v.Op.Kind())
		}
		if err := in.verify(); err != nil {
			return fmt.Errorf("input %d of %s: %w", i, v.Op.Kind(), err)
		}
	}
	if err := v.Op.verify(len(v.Inputs)); err != nil {
		return err
	}
	if v.Platform != nil {
		if err := verifyPlatform(v.Platform); err != nil {
			return err
		}
	}
	if _, nameless := v.Meta.Caps[""]; nameless {
		return fmt.Errorf("%s needs a capability without a name", v.Op.Kind())
	}
	if form := v.encoded(); form.err != nil {
		return fmt.Errorf("encode %s: %w", v.Op.Kind(), form.err)
	}
	return nil
}

// verify checks an edge whose vertex has been verified.
func (e Edge) verify() error {
	if outputs := e.Vertex.Op.Outputs(); e.Index < 0 || e.Index >= outputs {
		return fmt.Errorf("is output %d of %s, which has %d", e.Index, e.Vertex.Op.Kind(), outputs)
	}
	return nil
}

func verifyPlatform(p *ocispecs.Platform) error {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-"
	for _, part := range []string{p.OS, p.Architecture, p.Variant} {
		if strings.ContainsFunc(part, func(r rune) bool { return !strings.ContainsRune(allowed, r) }) {
			return fmt.Errorf("platform part %q has characters other than letters, digits, '_', '.' and '-'", part)
		}
	}
	return nil
}

func (s *SourceIndex) verify() error {
	for d, locations := range s.Locations {
		for _, l := range locations {
			if l.File < 0 || l.File >= len(s.Files) {
				return fmt.Errorf("location of %s is in file %d of %d", d, l.File, len(s.Files))
			}
		}
	}
	for _, f := range s.Files {
		if f.From != nil {
			if err := f.From.Verify(); err != nil {
				return fmt.Errorf("source file %q: %w", f.Name, err)
			}
		}
	}
	return nil
}
