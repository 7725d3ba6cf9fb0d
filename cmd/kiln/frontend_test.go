package main

import (
	"path/filepath"
	"strings"
	"testing"
)

// testFrontendProgram builds with a program of this machine as the frontend.
func (r *exampleRun) testFrontendProgram(t *testing.T) {
	r.write(t, "program/note", "a note\n")
	r.write(t, "program/build.llb", "%0 = source local://context  follow=\"note\"\n%1 = file scratch { copy %0:/note /made }\nreturn %1\n")
	program, context := filepath.Join("..", "..", "cmd", "llb"), filepath.Join(r.dir, "program")
	out := r.run(t, nil, r.kiln, "frontend", "run", program, "--", "-f", filepath.Join(context, "build.llb"), "-o", filepath.Join(r.dir, "programmed"), context)
	r.want(t, "programmed/made", "a note\n")
	if len(out) > 0 {
		t.Errorf("it prints %s", out)
	}
	traced := string(r.run(t, nil, r.kiln, "debug", "frontend", program, "-f", filepath.Join(context, "build.llb"), "-o", filepath.Join(r.dir, "traced"), context))
	r.want(t, "traced/made", "a note\n")
	for _, want := range []string{"-> Ping", "<- Ping", "-> Solve", "copy %0:/note /made", "-> ReadFile", "-> Return"} {
		if !strings.Contains(traced, want) {
			t.Errorf("the trace lacks %q:\n%s", want, traced)
		}
	}
	if strings.Contains(traced, `"def"`) {
		t.Errorf("the trace has a graph that is no text:\n%s", traced)
	}
}
