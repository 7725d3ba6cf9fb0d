package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestCompletions(t *testing.T) {
	for _, tt := range []struct {
		line      string
		has, lack []string
	}{
		{"", []string{"build", "du", "help", "completion"}, []string{"complete", "dial-stdio", anyFile, "--host"}},
		{"b", []string{"build"}, []string{"du"}},
		{"--host x b", []string{"build"}, nil},
		{"build ", []string{anyDir}, []string{"help"}},
		{"build --pr", []string{"--progress", "--provenance", "--proxy-network"}, []string{"--tag"}},
		{"build . -t x --", []string{"--tag", "--host", "--help"}, []string{"--rm", "-t"}},
		{"build --progress ", []string{"plain", "rawjson"}, []string{anyDir}},
		{"build --progress=p", []string{"--progress=plain"}, []string{"--progress=tty"}},
		{"build -o type=o", []string{"type=oci,dest=", anyDir}, []string{"type=tar,dest="}},
		{"build --no-cache=", nil, []string{"plain"}},
		{"build -f x --no-such y ", []string{anyDir}, nil},
		{"build -- --", []string{anyDir}, []string{"--tag"}},
		{"cache mounts ", []string{"ls", "export"}, []string{"diff"}},
		{"completion ", []string{"bash", "zsh", "fish"}, nil},
	} {
		var words []string
		for _, s := range completions(rootCommand(&env{}), strings.Split(tt.line, " ")) {
			words = append(words, s.word)
		}
		for _, w := range tt.has {
			if !slices.Contains(words, w) {
				t.Errorf("%q: %q, want %q among them", tt.line, words, w)
			}
		}
		for _, w := range tt.lack {
			if slices.Contains(words, w) {
				t.Errorf("%q: %q, want no %q", tt.line, words, w)
			}
		}
	}
}

// A bash without further packages completes words that it has broken at "=".
func TestBashCompletion(t *testing.T) {
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, name := range []string{"a file", "another"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ words, want string }{
		{`bui`, "build"},
		{`build --progress = p`, "plain"},
		{`build --progress =`, "auto|tty|plain|rawjson|quiet"},
		{`build -o type = oc`, "oci,dest="},
		{`build -f a`, "a file|another"},
		{`build --file = ano`, "another"},
		{`nothing -`, "--help|--host|--tlsdir|--version"},
	} {
		script := "source <(kiln completion bash) && COMP_WORDS=(kiln " + tt.words + "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) && " +
			`_kiln && IFS="|" && echo "${COMPREPLY[*]}"`
		cmd := exec.Command("bash", "--norc", "-c", script)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if got := strings.TrimSpace(string(out)); err != nil || got != tt.want {
			t.Errorf("%s: %q, %v, want %q", tt.words, got, err, tt.want)
		}
	}
}
