// Command tally reads what "go test -json" prints, shows the packages and what failed,
// passes on lines such as "corpus: 3 equal of 4", and closes with how many tests
// passed and failed. Those that have tests of
// their own below them do not count. It fails unless something passed, nothing
// failed and nothing was skipped.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "tally:", err)
		os.Exit(1)
	}
}

// event is a line of test2json, see "go doc test2json".
type event struct {
	Action, Package, Test, Output string
	ImportPath                    string // of a package that does not build
	Elapsed                       float64
}

type test struct{ pkg, name string }

func run(in io.Reader, out io.Writer) error {
	ended := map[test]string{}
	printed := map[test]*strings.Builder{}
	broken := 0 // packages that failed otherwise than by a test
	counts := regexp.MustCompile(`^\w+[\w ]*: \d+ equal of \d+\n$`)
	lines := json.NewDecoder(in)
	for {
		var e event
		if err := lines.Decode(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return fmt.Errorf("read the output of go test -json: %w", err)
		}
		t := test{e.Package, e.Test}
		switch e.Action {
		case "output", "build-output":
			if e.Action == "build-output" {
				t.pkg = e.ImportPath
			}
			if printed[t] == nil {
				printed[t] = &strings.Builder{}
			}
			if counts.MatchString(e.Output) {
				fmt.Fprint(out, e.Output)
			} else {
				printed[t].WriteString(e.Output)
			}
		case "pass", "fail", "skip":
			if e.Test == "" {
				fmt.Fprintf(out, "%-4s %s %.1fs\n", e.Action, e.Package, e.Elapsed)
				if e.Action == "fail" && !failedIn(ended, e.Package) {
					broken++
				}
			} else {
				ended[t] = e.Action
			}
			if e.Action == "fail" && printed[t] != nil {
				fmt.Fprint(out, printed[t].String())
			}
			delete(printed, t)
		}
	}
	return total(out, ended, printed, broken)
}

func failedIn(ended map[test]string, pkg string) bool {
	for t, how := range ended {
		if t.pkg == pkg && how == "fail" {
			return true
		}
	}
	return false
}

// parents are the tests that have others below them, and whether one of these failed.
func parents(ended map[test]string) map[test]bool {
	above := map[test]bool{}
	for t, how := range ended {
		for name := t.name; strings.Contains(name, "/"); {
			name = name[:strings.LastIndex(name, "/")]
			p := test{t.pkg, name}
			above[p] = above[p] || how == "fail"
		}
	}
	return above
}

func total(out io.Writer, ended map[test]string, rest map[test]*strings.Builder, broken int) error {
	passed, failed := 0, broken
	above := parents(ended)
	for t, how := range ended {
		below, isParent := above[t]
		switch {
		case how == "fail" && !(isParent && below):
			failed++
		case isParent:
		case how == "pass":
			passed++
		case how == "skip":
			fmt.Fprintf(out, "skipped, which counts as failed: %s %s\n", t.pkg, t.name)
			failed++
		}
	}
	if broken > 0 {
		for t, text := range rest {
			if t.name == "" {
				fmt.Fprint(out, text.String())
			}
		}
	}
	fmt.Fprintf(out, "%d passed, %d failed\n", passed, failed)
	if failed > 0 || passed == 0 {
		return errors.New("not all tests passed")
	}
	return nil
}
