package client

import (
	"encoding/json"
	"fmt"

	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
)

// policyFile is the JSON of a policy.
type policyFile struct {
	Version int64
	Rules   []struct {
		Action   policyWord
		Selector *struct {
			Identifier  string
			MatchType   policyWord `json:"match_type"`
			Constraints []struct {
				Key, Value string
				Condition  policyWord
			}
		}
		Updates *struct {
			Identifier string
			Attrs      map[string]string
		}
	}
}

// policyWord is a value of an enumeration: a word or a number.
type policyWord struct {
	word   string
	number int32
}

func (w *policyWord) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		return json.Unmarshal(data, &w.word)
	}
	return json.Unmarshal(data, &w.number)
}

// value looks a word up.
func (w policyWord) value(what string, words map[string]int32) (int32, error) {
	if w.word != "" {
		if v, ok := words[w.word]; ok {
			return v, nil
		}
		return 0, fmt.Errorf("source policy: unknown %s %q", what, w.word)
	}
	for _, v := range words {
		if v == w.number {
			return v, nil
		}
	}
	return 0, fmt.Errorf("source policy: unknown %s %d", what, w.number)
}

func (f *policyFile) policy() (*SourcePolicy, error) {
	p := &SourcePolicy{Version: f.Version}
	for _, r := range f.Rules {
		action, err := r.Action.value("action", sourcepolicy.PolicyAction_value)
		if err != nil {
			return nil, err
		}
		rule := &SourceRule{Action: sourcepolicy.PolicyAction(action)}
		if s := r.Selector; s != nil {
			match, err := s.MatchType.value("match_type", sourcepolicy.MatchType_value)
			if err != nil {
				return nil, err
			}
			rule.Selector = &SourceSelector{Identifier: s.Identifier, MatchType: sourcepolicy.MatchType(match)}
			for _, c := range s.Constraints {
				condition, err := c.Condition.value("condition", sourcepolicy.AttrMatch_value)
				if err != nil {
					return nil, err
				}
				rule.Selector.Constraints = append(rule.Selector.Constraints, &sourcepolicy.AttrConstraint{
					Key: c.Key, Value: c.Value, Condition: sourcepolicy.AttrMatch(condition),
				})
			}
		}
		if u := r.Updates; u != nil {
			rule.Updates = &SourceUpdate{Identifier: u.Identifier, Attrs: u.Attrs}
		}
		p.Rules = append(p.Rules, rule)
	}
	return p, nil
}
