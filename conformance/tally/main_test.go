package main

import (
	"strings"
	"testing"
)

func TestTally(t *testing.T) {
	for _, c := range []struct{ name, in, last, err string }{
		{"pass", `{"Action":"pass","Package":"p","Test":"A/x"}
{"Action":"pass","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Elapsed":1.5}`, "1 passed, 0 failed", ""},
		{"counts", `{"Action":"output","Package":"p","Test":"A","Output":"more kinds: 3 equal of 4\n"}
{"Action":"pass","Package":"p","Test":"A"}`, "1 passed, 0 failed", ""},
		{"fail", `{"Action":"output","Package":"p","Test":"A/x","Output":"why\n"}
{"Action":"fail","Package":"p","Test":"A/x"}
{"Action":"fail","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"B"}
{"Action":"fail","Package":"p"}`, "1 passed, 1 failed", "not all"},
		{"skip", `{"Action":"skip","Package":"p","Test":"A"}
{"Action":"pass","Package":"p","Test":"B"}
{"Action":"pass","Package":"p"}`, "1 passed, 1 failed", "not all"},
		{"broken", `{"Action":"build-output","ImportPath":"p","Output":"x.go:1: no\n"}
{"Action":"fail","Package":"p"}`, "0 passed, 1 failed", "not all"},
		{"nothing", ``, "0 passed, 0 failed", "not all"},
		{"no JSON", `FAIL`, "", "read the output"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out strings.Builder
			err := run(strings.NewReader(c.in), &out)
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if last := lines[len(lines)-1]; last != c.last {
				t.Errorf("the last line is %q, want %q", last, c.last)
			}
			if c.name == "counts" && !strings.Contains(out.String(), "more kinds: 3 equal of 4\n") {
				t.Errorf("no counts in %q", out.String())
			}
			if c.name == "fail" && !strings.Contains(out.String(), "why") {
				t.Errorf("no output of what failed in %q", out.String())
			}
		})
	}
}
