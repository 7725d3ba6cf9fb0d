package pass

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kiln-build/kiln/llb"
)

var update = flag.Bool("update", false, "write the results into testdata")

func testOptions() Options {
	return Options{Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"}, SessionID: "s1"}
}

func TestOrder(t *testing.T) {
	names := make([]string, 0)
	for _, p := range Passes(testOptions()) {
		if slices.Contains(names, p.Name) {
			t.Errorf("pass %q is listed twice", p.Name)
		}
		names = append(names, p.Name)
	}
	for _, o := range Orders() {
		before, after := slices.Index(names, o.Before), slices.Index(names, o.After)
		if before < 0 || after < 0 {
			t.Errorf("order of %q and %q: no such pass", o.Before, o.After)
		} else if before >= after {
			t.Errorf("%q must run before %q: %s", o.Before, o.After, o.Reason)
		}
		if o.Reason == "" {
			t.Errorf("order of %q and %q has no reason", o.Before, o.After)
		}
	}
}

// TestPasses runs each pass alone on the graphs of testdata/<pass>.txtar, where
// NAME.in becomes NAME.want or fails with NAME.error. "all" runs all passes.
func TestPasses(t *testing.T) {
	runs := map[string]func(*llb.Graph) (*llb.Graph, error){
		"all": func(g *llb.Graph) (*llb.Graph, error) { return Run(g, testOptions()) },
	}
	for _, p := range Passes(testOptions()) {
		if p.Name != "verify" { // text is verified when it is read
			runs[p.Name] = p.Run
		}
	}
	for name, run := range runs {
		file := filepath.Join("testdata", name+".txtar")
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Errorf("pass %s has no test: %v", name, err)
			continue
		}
		t.Run(name, func(t *testing.T) { testArchive(t, archive, run) })
		if *update {
			if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func testArchive(t *testing.T, archive *txtar.Archive, run func(*llb.Graph) (*llb.Graph, error)) {
	if len(archive.Files) < 2 || len(archive.Files)%2 != 0 {
		t.Fatalf("archive has %d files, expected pairs of in and want or error", len(archive.Files))
	}
	for i := 0; i < len(archive.Files); i += 2 {
		in, want := archive.Files[i], &archive.Files[i+1]
		name, ok := strings.CutSuffix(in.Name, ".in")
		if !ok || want.Name != name+".want" && want.Name != name+".error" {
			t.Fatalf("files %s and %s are no pair", in.Name, want.Name)
		}
		t.Run(name, func(t *testing.T) {
			g, err := llb.ParseText(string(in.Data))
			if err != nil {
				t.Fatal(err)
			}
			before := g.Text()
			got, err := result(run, g)
			if (err != nil) != strings.HasSuffix(want.Name, ".error") {
				t.Fatalf("unexpected outcome: %s", got)
			}
			if g.Text() != before {
				t.Errorf("the pass changed its input to\n%s", g.Text())
			}
			if *update {
				want.Data = []byte(got)
			}
			if !bytes.Equal(want.Data, []byte(got)) {
				t.Errorf("got\n%swant\n%s", got, want.Data)
			}
			if err == nil {
				testAgain(t, run, got)
			}
		})
	}
}

// testAgain checks that a second run changes nothing.
func testAgain(t *testing.T, run func(*llb.Graph) (*llb.Graph, error), text string) {
	t.Helper()
	g, err := llb.ParseText(text)
	if err != nil {
		t.Fatalf("result is not valid: %v\n%s", err, text)
	}
	again, err := result(run, g)
	if err != nil || again != text {
		t.Errorf("a second run gives %v\n%s", err, again)
	}
}

func result(run func(*llb.Graph) (*llb.Graph, error), g *llb.Graph) (string, error) {
	out, err := run(g)
	if err != nil {
		return fmt.Sprintln(err), err
	}
	return out.Text(), nil
}

func TestUnchangedKeepsDigest(t *testing.T) {
	g, err := llb.ParseText("%0 = source docker-image://docker.io/library/alpine:latest platform=linux/amd64\n" +
		"%1 = exec %0 { args \"true\" cwd / } platform=linux/amd64\nreturn %1\n")
	if err != nil {
		t.Fatal(err)
	}
	out, err := Run(g, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if out.Root != g.Root {
		t.Errorf("a graph in normal form was copied: %s became %s", g.Root.Vertex.Digest(), out.Root.Vertex.Digest())
	}
}

func TestRequiredOnly(t *testing.T) {
	const text = "%0 = source local://context local.session=x\n%1 = merge %0\nreturn %1\n"
	g, err := llb.ParseText(text)
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions()
	o.RequiredOnly = true
	out, err := Run(g, o)
	if err != nil {
		t.Fatal(err)
	}
	if out.Root.Vertex.Op.Kind() != "merge" {
		t.Errorf("an optional pass ran:\n%s", out.Text())
	}
}
