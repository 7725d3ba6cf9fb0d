package corpus_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/conformance/corpus"
)

// TestCorpusAnswers asks Kiln and BuildKit about Dockerfiles of all families, as
// clients do with --call, and compares the answers.
func TestCorpusAnswers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 35*time.Minute)
	defer cancel()
	pair := start(ctx, t, corpus.Start)
	cases := someOf(t, pair.Cases)
	for _, request := range []string{"frontend.subrequests.describe", "frontend.outline", "frontend.targets", "frontend.convertllb"} {
		t.Run(request, func(t *testing.T) {
			equal, all := 0, 0
			for _, c := range cases {
				if why := unasked(c, request); why != "" {
					t.Logf("%s is not asked about: %s", c.Name, why)
					continue
				}
				all++
				if diff := sameAnswer(ctx, pair, c, request); diff != "" {
					t.Errorf("%s: %s", c.Name, diff)
				} else {
					equal++
				}
			}
			fmt.Printf("%s: %d equal of %d\n", request, equal, all)
		})
	}
}

// unasked says why a case is not asked about, if it is not.
func unasked(c *corpus.Case, request string) string {
	switch {
	case request == "frontend.targets" && c.Mentions("MAINTAINER"):
		return "BuildKit's daemon crashes"
	case (request == "frontend.outline" || request == "frontend.convertllb") && c.Has("platform"):
		return "BuildKit looks for images of its own platform"
	case (request == "frontend.outline" || request == "frontend.convertllb") && c.Name == "contexts/named-chain-fails":
		return "BuildKit looks into a context at once, Kiln when a file of it is needed"
	case request == "frontend.targets" && slices.Contains([]string{"mounts/from-variable-fails", "run/device-bad-fails", "run/network-bad-fails"}, c.Name):
		return "BuildKit reads the values of all flags first, Kiln those of the target"
	case c.Fails != "" && strings.HasPrefix(c.Name, "attest/"):
		return "BuildKit reads what is said of attestations when there is something to attest, Kiln at once"
	}
	return ""
}

// sameAnswer asks both about a case and says in what the answers differ.
func sameAnswer(ctx context.Context, pair *corpus.Pair, c *corpus.Case, request string) string {
	ours, err := pair.Kiln.Request(ctx, c, request)
	theirs, theirErr := pair.BuildKit.Request(ctx, c, request)
	if (err == nil) != (theirErr == nil) {
		return fmt.Sprintf("errors: Kiln's %v, BuildKit's %v", err, theirErr)
	}
	if err != nil {
		return ""
	}
	names := func(m map[string][]byte) []string { return slices.Sorted(maps.Keys(m)) }
	if !slices.Equal(names(ours), names(theirs)) || string(ours["version"]) != string(theirs["version"]) {
		return fmt.Sprintf("Kiln answers with %v of version %s, BuildKit with %v of version %s", names(ours), ours["version"], names(theirs), theirs["version"])
	}
	a, b := inWords(ours["result.json"], request), inWords(theirs["result.json"], request)
	if a != b {
		return fmt.Sprintf("Kiln answers\n%s\nBuildKit\n%s", a, b)
	}
	return ""
}

// inWords is what both must answer.
func inWords(answer []byte, request string) string {
	var v any
	if err := json.Unmarshal(answer, &v); err != nil {
		return fmt.Sprintf("%v in %.500q", err, answer)
	}
	switch v := v.(type) {
	case []any: // what can be asked: BuildKit leaves out what it does not say of itself, and the sentences are ours
		var known []string
		for _, r := range v {
			r, _ := r.(map[string]any)
			if name := fmt.Sprint(r["name"]); name != "frontend.lint" && name != "frontend.convertllb" {
				known = append(known, fmt.Sprint(name, r["version"], r["type"], len(list(r["metadata"])), len(list(r["opts"]))))
			}
		}
		slices.Sort(known)
		return strings.Join(known, "\n")
	case map[string]any:
		if request == "frontend.convertllb" {
			return fmt.Sprint(operations(v))
		}
		// Arguments of one line come in any order.
		slices.SortStableFunc(list(v["args"]), func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(text)
}

func list(v any) []any {
	l, _ := v.([]any)
	return l
}

// operations counts what a graph in JSON has of each kind. What they say, the
// graphs of builds are compared for.
func operations(graph map[string]any) map[string]int {
	counts := map[string]int{}
	for part := range graph {
		counts["part "+part]++
	}
	ops, _ := graph["def"].(map[string]any)
	for _, op := range ops {
		fields, _ := op.(map[string]any)
		for kind := range fields {
			counts["operation "+kind]++
		}
	}
	return counts
}
