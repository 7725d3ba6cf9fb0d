package gateway

import (
	"errors"
	"fmt"
	"maps"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
	"github.com/kiln-build/kiln/internal/build"
)

// ReadPolicies decodes policies; numbers that are unknown are refused.
func ReadPolicies(wire ...*sourcepolicy.Policy) ([]build.Policy, error) {
	var out []build.Policy
	for _, w := range wire {
		if w == nil {
			if len(wire) > 1 {
				return nil, status.Error(codes.InvalidArgument, "invalid nil source policy")
			}
			continue
		}
		var p build.Policy
		for i, r := range w.GetRules() {
			rule, err := readRule(r)
			if err != nil {
				return nil, status.Errorf(codes.InvalidArgument, "source policy: rule %d: %v", i, err)
			}
			p.Rules = append(p.Rules, rule)
		}
		out = append(out, p)
	}
	return out, nil
}

func readRule(r *sourcepolicy.Rule) (rule build.PolicyRule, err error) {
	if r == nil {
		return rule, errors.New("invalid nil rule in policy")
	}
	s := r.GetSelector()
	if s == nil {
		return rule, errors.New("invalid nil selector in policy")
	}
	if rule.Action, err = Known[build.PolicyAction](r.GetAction(), sourcepolicy.PolicyAction_name, "action"); err != nil {
		return rule, err
	}
	rule.Selector.Identifier = s.GetIdentifier()
	if rule.Selector.Match, err = Known[build.PolicyMatch](s.GetMatchType(), sourcepolicy.MatchType_name, "match type"); err != nil {
		return rule, err
	}
	for _, c := range s.GetConstraints() {
		if c == nil {
			return rule, errors.New("invalid nil constraint in policy")
		}
		condition, err := Known[build.PolicyCondition](c.GetCondition(), sourcepolicy.AttrMatch_name, "condition")
		if err != nil {
			return rule, err
		}
		rule.Selector.Constraints = append(rule.Selector.Constraints, build.PolicyConstraint{Key: c.GetKey(), Value: c.GetValue(), Condition: condition})
	}
	if u := r.GetUpdates(); u != nil {
		rule.Update = &build.PolicyUpdate{Identifier: u.GetIdentifier(), Attrs: maps.Clone(u.GetAttrs())}
	}
	return rule, nil
}

// Known turns a number of the protocol into ours, which are the same.
func Known[To, From ~int | ~int32](n From, names map[int32]string, what string) (To, error) {
	if _, ok := names[int32(n)]; !ok {
		return 0, fmt.Errorf("unknown type %d of %s", n, what)
	}
	return To(n), nil
}
