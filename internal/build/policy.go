package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/pass"
	"github.com/kiln-build/kiln/llb"
)

// The static rules of a request are those of package pass.
type (
	Policy           = pass.Policy
	PolicyRule       = pass.PolicyRule
	PolicyAction     = pass.PolicyAction
	PolicyMatch      = pass.PolicyMatch
	PolicyConstraint = pass.PolicyConstraint
	PolicyCondition  = pass.PolicyCondition
	PolicyUpdate     = pass.PolicyUpdate
)

// PolicyDeny is the action that forbids a source.
const PolicyDeny = pass.PolicyDeny

// SourcePolicy decides on sources beyond the rules of a request, such as a client
// over its session (BuildKit's sourcepolicy/policysession).
type SourcePolicy interface {
	// Check decides on a source, or asks for something to be found out first.
	Check(ctx context.Context, q PolicyQuestion) (PolicyAnswer, error)
}

// PolicyQuestion is a source and what is known of it.
type PolicyQuestion struct {
	Op       *llb.SourceOp
	Platform *ocispecs.Platform   // nil if the source names none
	Meta     *frontend.SourceMeta // what the last answer asked for; nil at first
}

// PolicyAnswer is a decision, or with Want set a wish to know more.
type PolicyAnswer struct {
	Action pass.PolicyAction
	Update *llb.SourceOp // for PolicyConvert
	Deny   []string      // for PolicyDeny: reasons, for the user
	Want   *PolicyWant
}

// PolicyWant is what a policy wants to know of a source.
type PolicyWant struct {
	Op  *llb.SourceOp
	Opt frontend.ResolveOpt
}

// DeniedError says that a SourcePolicy does not let a source be used.
type DeniedError struct {
	Identifier string
	Action     pass.PolicyAction
	Messages   []string // for the user
}

// Error names the source.
func (e *DeniedError) Error() string {
	return fmt.Sprintf("source %q not allowed by policy: action %s", e.Identifier, e.Action)
}

// mostQuestions is how often a policy may be asked about one source.
const mostQuestions = 10

// policed remembers what became of the sources of one build, so that nobody is
// asked twice.
type policed struct {
	mu   sync.Mutex
	done map[string]*policedSource
}

type policedSource struct {
	once sync.Once
	op   *llb.SourceOp
	err  error
}

// hasPolicy tells whether there is anything to hold sources against.
func (br *Bridge) hasPolicy(more []pass.Policy) bool {
	return len(br.req.Policies)+len(more) > 0 || br.req.Policy != nil
}

// ApplyPolicies checks the sources of a graph by the policies of the build and
// by more, and returns the graph with the sources that the policies put in their
// place.
func (br *Bridge) ApplyPolicies(ctx context.Context, g *llb.Graph, more []pass.Policy) (*llb.Graph, error) {
	if g == nil || g.Root.Vertex == nil || !br.hasPolicy(more) {
		return g, nil
	}
	if err := g.Verify(); err != nil {
		return nil, err
	}
	vertices := pass.SourceVertices(g)
	became := make([]*llb.SourceOp, len(vertices))
	eg, ctx := errgroup.WithContext(ctx)
	for i, v := range vertices { // all at once: a policy may take its time for each
		eg.Go(func() (err error) {
			became[i], err = br.checkSource(ctx, v.Op.(*llb.SourceOp), v.Platform, more)
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, fmt.Errorf("error evaluating the source policy: %w", err)
	}
	by := map[*llb.Vertex]*llb.SourceOp{}
	for i, v := range vertices {
		if became[i] != v.Op {
			by[v] = became[i]
		}
	}
	return pass.ReplaceSources(g, by)
}

// checkSource returns what policies make of a source: op itself if they let it be.
func (br *Bridge) checkSource(ctx context.Context, op *llb.SourceOp, platform *ocispecs.Platform, more []pass.Policy) (*llb.SourceOp, error) {
	if !br.hasPolicy(more) {
		return op, nil
	}
	if len(more) > 0 { // they hold for one call only, but what they let pass needs no more asking
		out, err := br.decide(ctx, op, platform, more)
		if err != nil {
			return nil, err
		}
		entry, err := br.policed.entry(out, platform)
		if err == nil {
			entry.once.Do(func() { entry.op = out })
		}
		return out, err
	}
	entry, err := br.policed.entry(op, platform)
	if err != nil {
		return nil, err
	}
	entry.once.Do(func() { entry.op, entry.err = br.decide(ctx, op, platform, nil) })
	if entry.err != nil && ctx.Err() == nil && errors.Is(entry.err, context.Canceled) {
		return br.decide(ctx, op, platform, nil) // it was another call that was cancelled
	}
	if entry.err != nil || entry.op.Identifier == op.Identifier && maps.Equal(entry.op.Attrs, op.Attrs) {
		return op, entry.err
	}
	return entry.op, nil
}

func (p *policed) entry(op *llb.SourceOp, platform *ocispecs.Platform) (*policedSource, error) {
	b, err := json.Marshal([]any{op.Identifier, op.Attrs, platform})
	if err != nil {
		return nil, fmt.Errorf("encode source %s: %w", op.Identifier, err)
	}
	key := string(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done == nil {
		p.done = map[string]*policedSource{}
	}
	e := p.done[key]
	if e == nil {
		e = &policedSource{}
		p.done[key] = e
	}
	return e, nil
}

// decide holds a source, and what it is read from, against all policies.
func (br *Bridge) decide(ctx context.Context, op *llb.SourceOp, platform *ocispecs.Platform, more []pass.Policy) (*llb.SourceOp, error) {
	d := decision{br: br, policies: append(slices.Clone(br.req.Policies), more...), platform: platform}
	out, err := d.source(ctx, op)
	if err != nil {
		return nil, err
	}
	bundle, err := pass.BundleSource(out)
	if err != nil || bundle == nil {
		return out, err
	}
	d.asked = 0
	became, err := d.source(ctx, bundle)
	if err != nil {
		return nil, fmt.Errorf("error evaluating git bundle source policy: %w", err)
	}
	if became != bundle {
		out = pass.WithBundle(out, became)
	}
	return out, nil
}

// decision is one source on its way through the policies.
type decision struct {
	br       *Bridge
	policies []pass.Policy
	platform *ocispecs.Platform
	asked    int
}

func (d *decision) source(ctx context.Context, given *llb.SourceOp) (*llb.SourceOp, error) {
	normal := pass.NormalSource(given)
	op, err := pass.EvaluatePolicies(d.policies, normal)
	if err != nil {
		return nil, err
	}
	if d.br.req.Policy != nil {
		if op, err = d.ask(ctx, op); err != nil {
			return nil, err
		}
	}
	if op == normal { // nobody wanted it otherwise: it keeps its bytes
		return given, nil
	}
	return op, nil
}

// ask has the session's policy decide, finding out what it wants to know.
func (d *decision) ask(ctx context.Context, op *llb.SourceOp) (*llb.SourceOp, error) {
	q := PolicyQuestion{Op: op, Platform: d.platform}
	for {
		if d.asked++; d.asked > mostQuestions {
			return nil, fmt.Errorf("source %q: too many policy requests: the policy asked more than %d times", op.Identifier, mostQuestions)
		}
		a, err := d.br.req.Policy.Check(ctx, q)
		switch {
		case err != nil:
			return nil, err
		case a.Want != nil:
			if q.Meta, err = d.find(ctx, op, *a.Want); err != nil {
				return nil, err
			}
			continue
		case a.Action == pass.PolicyConvert:
			if a.Update == nil {
				return nil, fmt.Errorf("source %q: convert action requires updated source", op.Identifier)
			}
			next, err := pass.EvaluatePolicies(d.policies, pass.NormalSource(a.Update))
			if err != nil {
				return nil, err
			}
			op, q = next, PolicyQuestion{Op: next, Platform: d.platform}
			continue
		case a.Action != pass.PolicyAllow:
			return nil, &DeniedError{Identifier: op.Identifier, Action: a.Action, Messages: a.Deny}
		}
		return op, nil
	}
}

// find finds out what a policy wants to know: of the source in question, no other.
func (d *decision) find(ctx context.Context, op *llb.SourceOp, want PolicyWant) (*frontend.SourceMeta, error) {
	switch {
	case want.Op == nil || want.Op.Identifier != op.Identifier:
		asked := ""
		if want.Op != nil {
			asked = want.Op.Identifier
		}
		return nil, fmt.Errorf("policy requested different source identifier: %q != %q", asked, op.Identifier)
	case !maps.Equal(want.Op.Attrs, op.Attrs):
		return nil, fmt.Errorf("policy requested different source attrs: %v, the source has %v", want.Op.Attrs, op.Attrs)
	}
	if !strings.HasPrefix(op.Identifier, "docker-image://") {
		want.Opt.Mode = ""
	}
	meta, err := d.br.resolveSource(ctx, op, want.Opt)
	if err != nil {
		return nil, fmt.Errorf("error resolving source metadata from policy request: %w", err)
	}
	return meta, nil
}
