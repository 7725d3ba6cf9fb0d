package conformance

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"

	"github.com/kiln-build/kiln/conformance/peer"
)

// debugContext has a step that fails, after one that does not.
func debugContext(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := peer.WriteFiles(dir, map[string]string{
		"Dockerfile": "FROM base\nRUN echo kept > /kept\nRUN echo left > /left && false\n",
		"good":       "FROM base\nRUN echo kept > /kept\n",
	}); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBuildxInvoke has buildx's debugger run a shell in a build's result, and in
// what a failed step left, and talks with it at a terminal.
func TestBuildxInvoke(t *testing.T) {
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		t.Run(d.Name, func(t *testing.T) {
			b := newBuildx(t, d)
			b.env = append(b.env, "BUILDX_EXPERIMENTAL=1")
			dir := debugContext(t)
			result := append([]string{"debug", "--on=always", "--invoke", "/bin/sh"}, b.buildArgs(dir, "-f", filepath.Join(dir, "good"))...)
			if out := b.talk("cat /kept; cat /left", result...); !strings.Contains(out, "\nkept") || !strings.Contains(out, "No such file") {
				t.Errorf("the shell in the result showed\n%s", out)
			}
			failure := append([]string{"debug", "--on=error", "--invoke", "/bin/sh"}, b.buildArgs(dir)...)
			if out := b.talk("cat /kept /left", failure...); !strings.Contains(out, "\nkept\nleft") {
				t.Errorf("the shell in what the failed step left showed\n%s", out)
			}
		})
	}
}

// terminal is a program at a terminal of its own.
type terminal struct {
	console.Console
	mu    sync.Mutex
	shown strings.Builder
}

func (p *terminal) read() {
	buf := make([]byte, 4096)
	for {
		n, err := p.Read(buf)
		p.mu.Lock()
		p.shown.WriteString(strings.ReplaceAll(string(buf[:n]), "\r", ""))
		p.mu.Unlock()
		if err != nil {
			return // the program has left its terminal
		}
	}
}

func (p *terminal) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shown.String()
}

// until types a line again and again until a pattern is shown.
func (p *terminal) until(t *testing.T, line, pattern string) {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for range 400 {
		if re.MatchString(p.text()) {
			return
		}
		if _, err := p.Write([]byte(line + "\n")); err != nil {
			break
		}
		time.Sleep(300 * time.Millisecond)
	}
	t.Errorf("%q was not shown for %q:\n%s", pattern, line, p.text())
}

// talk runs buildx's debugger at a terminal, has its shell run a command, and
// returns all that was shown.
func (b *buildx) talk(line string, args ...string) string {
	b.t.Helper()
	outer, inner, err := console.NewPty()
	if err != nil {
		b.t.Fatal(err)
	}
	defer outer.Close()
	tty, err := os.OpenFile(inner, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	cmd := exec.CommandContext(b.t.Context(), b.program, args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = b.env, tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	_ = tty.Close() // it is the program's now
	p := &terminal{Console: outer}
	go p.read()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	p.until(b.t, "echo rea''dy", `\nready`)
	p.until(b.t, line+"; echo do''ne", `\ndone`)
	for range 400 { // the shell, then the monitor
		_, _ = p.Write([]byte("exit\n")) // whether it is there shows next
		select {
		case <-ended: // with the build's own failure, or none
			return p.text()
		case <-time.After(300 * time.Millisecond):
		}
	}
	_ = cmd.Process.Kill()
	b.t.Errorf("the debugger does not leave:\n%s", p.text())
	return p.text()
}

// TestBuildxHistoryOpen: buildx tells a program of the desktop where to show a
// build; here one that only writes down what it was told.
func TestBuildxHistoryOpen(t *testing.T) {
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		b := newBuildx(t, d)
		bin, note := t.TempDir(), filepath.Join(t.TempDir(), "note")
		if err := os.WriteFile(filepath.Join(bin, "xdg-open"), []byte("#!/bin/sh\nprintf %s \"$1\" > "+note+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		b.env = append(b.env, "PATH="+bin+":"+os.Getenv("PATH"))
		dir := debugContext(t)
		b.build(dir, "-f", filepath.Join(dir, "good"))
		ref, _ := b.run("history", "inspect", "--format", "{{.Ref}}")
		b.run("history", "open")
		want := fmt.Sprintf("docker-desktop://dashboard/build/%s/%[1]s0/%s", d.Name, strings.TrimSpace(ref))
		if got := textOf(t, note); got != want {
			t.Errorf("%s: %s is opened, want %s", d.Name, got, want)
		}
	}
}
