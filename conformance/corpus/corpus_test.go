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
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	bin, err := filepath.Abs(filepath.Join("..", "..", "bin"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := corpus.Start(ctx, corpus.Paths{
		Kiln: filepath.Join(bin, "kiln"), Runtime: filepath.Join(bin, "kiln-runc"), Peers: filepath.Join(bin, "peer"),
		Conformance: "..", Dir: t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer pair.Close()
	cases := pair.Cases
	if only := os.Getenv("CORPUS"); only != "" { // a pattern of names, while working on some
		cases = slices.DeleteFunc(cases, func(c *corpus.Case) bool { return !regexp.MustCompile(only).MatchString(c.Name) })
		t.Errorf("only %d cases are judged", len(cases))
	} else if len(cases) < atLeast {
		t.Errorf("the corpus has %d Dockerfiles, want %d or more", len(cases), atLeast)
	}
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
	fmt.Printf("corpus: %d equal of %d\n", equal, len(cases))
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
