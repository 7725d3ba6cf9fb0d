package main

import (
	"context"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/client/clienttest"
	"github.com/kiln-build/kiln/internal/api/control"
)

// Each command is listed once, and a flag's line leaves room for what it does.
func TestHelpFits(t *testing.T) {
	_, help, _ := kilnIn(t, t.TempDir(), "", nil, "--help")
	seen := map[string]bool{}
	for line := range strings.SplitSeq(help, "\n") {
		if word, _, ok := strings.Cut(strings.TrimSpace(line), "   "); ok && strings.HasPrefix(line, "   ") && seen[word] {
			t.Errorf("%q is listed twice", word)
		} else if ok {
			seen[word] = true
		}
	}
	_, help, _ = kilnIn(t, t.TempDir(), "", nil, "build", "--help")
	_, flags, _ := strings.Cut(help, "OPTIONS:\n")
	flags, _, _ = strings.Cut(flags, "\n\n")
	if n := strings.Count(flags, "\n"); n < 35 {
		t.Errorf("the help lists %d flags, want 35 or more:\n%s", n, help)
	}
	for line := range strings.SplitSeq(flags, "\n") {
		if len(line) > 170 || len(line) > 34 && strings.TrimSpace(line[30:34]) == "" {
			t.Errorf("this line does not fit:\n%s", line)
		}
	}
}

// Where there is no Dockerfile but a dockerfile, that is it.
func TestLowerCaseDockerfile(t *testing.T) {
	var got *control.SolveRequest
	d := clienttest.Start(t, func(_ context.Context, b *clienttest.Build) (map[string]string, error) {
		got = b.Request
		return nil, nil
	})
	dir := t.TempDir()
	if err := writeFile(dir+"/dockerfile", []byte("FROM scratch")); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := kilnIn(t, dir, d.Address, nil, "build", "-q", ".")
	if code != 0 || got.GetFrontendAttrs()["filename"] != "dockerfile" {
		t.Errorf("exit code %d, %s, attributes %q", code, stderr, got.GetFrontendAttrs())
	}
}
