package llb

import (
	"errors"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

var update = flag.Bool("update", false, "write the results into testdata")

// TestText reads each text of testdata/text/*.txtar. NAME.in is written as
// NAME.out, which reads as itself, or fails with NAME.error.
func TestText(t *testing.T) {
	files, err := filepath.Glob("testdata/text/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(archive.Files); i += 2 {
			in, want := archive.Files[i], &archive.Files[i+1]
			name := strings.TrimSuffix(in.Name, ".in")
			t.Run(name, func(t *testing.T) {
				got, err := roundTrip(string(in.Data))
				switch {
				case want.Name == name+".out" && err == nil:
				case want.Name == name+".error" && err != nil:
					got = err.Error() + "\n"
				default:
					t.Fatalf("pair with %s: unexpected outcome: %v\n%s", want.Name, err, got)
				}
				if *update {
					want.Data = []byte(got)
				}
				if got != string(want.Data) {
					t.Errorf("got\n%swant\n%s", got, want.Data)
				}
			})
		}
		if *update {
			if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// roundTrip reads text and writes it, and checks that neither a second reading
// nor the wire loses anything.
func roundTrip(text string) (string, error) {
	g, err := ParseText(text)
	if err != nil {
		return "", err
	}
	out := g.Text()
	again, err := ParseText(out)
	if err != nil {
		return out, err
	}
	if again.Text() != out {
		return out, errors.New("text reads as " + again.Text())
	}
	def, err := g.Marshal()
	if err != nil {
		return out, err
	}
	decoded, err := Unmarshal(def)
	if err != nil {
		return out, err
	}
	if decoded.Text() != out {
		return out, errors.New("wire reads as " + decoded.Text())
	}
	return out, nil
}

func TestNames(t *testing.T) {
	g, err := ParseText(`
%0 = source docker-image://docker.io/library/alpine:latest
%1 = exec %0 { args "echo" "hi there" cwd / }
%2 = file %0 { copy %1:/a /b mkfile /c data="x" mkdir /d rm /e symlink /o /n }
%3 = merge %1 %2 name="all"
%4 = diff %0 %1
%5 = diff scratch %3
%6 = build { input "buildkit.llb.definition" %2 }
%7 = passthrough "p" %4 %5 %6 out=0,1,2
%8 = merge %1 %2
%9 = merge %7 %7#1 %7#2 %8
return %9
`)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{
		"docker-image://docker.io/library/alpine:latest": true,
		"echo hi there": true,
		"copy /a /b, mkfile /c, mkdir /d, rm /e, symlink /n -> /o": true,
		"all": true,
		"diff (docker-image://docker.io/library/alpine:latest) -> (echo hi there)": true,
		"diff scratch -> (all)": true,
		"build":                 true,
		"passthrough p":         true,
		"merge (echo hi there, copy /a /b, mkfile /c, mkdir /d, rm /e, symlink /n -> /o)":                                                      true,
		"merge (passthrough p, passthrough p, passthrough p, merge (echo hi there, copy /a /b, mkfile /c, mkdir /d, rm /e, symlink /n -> /o))": true,
	}
	got := map[string]bool{}
	for _, v := range g.Vertices() {
		got[v.Name()] = true
	}
	if !maps.Equal(got, want) {
		t.Errorf("names\n%v\nwant\n%v", got, want)
	}
}
