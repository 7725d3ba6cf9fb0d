package conformance

import (
	"strings"
	"testing"

	"github.com/kiln-build/kiln/conformance/peer"
)

// TestExtensionIsRefused checks that BuildKit refuses a file with an extension of
// Kiln's at the flag that it does not know, and that Kiln builds it.
func TestExtensionIsRefused(t *testing.T) {
	for _, flag := range []string{"--timeout=1m", "--memory=64m", "--cpus=1"} {
		dir := t.TempDir()
		file := "# kiln=run-limits\nFROM base\nRUN " + flag + " true\n"
		if err := peer.WriteFiles(dir, map[string]string{"Dockerfile": file}); err != nil {
			t.Fatal(err)
		}
		build := func(d *peer.Daemon, b peer.Build) []string { return shared.tools.BuildArgs(d, shared.base, b) }
		b := peer.Build{Context: dir}
		command(t, shared.kiln, build(shared.kiln, b)...)
		name, _, _ := strings.Cut(flag, "=")
		out := failing(t, shared.buildkit, build(shared.buildkit, b)...)
		if !strings.Contains(out, "unknown flag: "+name) || !strings.Contains(out, "Dockerfile:3") {
			t.Errorf("BuildKit says of %s:\n%s", flag, out)
		}
	}
}

// TestSyntaxErrorsByBuildctl checks that the real buildctl shows all errors of a
// file, each with its line.
func TestSyntaxErrorsByBuildctl(t *testing.T) {
	dir := t.TempDir()
	if err := peer.WriteFiles(dir, map[string]string{"Dockerfile": "FORM base\nRUN true\nCOPY one\nRUN --mout=x true\n"}); err != nil {
		t.Fatal(err)
	}
	out := failing(t, shared.kiln, shared.tools.BuildArgs(shared.kiln, shared.base, peer.Build{Context: dir})...)
	for _, want := range []string{
		"1 | >>> FORM base", "3 | >>> COPY one", "4 | >>> RUN --mout=x true",
		"did you mean FROM?", "Dockerfile:3: COPY has no destination", "did you mean mount?",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("buildctl does not show %q:\n%s", want, out)
		}
	}
	if first, last := strings.Index(out, ">>> FORM"), strings.Index(out, ">>> RUN --mout"); first > last {
		t.Errorf("the errors are not in the file's order:\n%s", out)
	}
}
