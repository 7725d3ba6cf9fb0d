package fake_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/executor/executortest"
	"github.com/kiln-build/kiln/internal/executor/fake"
)

func TestExecutor(t *testing.T) {
	executortest.Run(t, func(*testing.T) executor.Executor { return fake.New() })
}

// empty is a spec with nothing in its root file system.
func empty(t *testing.T, script string) executor.Spec {
	return executortest.SpecIn(t.TempDir(), script)
}

func TestPrograms(t *testing.T) {
	for script, want := range map[string]string{
		"mkdir -p a/b && touch a/b/c && ls a a/b":                             "a:\nb\na/b:\nc\n",
		"echo 'x y' > f; wc f; wc -l < f":                                     "1 2 4\n1\n",
		"seq 12 | head -n 2; seq 12 | tail -n 1":                              "1\n2\n12\n",
		"printf abc | head -c 2":                                              "ab",
		"echo x > f; chmod 640 f; chmod u+x,g-r f 2>&1; ls -l f":              "chmod: mode \"u+x,g-r\": want an octal number or something like u+x\n-rw-r-----        2 f\n",
		"echo x > f; chmod u+x f; ls -l f":                                    "-rwxr--r--        2 f\n",
		"ln -s /data/f l; mkdir data; echo in > data/f; cat l":                "in\n",
		"mkdir d; echo 1 > d/f; ln -s f d/l; cp -r d e; readlink e/l":         "f\n",
		"echo 1 > f; ln f g; echo 2 >> g; cat f":                              "1\n2\n",
		"mkdir d; echo 1 > f; mv f d; ls d; rm -r d; ls":                      "f\n",
		"rm none; echo $?; rm -f none; echo $?":                               "1\n0\n",
		"printf '#!/bin/sh\\necho script $1\\n' > s; chmod +x s; ./s a":       "script a\n",
		"sh -c 'echo $0 $1; exit 3' zero one; echo $?":                        "sh one\n3\n",
		"A=1 env | grep A=":                                                   "A=1\n",
		"command -v cat && command -v gcc || echo none":                       "cat\nnone\n",
		"x=$(echo sub); echo $x; echo a | while read l; do echo got $l; done": "sub\ngot a\n",
		"echo b > b; echo a > a; for f in *; do echo $f; done; sort b a":      "a\nb\na\nb\n",
		"cd /; mkdir sub; cd sub; pwd; cd ..; pwd":                            "/sub\n/\n",
		"cat < /dev/null > /dev/null; echo x > /dev/stdout":                   "x\n",
		"/bin/echo by path; busybox uname -s":                                 "by path\nLinux\n",
		"id -u; id":                                                           "0\nuid=0 gid=0\n",
	} {
		stdout, stderr, err := executortest.Finish(t, fake.New(), empty(t, script))
		if err != nil || stdout != want {
			t.Errorf("%s\nprinted %q (%v), want %q\n%s", script, stdout, err, want, stderr)
		}
	}
}

// TestStaysInside: no path of a script leads out of its root file system.
func TestStaysInside(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("machine"), 0o600); err != nil {
		t.Fatal(err)
	}
	up := strings.Repeat("../", 20)
	for _, script := range []string{
		"cat " + secret, "cat " + up + secret, "cat < " + secret,
		"ln -s " + secret + " l; cat l", "ln -s " + up + secret + " l; cat < l",
		"ln -s " + outside + " d; cat d/secret", "cp " + secret + " f", ". " + secret,
		"ls " + outside, "test -e " + secret, "cd " + outside, "command -v " + secret,
		"ln -s " + outside + " d; echo x > d/new", "ln -s " + outside + " d; rm -r d/secret", "mv " + secret + " here",
	} {
		stdout, _, err := executortest.Finish(t, fake.New(), empty(t, script))
		if err == nil || strings.Contains(stdout, "machine") {
			t.Errorf("%s: ended with %v and printed %q, want a failure", script, err, stdout)
		}
	}
	entries, err := os.ReadDir(outside)
	if err != nil || len(entries) != 1 {
		t.Errorf("outside is now %v (%v)", entries, err)
	}
}

// TestNoHostProgram: a program of the machine is not run, even where the root
// file system has it.
func TestNoHostProgram(t *testing.T) {
	for _, script := range []string{"perl -e 1", "/usr/bin/perl -e 1", "/bin/busybox", "exec /usr/bin/perl -e 1"} {
		_, stderr, err := executortest.Finish(t, fake.New(), empty(t, script))
		var exit *executor.ExitError
		if !errors.As(err, &exit) || exit.Code != 127 {
			t.Errorf("%s: ended with %v, want exit code 127\n%s", script, err, stderr)
		}
	}
}

func TestSignal(t *testing.T) {
	c, err := fake.New().Start(t.Context(), empty(t, "while :; do sleep 0.01; done"), executor.IO{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(t.Context(), 15); err != nil {
		t.Fatal(err)
	}
	var exit *executor.ExitError
	if err := c.Wait(t.Context()); !errors.As(err, &exit) || exit.Code != 143 {
		t.Errorf("ended with %v, want exit code 143", err)
	}
}
