package executor_test

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/executor"
)

// TestMain is a container's first process where it is called by that name.
func TestMain(m *testing.M) {
	if os.Args[0] == executor.LateProgram {
		os.Stderr.WriteString(executor.RunLate(os.Stdin, os.Stdout, os.Args[1:]).Error())
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// late runs this program as what waits, with an input.
func late(t *testing.T, input []byte, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Args = append([]string{executor.LateProgram}, args...)
	cmd.Env = []string{"KEPT=1", "REPLACED=old", "PATH=" + os.Getenv("PATH")}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func lateEnv(t *testing.T, env ...string) []byte {
	t.Helper()
	text, err := executor.LateEnv(env)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestRunLate: the process becomes the program, with what it had, what it was told
// late, and the rest of its input.
func TestRunLate(t *testing.T) {
	input := append(lateEnv(t, "REPLACED=new", "ADDED=two\nlines"), "the rest"...)
	out, _, err := late(t, input, "sh", "-c", `echo "$KEPT $REPLACED $ADDED $1"; cat`, "name", "argument")
	if err != nil {
		t.Fatal(err)
	}
	if want := executor.LateReady + "1 new two\nlines argument\nthe rest"; out != want {
		t.Errorf("it said %q, want %q", out, want)
	}
}

// TestRunLateFails: before it waits where that is known, else when it is told.
func TestRunLateFails(t *testing.T) {
	for name, c := range map[string]struct {
		input []byte
		args  []string
		want  string
	}{
		"no program":      {nil, nil, "no program to become"},
		"unknown program": {nil, []string{"no-such-program"}, "not found"},
		"end of input":    {nil, []string{"sh"}, "read environment: EOF"},
		"half a length":   {[]byte{0, 0}, []string{"sh"}, "unexpected EOF"},
		"half a list":     {lateEnv(t, "A=1")[:6], []string{"sh"}, "unexpected EOF"},
		"too long":        {[]byte{0xff, 0xff, 0xff, 0xff}, []string{"sh"}, "expected at most"},
		"no list":         {[]byte{0, 0, 0, 1, 'x'}, []string{"sh"}, "invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			out, errs, err := late(t, c.input, c.args...)
			if err == nil || !strings.Contains(errs, c.want) {
				t.Errorf("ended with %v and %q, want %q", err, errs, c.want)
			}
			if waits := out == executor.LateReady; waits != (c.want != "not found" && c.want != "no program to become") {
				t.Errorf("it said %q", out)
			}
		})
	}
	if _, err := executor.LateEnv([]string{strings.Repeat("x", 9<<20)}); err == nil {
		t.Error("an environment of 9 MiB is taken")
	}
}
