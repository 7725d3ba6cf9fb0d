package pass

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/llb"
)

// ErrSourceDenied says that a policy does not let a source be used. Clients
// look for its text.
var ErrSourceDenied = errors.New("source denied by policy")

// Policy is a list of rules on sources (BuildKit's sourcepolicy/pb). The last rule
// that allows or denies a source wins; one that converts it has all rules start
// again.
type Policy struct{ Rules []PolicyRule }

// PolicyRule does something to the sources that it selects.
type PolicyRule struct {
	Action   PolicyAction
	Selector PolicySelector
	Update   *PolicyUpdate // of PolicyConvert
}

// PolicyAction is what happens to a source. The numbers are the protocol's.
type PolicyAction int

// Actions.
const (
	PolicyAllow PolicyAction = iota
	PolicyDeny
	PolicyConvert
)

// String is the action's name in the protocol.
func (a PolicyAction) String() string {
	switch a {
	case PolicyAllow:
		return "ALLOW"
	case PolicyDeny:
		return "DENY"
	case PolicyConvert:
		return "CONVERT"
	}
	return fmt.Sprint(int(a))
}

// PolicySelector selects sources by identifier and attributes.
type PolicySelector struct {
	Identifier  string
	Match       PolicyMatch
	Constraints []PolicyConstraint
}

// PolicyMatch is how a selector's identifier is read. The numbers are the protocol's.
type PolicyMatch int

// Ways to read an identifier.
const (
	MatchWildcard PolicyMatch = iota // "*" is any text
	MatchExact
	MatchRegexp
)

// PolicyConstraint compares one attribute of a source.
type PolicyConstraint struct {
	Key, Value string
	Condition  PolicyCondition
}

// PolicyCondition is how to compare. The numbers are the protocol's.
type PolicyCondition int

// Conditions.
const (
	AttrEqual PolicyCondition = iota
	AttrNotEqual
	AttrMatches // a regular expression
)

// PolicyUpdate is what a source becomes: "" keeps the identifier, and may use
// what the selector captured as ${1}. Attributes are added to those there are.
type PolicyUpdate struct {
	Identifier string
	Attrs      map[string]string
}

// mostConversions is how often one source may be converted.
const mostConversions = 20

// EvaluatePolicies returns what policies make of a source: op itself if they let
// it be, or a new one. A source that is denied is ErrSourceDenied.
func EvaluatePolicies(policies []Policy, op *llb.SourceOp) (*llb.SourceOp, error) {
	for range mostConversions + 1 {
		next, err := evaluateOnce(policies, op)
		if err != nil || next == op {
			return op, err
		}
		op = next
	}
	return nil, fmt.Errorf("source policy: %q was converted more than %d times: too many operations", op.Identifier, mostConversions)
}

func evaluateOnce(policies []Policy, op *llb.SourceOp) (*llb.SourceOp, error) {
	for _, p := range policies {
		next, err := p.evaluate(op)
		if err != nil || next != op {
			return next, err
		}
	}
	return op, nil
}

func (p Policy) evaluate(op *llb.SourceOp) (*llb.SourceOp, error) {
	deny := false
	for _, rule := range p.Rules {
		m, err := rule.Selector.match(op)
		if err != nil {
			return nil, fmt.Errorf("source policy: rule %s %q: %w", rule.Action, rule.Selector.Identifier, err)
		}
		if !m.ok {
			continue
		}
		switch rule.Action {
		case PolicyAllow:
			deny = false
		case PolicyDeny:
			deny = true
		case PolicyConvert:
			next, err := rule.convert(op, m)
			if err != nil || next != op {
				return next, err
			}
		default:
			return nil, fmt.Errorf("source policy: rule for %q has unknown action %d: expected ALLOW, DENY or CONVERT", rule.Selector.Identifier, rule.Action)
		}
	}
	if deny {
		return nil, fmt.Errorf("source %q denied by policy: %w", op.Identifier, ErrSourceDenied)
	}
	return op, nil
}

// matched is how a selector took a source.
type matched struct {
	ok       bool
	re       *regexp.Regexp // nil for an exact match
	wildcard bool
}

func (s PolicySelector) match(op *llb.SourceOp) (matched, error) {
	for _, c := range s.Constraints {
		if ok, err := c.holds(op.Attrs[c.Key]); err != nil || !ok {
			return matched{}, err
		}
	}
	m := matched{wildcard: s.Match == MatchWildcard}
	var err error
	switch s.Match {
	case MatchExact:
	case MatchRegexp:
		if m.re, err = regexp.Compile(s.Identifier); err != nil {
			err = fmt.Errorf("malformed regular expression %q: %w", s.Identifier, err)
		}
	case MatchWildcard:
		m.re, err = wildcard(s.Identifier)
	default:
		err = fmt.Errorf("unknown way to match, %d: expected WILDCARD, EXACT or REGEX", s.Match)
	}
	if err != nil {
		return matched{}, err
	}
	m.ok = s.Identifier == op.Identifier || m.re != nil && m.re.MatchString(op.Identifier)
	return m, nil
}

// wildcard makes a regular expression in which each "*" captures.
func wildcard(pattern string) (*regexp.Regexp, error) {
	quoted := regexp.QuoteMeta(pattern)
	if strings.Contains(quoted, `\*\*`) {
		return nil, fmt.Errorf(`malformed wildcard %q: "**" has no meaning, use "*"`, pattern)
	}
	re, err := regexp.Compile("^" + strings.ReplaceAll(quoted, `\*`, "(.*)") + "$")
	if err != nil {
		return nil, fmt.Errorf("malformed wildcard %q: %w", pattern, err)
	}
	return re, nil
}

func (c PolicyConstraint) holds(value string) (bool, error) {
	switch c.Condition {
	case AttrEqual:
		return value == c.Value, nil
	case AttrNotEqual:
		return value != c.Value, nil
	case AttrMatches:
		re, err := regexp.Compile(c.Value)
		if err != nil {
			return false, fmt.Errorf("malformed regular expression %q of attribute %s: %w", c.Value, c.Key, err)
		}
		return re.MatchString(value), nil
	}
	return false, fmt.Errorf("unknown condition %d on attribute %s: expected EQUAL, NOTEQUAL or MATCHES", c.Condition, c.Key)
}

// convert returns op itself if nothing changes.
func (r PolicyRule) convert(op *llb.SourceOp, m matched) (*llb.SourceOp, error) {
	if r.Update == nil {
		return nil, fmt.Errorf("source policy: rule CONVERT %q does not say what the source becomes: missing destination for convert rule", r.Selector.Identifier)
	}
	to := r.Update.Identifier
	if to == "" {
		to = r.Selector.Identifier
	}
	switch {
	case m.re == nil:
	case !m.wildcard:
		to = m.re.ReplaceAllString(op.Identifier, to)
	default:
		if at := m.re.FindStringSubmatchIndex(op.Identifier); at != nil {
			to = string(m.re.ExpandString(nil, to, op.Identifier, at))
		} else { // the pattern itself
			to = op.Identifier
		}
	}
	attrs := maps.Clone(op.Attrs)
	if attrs == nil {
		attrs = map[string]string{}
	}
	maps.Copy(attrs, r.Update.Attrs)
	if to == "" {
		to = op.Identifier
	}
	if to == op.Identifier && maps.Equal(attrs, op.Attrs) {
		return op, nil
	}
	return &llb.SourceOp{Identifier: to, Attrs: attrs}, nil
}

// NormalSource returns a source as policies see it, so that none is evaded by
// another spelling: op itself if it is spelled as it should be.
func NormalSource(op *llb.SourceOp) *llb.SourceOp {
	if op.Scheme() != "git" {
		return op
	}
	repo, fragment, ok := strings.Cut(op.Identifier, "#")
	ref, dir, hasDir := strings.Cut(fragment, ":")
	if !ok || !hasDir {
		return op
	}
	// A folder of the repository: leading dots go nowhere.
	var parts []string
	for p := range strings.SplitSeq(dir, "/") {
		switch p {
		case "", ".":
		case "..":
			parts = parts[:max(0, len(parts)-1)]
		default:
			parts = append(parts, p)
		}
	}
	id := repo
	if len(parts) > 0 {
		id += "#" + ref + ":" + strings.Join(parts, "/")
	} else if ref != "" {
		id += "#" + ref
	}
	if id == op.Identifier {
		return op
	}
	return &llb.SourceOp{Identifier: id, Attrs: op.Attrs}
}

// BundleSource returns the source that a git source is read from, if it is read
// from a bundle: policies are to see it, too.
func BundleSource(op *llb.SourceOp) (*llb.SourceOp, error) {
	locator := op.Attrs[llb.AttrGitBundle]
	if op.Scheme() != "git" || locator == "" {
		return nil, nil
	}
	scheme, ref, ok := strings.Cut(locator, "://")
	if !ok || scheme != "docker-image+blob" && scheme != "oci-layout+blob" {
		return nil, fmt.Errorf("attribute %s=%q: expected docker-image+blob://reference@digest or oci-layout+blob://name@digest", llb.AttrGitBundle, locator)
	}
	bundle := &llb.SourceOp{Identifier: locator, Attrs: map[string]string{}}
	if scheme == "oci-layout+blob" {
		if id, ok := op.Attrs[llb.AttrOCISession]; ok {
			bundle.Attrs[llb.AttrOCISession] = id
		}
		bundle.Attrs[llb.AttrOCIStore] = bundleStore(op, ref)
	}
	return bundle, nil
}

// bundleStore is the store of a bundle in an OCI layout: the name is the default.
func bundleStore(op *llb.SourceOp, ref string) string {
	if id := op.Attrs[llb.AttrOCIStore]; id != "" {
		return id
	}
	name, _, _ := strings.Cut(ref, "@")
	return name
}

// WithBundle returns a git source that is read from another bundle.
func WithBundle(op, bundle *llb.SourceOp) *llb.SourceOp {
	attrs := maps.Clone(op.Attrs)
	_, before, _ := strings.Cut(attrs[llb.AttrGitBundle], "://")
	implicit := bundleStore(op, before)
	explicit := op.Attrs[llb.AttrOCIStore] != ""
	attrs[llb.AttrGitBundle] = bundle.Identifier
	for _, key := range []string{llb.AttrOCISession, llb.AttrOCIStore} {
		delete(attrs, key)
		v, ok := bundle.Attrs[key]
		if !ok || key == llb.AttrOCIStore && !explicit && v == implicit {
			continue
		}
		attrs[key] = v
	}
	return &llb.SourceOp{Identifier: op.Identifier, Attrs: attrs}
}

// SourceVertices are the vertices of a graph that bring files in.
func SourceVertices(g *llb.Graph) []*llb.Vertex {
	return slices.DeleteFunc(g.Vertices(), func(v *llb.Vertex) bool {
		_, ok := v.Op.(*llb.SourceOp)
		return !ok
	})
}

// ReplaceSources returns g with other sources. The digests of all that is built
// on them follow.
func ReplaceSources(g *llb.Graph, by map[*llb.Vertex]*llb.SourceOp) (*llb.Graph, error) {
	if len(by) == 0 {
		return g, nil
	}
	return g.Rewrite(func(v *llb.Vertex) ([]llb.Edge, error) {
		if op := by[v]; op != nil {
			return keep(v.With(op, v.Inputs))
		}
		return keep(v)
	})
}
