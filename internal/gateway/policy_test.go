package gateway

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/sourcepolicy"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// TestHostilePolicies has policies that lack parts or have numbers that nobody knows
// (CVE-2024-23650, GHSA-7236-3392-c5c6).
func TestHostilePolicies(t *testing.T) {
	every := &sourcepolicy.Selector{Identifier: "*"}
	for name, c := range map[string]struct {
		rule *sourcepolicy.Rule
		want string
	}{
		"nil rule":          {nil, "nil rule"},
		"empty rule":        {&sourcepolicy.Rule{}, "nil selector"},
		"nil selector":      {&sourcepolicy.Rule{Action: sourcepolicy.PolicyAction_DENY}, "nil selector"},
		"action 9000":       {&sourcepolicy.Rule{Action: 9000, Selector: every}, "unknown type 9000 of action"},
		"action -1":         {&sourcepolicy.Rule{Action: -1, Selector: every}, "unknown type -1 of action"},
		"unknown match":     {&sourcepolicy.Rule{Selector: &sourcepolicy.Selector{MatchType: 9}}, "unknown type 9 of match type"},
		"nil constraint":    {&sourcepolicy.Rule{Selector: &sourcepolicy.Selector{Constraints: []*sourcepolicy.AttrConstraint{nil}}}, "nil constraint"},
		"unknown condition": {&sourcepolicy.Rule{Selector: &sourcepolicy.Selector{Constraints: []*sourcepolicy.AttrConstraint{{Condition: 9}}}}, "unknown type 9 of condition"},
	} {
		_, err := ReadPolicies(&sourcepolicy.Policy{Rules: []*sourcepolicy.Rule{c.rule}})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if _, err := ReadPolicies(nil, &sourcepolicy.Policy{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a nil policy among others: got %v", err)
	}
	if got, err := ReadPolicies(nil); err != nil || len(got) != 0 {
		t.Errorf("no policy: got %v, %v", got, err)
	}
	if got, err := ReadPolicies(&sourcepolicy.Policy{Rules: []*sourcepolicy.Rule{{Action: sourcepolicy.PolicyAction_CONVERT, Selector: every}}}); err != nil || got[0].Rules[0].Update != nil {
		t.Errorf("a conversion to nothing is refused where it is to be applied: got %v, %v", got, err)
	}
}

// TestGraphsWithoutParts has inputs whose definitions are nil, empty, or of ops that are
// (CVE-2024-23650).
func TestGraphsWithoutParts(t *testing.T) {
	for name, c := range map[string]struct {
		def  *pb.Definition
		want string // "" is nothing, as scratch
	}{
		"nil":                    {nil, ""},
		"empty":                  {&pb.Definition{}, ""},
		"nil op":                 {&pb.Definition{Def: [][]byte{nil}}, "op"},
		"nil ops":                {&pb.Definition{Def: [][]byte{nil, nil}}, "op"},
		"nil metadata":           {&pb.Definition{Metadata: map[string]*pb.OpMetadata{"x": nil}}, ""},
		"source without a place": {&pb.Definition{Source: &pb.Source{Locations: map[string]*pb.Locations{"x": nil}, Infos: []*pb.SourceInfo{nil}}}, ""},
	} {
		got, err := ReadGraphs(map[string]*pb.Definition{"in": c.def})
		switch {
		case c.want != "":
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), `input "in"`) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: got %v, want %q", name, err, c.want)
			}
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case got["in"].Text() != (&llb.Graph{}).Text():
			t.Errorf("%s: got %s, want nothing", name, got["in"].Text())
		}
	}
}
