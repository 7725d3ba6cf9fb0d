package build

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/internal/pass"
	"github.com/kiln-build/kiln/llb"
)

// oracle is a SourcePolicy that answers by identifier.
type oracle struct {
	mu      sync.Mutex
	answers map[string]PolicyAnswer
	asked   []string
}

func (o *oracle) Check(_ context.Context, q PolicyQuestion) (PolicyAnswer, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, q.Op.Identifier)
	a, ok := o.answers[q.Op.Identifier]
	if !ok {
		return PolicyAnswer{}, errors.New("the policy is confused")
	}
	return a, nil
}

func allow(ids ...string) map[string]PolicyAnswer {
	m := map[string]PolicyAnswer{}
	for _, id := range ids {
		m[id] = PolicyAnswer{Action: pass.PolicyAllow}
	}
	return m
}

func becomes(id string) PolicyAnswer {
	return PolicyAnswer{Action: pass.PolicyConvert, Update: &llb.SourceOp{Identifier: id}}
}

const (
	imageA = "docker-image://docker.io/library/a:latest"
	imageB = "docker-image://docker.io/library/b:latest"
)

func from(id string) *llb.SourceOp { return &llb.SourceOp{Identifier: id} }

func TestAsk(t *testing.T) {
	convert := func(id string, to PolicyAnswer) map[string]PolicyAnswer {
		m := allow(imageA, imageB)
		m[id] = to
		return m
	}
	for what, test := range map[string]struct {
		rules   []PolicyRule
		answers map[string]PolicyAnswer
		want    string
		asked   int
		fails   string
	}{
		"allowed":       {nil, allow(imageA), imageA, 1, ""},
		"converted":     {nil, convert(imageA, becomes(imageB)), imageB, 2, ""},
		"denied":        {nil, convert(imageA, PolicyAnswer{Action: pass.PolicyDeny}), "", 1, "not allowed by policy: action DENY"},
		"for ever":      {nil, convert(imageA, becomes(imageA)), "", 10, "too many policy requests"},
		"into nothing":  {nil, convert(imageA, PolicyAnswer{Action: pass.PolicyConvert}), "", 1, "convert action requires updated source"},
		"confused":      {nil, nil, "", 1, "confused"},
		"another":       {nil, convert(imageA, PolicyAnswer{Want: &PolicyWant{Op: from(imageB)}}), "", 1, "different source identifier"},
		"others' attrs": {nil, convert(imageA, PolicyAnswer{Want: &PolicyWant{Op: &llb.SourceOp{Identifier: imageA, Attrs: map[string]string{"k": "v"}}}}), "", 1, "different source attrs"},
		"rules before": {[]PolicyRule{{Action: pass.PolicyConvert, Selector: pass.PolicySelector{Identifier: imageA}, Update: &PolicyUpdate{Identifier: imageB}}},
			allow(imageB), imageB, 1, ""},
		"rules after": {[]PolicyRule{{Action: pass.PolicyDeny, Selector: pass.PolicySelector{Identifier: imageB}}},
			convert(imageA, becomes(imageB)), "", 1, "denied by policy"},
	} {
		t.Run(what, func(t *testing.T) {
			o := &oracle{answers: test.answers}
			br := &Bridge{req: Request{Policies: []Policy{{Rules: test.rules}}, Policy: o}}
			got, err := br.checkSource(t.Context(), from(imageA), nil, nil)
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Errorf("got %v, %v, expected an error with %q", got, err, test.fails)
				}
			} else if err != nil || got.Identifier != test.want {
				t.Errorf("got %v, %v, expected %s", got, err, test.want)
			}
			if len(o.asked) != test.asked {
				t.Errorf("asked %d times (%q), expected %d", len(o.asked), o.asked, test.asked)
			}
		})
	}
}

// TestAskOnce asks about each source of a build once, however often and by
// however many it is used, and about what a request's own rules made of one not again.
func TestAskOnce(t *testing.T) {
	o := &oracle{answers: allow(imageA, imageB)}
	br := &Bridge{req: Request{Policy: o}}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := br.checkSource(t.Context(), from(imageA), nil, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	more := []Policy{{Rules: []PolicyRule{{
		Action: pass.PolicyConvert, Selector: pass.PolicySelector{Identifier: "docker-image://*c:latest"}, Update: &PolicyUpdate{Identifier: imageB},
	}}}}
	got, err := br.checkSource(t.Context(), from("docker-image://c:latest"), nil, more)
	if err != nil || got.Identifier != imageB {
		t.Fatalf("got %v, %v", got, err)
	}
	if _, err := br.checkSource(t.Context(), got, nil, nil); err != nil {
		t.Error(err)
	}
	slices.Sort(o.asked)
	if want := fmt.Sprint([]string{imageA, imageB}); fmt.Sprint(o.asked) != want {
		t.Errorf("asked about %v, expected %s", o.asked, want)
	}
}

// TestBundle asks about what a git source is read from, too.
func TestBundle(t *testing.T) {
	const repo, bundle, other = "git://h/r.git", "oci-layout+blob://local/x@sha256:1", "oci-layout+blob://local/y@sha256:2"
	o := &oracle{answers: allow(repo, other)}
	o.answers[bundle] = becomes(other)
	br := &Bridge{req: Request{Policy: o}}
	got, err := br.checkSource(t.Context(), &llb.SourceOp{Identifier: repo, Attrs: map[string]string{llb.AttrGitBundle: bundle}}, nil, nil)
	if err != nil || got.Attrs[llb.AttrGitBundle] != other {
		t.Errorf("got %v, %v", got, err)
	}
	o.answers[bundle] = PolicyAnswer{Action: pass.PolicyDeny, Deny: []string{"no bundles"}}
	_, err = (&Bridge{req: Request{Policy: o}}).checkSource(t.Context(), &llb.SourceOp{Identifier: repo, Attrs: map[string]string{llb.AttrGitBundle: bundle}}, nil, nil)
	var denied *DeniedError
	if !errors.As(err, &denied) || denied.Identifier != bundle || len(denied.Messages) != 1 {
		t.Errorf("a denied bundle: %v", err)
	}
}

// TestApplyPolicies rewrites a graph, and leaves alone what nobody minds.
func TestApplyPolicies(t *testing.T) {
	g, err := llb.ParseText("%0 = source " + imageA + "\n%1 = source " + imageB + "\n%2 = file %0 { copy %1:/x /y }\nreturn %2\n")
	if err != nil {
		t.Fatal(err)
	}
	o := &oracle{answers: allow(imageA, imageB, "docker-image://new")}
	same, err := (&Bridge{req: Request{Policy: o}}).ApplyPolicies(t.Context(), g, nil)
	if err != nil || same != g {
		t.Errorf("nobody minds, and yet: %v", err)
	}
	o.answers[imageB] = becomes("docker-image://new")
	changed, err := (&Bridge{req: Request{Policy: o}}).ApplyPolicies(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	if changed.Root.Vertex.Digest() == g.Root.Vertex.Digest() || len(pass.SourceVertices(changed)) != 2 {
		t.Error("the graph did not follow its source")
	}
	o.answers[imageA] = PolicyAnswer{Action: pass.PolicyDeny}
	if _, err = (&Bridge{req: Request{Policy: o}}).ApplyPolicies(t.Context(), g, nil); err == nil || !strings.HasPrefix(err.Error(), "error evaluating the source policy: ") {
		t.Errorf("denied: %v", err)
	}
}
