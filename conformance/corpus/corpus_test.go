package corpus_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/conformance/corpus"
)

// atLeast is how many Dockerfiles the corpus has to have.
const atLeast = 300

// TestCorpus builds each Dockerfile of the corpus on Kiln and on BuildKit, twice,
// and compares what came out: it fails unless all are equal.
func TestCorpus(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 35*time.Minute)
	defer cancel()
	pair := start(ctx, t, corpus.Start)
	judge(ctx, t, "corpus", pair, chosen(t, pair.Cases))
}

// sampled is every how many-th case a test takes that is about the road which a
// graph or a question takes, not about each step, unless CORPUS_ALL is set.
const sampled = 8

// TestCorpusByImage builds Dockerfiles of all families by Kiln's own frontend and
// by BuildKit's, run from an image by the line of the syntax, and compares what
// came out: it fails unless all are equal.
func TestCorpusByImage(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 35*time.Minute)
	defer cancel()
	pair := start(ctx, t, corpus.StartImage)
	cases := someOf(t, pair.Cases)
	judge(ctx, t, "corpus by image", pair, cases)
}

// someOf are cases of all families, as many as CI has time for; all with
// CORPUS_ALL, or those that CORPUS matches.
func someOf(t *testing.T, cases []*corpus.Case) []*corpus.Case {
	t.Helper()
	cases = chosen(t, cases)
	if os.Getenv("CORPUS_ALL") != "" || os.Getenv("CORPUS") != "" {
		return cases
	}
	var some []*corpus.Case
	for i := 0; i < len(cases); i += sampled {
		some = append(some, cases[i])
	}
	return some
}

// start starts a pair of daemons that the test's end ends.
func start(ctx context.Context, t *testing.T, pairOf func(context.Context, corpus.Paths) (*corpus.Pair, error)) *corpus.Pair {
	t.Helper()
	bin, err := filepath.Abs(filepath.Join("..", "..", "bin"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := pairOf(ctx, corpus.Paths{
		Kiln: filepath.Join(bin, "kiln"), Runtime: filepath.Join(bin, "kiln-runc"), Peers: filepath.Join(bin, "peer"),
		Conformance: "..", Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pair.Close)
	return pair
}

// chosen are the cases to judge: all, or those that CORPUS matches, which then
// fails, lest a part is taken for the whole.
func chosen(t *testing.T, cases []*corpus.Case) []*corpus.Case {
	t.Helper()
	if len(cases) < atLeast {
		t.Errorf("the corpus has %d Dockerfiles, want %d or more", len(cases), atLeast)
	}
	only := os.Getenv("CORPUS")
	if only == "" {
		return cases
	}
	some := slices.DeleteFunc(slices.Clone(cases), func(c *corpus.Case) bool { return !regexp.MustCompile(only).MatchString(c.Name) })
	t.Errorf("only %d cases are judged", len(some))
	return some
}

// judge has cases built on both sides of a pair, says how many are equal, and
// fails unless all are.
func judge(ctx context.Context, t *testing.T, what string, pair *corpus.Pair, cases []*corpus.Case) {
	t.Helper()
	equal := 0
	verdicts := pair.Judge(ctx, cases)
	for _, c := range cases {
		v := <-verdicts
		t.Run(c.Name, func(t *testing.T) {
			switch {
			case v.Err != nil:
				t.Error(v.Err)
			case len(v.Diffs) > 0:
				t.Error("\n" + strings.Join(v.Diffs, "\n"))
			default:
				equal++
			}
		})
	}
	fmt.Printf("%s: %d equal of %d\n", what, equal, len(cases))
	if equal != len(cases) {
		t.Errorf("%d are not equal", len(cases)-equal)
	}
}

// TestCorpusCoversTheLanguage checks that every instruction, flag and option of
// the language is in the corpus somewhere.
func TestCorpusCoversTheLanguage(t *testing.T) {
	var all strings.Builder
	paths, err := filepath.Glob("../testdata/corpus/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	for _, pattern := range features() {
		if !regexp.MustCompile("(?m)" + pattern).MatchString(all.String()) {
			t.Errorf("nothing in the corpus matches %s", pattern)
		}
	}
}
