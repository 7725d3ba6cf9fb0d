// Package pass rewrites graphs of package llb before they are solved.
//
// A pass is a pure function from graph to graph. One table, [Passes], lists
// them all in the order in which they run, [Orders] says why that order, and a
// test holds the one against the other. Passes stand between frontends, which
// may be foreign, and the solver: what comes out is verified, has a platform
// wherever one matters, reads local directories from a named session, and says
// nothing twice.
//
// A vertex that no pass has cause to change keeps its bytes and its digest, so
// that clients recognise in the progress what they sent.
package pass

import (
	"fmt"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// Options is what passes need to know about the build.
type Options struct {
	// Worker is the platform of steps that name none.
	Worker ocispecs.Platform
	// SessionID is the client whose directories local sources without a session
	// mean. If empty, they are left as they are.
	SessionID string
	// Caps are the capabilities that a graph may ask for; nil means all that
	// package llb knows.
	Caps []string
	// RequiredOnly leaves out the passes that a correct build can do without.
	RequiredOnly bool
}

// Pass is one rewriting.
type Pass struct {
	Name     string
	Required bool // a build may be wrong without it
	Run      func(*llb.Graph) (*llb.Graph, error)
}

// Passes lists all passes in the order in which they run.
func Passes(o Options) []Pass {
	return []Pass{
		{"verify", true, verify},
		{"capabilities", true, o.checkCapabilities},
		{"platforms", true, o.setPlatforms},
		{"locals", true, o.pinLocals},
		{"simplify", false, simplify},
		{"dedupe", false, dedupe},
		{"sources", false, pruneSources},
	}
}

// Order says that a pass must run before another, and why.
type Order struct{ Before, After, Reason string }

// Orders lists what the order of [Passes] must respect.
func Orders() []Order {
	return []Order{
		{"verify", "capabilities", "all passes rely on numbers being in range"},
		{"capabilities", "simplify", "what was asked for must be refused even if it could be simplified away"},
		{"platforms", "dedupe", "steps whose platforms are only spelled differently become equal"},
		{"locals", "dedupe", "a directory of this session and one of no session become equal"},
		{"simplify", "dedupe", "what used equal inputs under different names becomes equal"},
		{"simplify", "sources", "what was simplified away has no place in a file any more"},
		{"dedupe", "sources", "vertices that became one leave stale digests behind"},
	}
}

// Run applies all passes.
func Run(g *llb.Graph, o Options) (*llb.Graph, error) {
	for _, p := range Passes(o) {
		if o.RequiredOnly && !p.Required {
			continue
		}
		next, err := p.Run(g)
		if err != nil {
			return nil, fmt.Errorf("pass %s: %w", p.Name, err)
		}
		g = next
	}
	return verify(g)
}

func verify(g *llb.Graph) (*llb.Graph, error) { return g, g.Verify() }

// keep is what a rewriting function returns for a vertex that stays.
func keep(v *llb.Vertex) ([]llb.Edge, error) { return []llb.Edge{{Vertex: v}}, nil }
