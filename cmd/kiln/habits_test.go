package main

import (
	"context"
	"io"
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

// Whoever cannot have a daemon is told why, what helps, and by the exit code that
// it was not the build.
func TestNoDaemon(t *testing.T) {
	dir := contextDir(t)
	file := dir + "/other"
	for _, tt := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{}, "set KILN_ROOT"},
		{map[string]string{"KILN_ROOT": "/" + strings.Repeat("x", 300)}, "set KILN_ROOT to a folder that is yours"},
		{map[string]string{"KILN_ROOT": file + "/below"}, "set KILN_ROOT to a folder that is yours"},
		{map[string]string{"KILN_HOST": "what"}, "want unix://PATH"},
		{map[string]string{"KILN_HOST": "unix://" + dir + "/none"}, "/none: dial unix " + dir + "/none: connect: no such file"},
	} {
		t.Chdir(dir)
		var errs strings.Builder
		e := &env{stdout: io.Discard, stderr: &errs, getenv: func(k string) string { return tt.env[k] }, uid: 1}
		if code := run(t.Context(), e, []string{"kiln", "build", "."}); code != exitDaemon || !strings.Contains(errs.String(), tt.want) {
			t.Errorf("%v: exit code %d, %s, want %q", tt.env, code, errs.String(), tt.want)
		}
	}
}

// kiln help knows each command, and suggests one for a word that it does not know.
func TestHelpCommand(t *testing.T) {
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"help"}, exitOK, "build container images"},
		{[]string{"help", "build"}, exitOK, "kiln build [options] PATH"},
		{[]string{"help", "history", "ls"}, exitOK, "kiln history ls"},
		{[]string{"help", "bulid"}, exitUsage, `Did you mean "build"?`},
		{[]string{"help", "history", "lz"}, exitUsage, `Did you mean "ls"?`},
		{[]string{"build", "help"}, exitUsage, "stat help: no such file"},
		{[]string{"completion", "tcsh"}, exitUsage, "unknown command"},
	} {
		code, stdout, stderr := kilnIn(t, t.TempDir(), "", nil, tt.args...)
		if code != tt.code || !strings.Contains(stdout+stderr, tt.want) {
			t.Errorf("kiln %q: exit code %d, %s%s, want %d and %q", tt.args, code, stdout, stderr, tt.code, tt.want)
		}
	}
}

// A file that could not be written is refused before the build.
func TestPlacesAreCheckedFirst(t *testing.T) {
	d := clienttest.Start(t, func(context.Context, *clienttest.Build) (map[string]string, error) {
		t.Error("it was built")
		return nil, nil
	})
	dir := contextDir(t)
	for _, args := range [][]string{
		{"--iidfile", "missing/id"}, {"--metadata-file", "missing/meta"}, {"--metadata-file", "sub"},
		{"-o", "type=tar,dest=missing/files.tar"}, {"-o", "type=oci,dest=missing/image.tar"}, {"-o", "type=docker,dest=sub"},
	} {
		code, _, stderr := kilnIn(t, dir, d.Address, nil, append(append([]string{"build", "-q"}, args...), ".")...)
		if code != exitFailed || !strings.Contains(stderr, args[0]+" "+args[1]) {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
		}
	}
}
