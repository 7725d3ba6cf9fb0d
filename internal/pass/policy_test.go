package pass

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/llb"
)

func rule(a PolicyAction, id string) PolicyRule {
	return PolicyRule{Action: a, Selector: PolicySelector{Identifier: id}}
}

func to(r PolicyRule, id string, attrs ...string) PolicyRule {
	r.Update = &PolicyUpdate{Identifier: id, Attrs: map[string]string{}}
	for i := 0; i < len(attrs); i += 2 {
		r.Update.Attrs[attrs[i]] = attrs[i+1]
	}
	return r
}

func (r PolicyRule) by(m PolicyMatch) PolicyRule {
	r.Selector.Match = m
	return r
}

func (r PolicyRule) when(key string, c PolicyCondition, value string) PolicyRule {
	r.Selector.Constraints = append(r.Selector.Constraints, PolicyConstraint{key, value, c})
	return r
}

func TestEvaluatePolicies(t *testing.T) {
	const alpine, pinned = "docker-image://docker.io/library/alpine:latest", "docker-image://docker.io/library/alpine:3.20"
	for name, test := range map[string]struct {
		policies []Policy
		id       string
		attrs    map[string]string
		want     string // the new identifier
		attr     string // key=value it must have
		fails    string
	}{
		"none":                 {id: alpine, want: alpine},
		"no rule for it":       {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "https://*")}}}, id: alpine, want: alpine},
		"denied":               {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, alpine)}}}, id: alpine, fails: `source "` + alpine + `" denied by policy: source denied by policy`},
		"denied by wildcard":   {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "docker-image://*")}}}, id: alpine, fails: "denied by policy"},
		"the last wins, deny":  {policies: []Policy{{[]PolicyRule{rule(PolicyAllow, alpine), rule(PolicyDeny, alpine)}}}, id: alpine, fails: "denied by policy"},
		"the last wins, allow": {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "*"), rule(PolicyAllow, alpine)}}}, id: alpine, want: alpine},
		"one policy denies": {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "*")}}, {[]PolicyRule{rule(PolicyAllow, "*")}}},
			id: alpine, fails: "denied by policy"},
		"exact takes no pattern": {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "docker-image://*").by(MatchExact)}}}, id: alpine, want: alpine},
		"regexp":                 {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, `^docker-image://.*alpine:(latest|edge)$`).by(MatchRegexp)}}}, id: alpine, fails: "denied"},
		"dots are dots":          {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "docker-image://docker-io/*")}}}, id: alpine, want: alpine},
		"convert":                {policies: []Policy{{[]PolicyRule{to(rule(PolicyConvert, alpine), pinned)}}}, id: alpine, want: pinned},
		"convert with a capture": {policies: []Policy{{[]PolicyRule{
			to(rule(PolicyConvert, "docker-image://docker.io/library/golang:*"), "docker-image://example.com/golang:${1}-alpine")}}},
			id: "docker-image://docker.io/library/golang:1.26", want: "docker-image://example.com/golang:1.26-alpine"},
		"convert by regexp": {policies: []Policy{{[]PolicyRule{
			to(rule(PolicyConvert, `docker\.io/(.*):latest`).by(MatchRegexp), "mirror.local/$1:stable")}}},
			id: alpine, want: "docker-image://mirror.local/library/alpine:stable"},
		"convert attributes alone": {policies: []Policy{{[]PolicyRule{to(rule(PolicyConvert, "https://example.com/x"), "", "http.checksum", "sha256:1")}}},
			id: "https://example.com/x", want: "https://example.com/x", attr: "http.checksum=sha256:1"},
		"what it became is denied": {policies: []Policy{{[]PolicyRule{to(rule(PolicyConvert, alpine), pinned), rule(PolicyDeny, pinned)}}}, id: alpine,
			fails: `source "` + pinned + `" denied by policy`},
		"in circles": {policies: []Policy{{[]PolicyRule{to(rule(PolicyConvert, alpine), pinned), to(rule(PolicyConvert, pinned), alpine)}}}, id: alpine,
			fails: "too many operations"},
		"convert into nothing said": {policies: []Policy{{[]PolicyRule{rule(PolicyConvert, alpine)}}}, id: alpine, fails: "missing destination for convert rule"},
		"attribute equal": {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "*").when("image.resolvemode", AttrEqual, "pull")}}},
			id: alpine, attrs: map[string]string{"image.resolvemode": "pull"}, fails: "denied"},
		"attribute not equal": {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "*").when("image.resolvemode", AttrNotEqual, "pull")}}},
			id: alpine, attrs: map[string]string{"image.resolvemode": "pull"}, want: alpine},
		"attribute matches": {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "*").when("k", AttrMatches, "^v.$")}}},
			id: alpine, attrs: map[string]string{"k": "v1"}, fails: "denied"},
		"unknown action":    {policies: []Policy{{[]PolicyRule{rule(7, "*")}}}, id: alpine, fails: "unknown action 7"},
		"unknown match":     {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "*").by(9)}}}, id: alpine, fails: "unknown way to match, 9"},
		"unknown condition": {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "*").when("k", 5, "v")}}}, id: alpine, fails: "unknown condition 5"},
		"bad regexp":        {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "(").by(MatchRegexp)}}}, id: alpine, fails: `malformed regular expression "("`},
		"two stars":         {policies: []Policy{{[]PolicyRule{rule(PolicyDeny, "docker-image://**")}}}, id: alpine, fails: `malformed wildcard`},
	} {
		t.Run(name, func(t *testing.T) {
			op := &llb.SourceOp{Identifier: test.id, Attrs: maps.Clone(test.attrs)}
			got, err := EvaluatePolicies(test.policies, op)
			if test.fails != "" {
				if err == nil || !strings.Contains(err.Error(), test.fails) {
					t.Fatalf("error is %v, expected one with %q", err, test.fails)
				}
				if strings.Contains(test.fails, "denied") != errors.Is(err, ErrSourceDenied) {
					t.Fatalf("error %v: is it ErrSourceDenied? %t", err, errors.Is(err, ErrSourceDenied))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Identifier != test.want {
				t.Errorf("became %q, expected %q", got.Identifier, test.want)
			}
			if k, v, ok := strings.Cut(test.attr, "="); ok && got.Attrs[k] != v {
				t.Errorf("attributes are %v, expected %s", got.Attrs, test.attr)
			}
			if op.Identifier != test.id || !maps.Equal(op.Attrs, test.attrs) {
				t.Errorf("the source that was given changed to %v", op)
			}
			if test.want == test.id && test.attr == "" && got != op {
				t.Error("a source that policies let be was copied")
			}
		})
	}
}

func TestNormalSource(t *testing.T) {
	for in, want := range map[string]string{
		"git://h/r.git#main:../absolute/path": "git://h/r.git#main:absolute/path",
		"git://h/r.git#main:./a//b/../c":      "git://h/r.git#main:a/c",
		"git://h/r.git#main:..":               "git://h/r.git#main",
		"git://h/r.git#main:sub":              "git://h/r.git#main:sub",
		"git://h/r.git":                       "git://h/r.git",
		"docker-image://x:latest":             "docker-image://x:latest",
	} {
		if got := NormalSource(&llb.SourceOp{Identifier: in}).Identifier; got != want {
			t.Errorf("%s became %s, expected %s", in, got, want)
		}
	}
}

func TestBundleSource(t *testing.T) {
	const locator = "oci-layout+blob://local/bundle@sha256:1"
	op := &llb.SourceOp{Identifier: "git://h/r.git", Attrs: map[string]string{llb.AttrGitBundle: locator}}
	b, err := BundleSource(op)
	if err != nil || b.Identifier != locator || b.Attrs[llb.AttrOCIStore] != "local/bundle" {
		t.Fatalf("got %v, %v", b, err)
	}
	other := WithBundle(op, &llb.SourceOp{Identifier: locator + "2", Attrs: b.Attrs})
	if other.Attrs[llb.AttrGitBundle] != locator+"2" || other.Attrs[llb.AttrOCIStore] != "" {
		t.Errorf("with another bundle: %v", other.Attrs)
	}
	if _, err := BundleSource(&llb.SourceOp{Identifier: "git://h/r", Attrs: map[string]string{llb.AttrGitBundle: "http://x"}}); err == nil {
		t.Error("a bundle over http was taken")
	}
	if b, err := BundleSource(&llb.SourceOp{Identifier: "git://h/r"}); b != nil || err != nil {
		t.Errorf("no bundle: %v, %v", b, err)
	}
}

// TestReplaceSources checks that digests of dependants follow.
func TestReplaceSources(t *testing.T) {
	g, err := llb.ParseText("%0 = source docker-image://docker.io/library/alpine:latest\n%1 = file %0 { mkdir /a mode=0755 }\nreturn %1\n")
	if err != nil {
		t.Fatal(err)
	}
	vs := SourceVertices(g)
	if len(vs) != 1 {
		t.Fatalf("%d sources, expected 1", len(vs))
	}
	before := g.Root.Vertex.Digest()
	out, err := ReplaceSources(g, map[*llb.Vertex]*llb.SourceOp{vs[0]: {Identifier: "docker-image://docker.io/library/busybox:latest"}})
	if err != nil {
		t.Fatal(err)
	}
	if out.Root.Vertex.Digest() == before {
		t.Error("the digest of what is built on a source that was replaced is the same")
	}
	if g.Root.Vertex.Digest() != before {
		t.Error("the graph that was given changed")
	}
	if same, err := ReplaceSources(g, nil); err != nil || same != g {
		t.Error("nothing to replace, and yet the graph is another")
	}
}
