package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/client/clienttest"
)

func TestOwnPlace(t *testing.T) {
	runtime, taken, long := t.TempDir(), t.TempDir(), "/"+strings.Repeat("x", 200)
	if err := os.WriteFile(filepath.Join(taken, "kiln"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		env          map[string]string
		uid          int
		root, socket string
	}{
		{nil, 0, "/var/lib/kiln", "/run/kiln/kiln.sock"},
		{map[string]string{"HOME": "/home/u", "XDG_RUNTIME_DIR": runtime}, 1, "/home/u/.local/share/kiln", runtime + "/kiln/kiln.sock"},
		{map[string]string{"HOME": "/home/u", "XDG_RUNTIME_DIR": "/nonexistent"}, 1, "/home/u/.local/share/kiln", "/home/u/.local/share/kiln/kiln.sock"},
		{map[string]string{"HOME": "/home/u", "XDG_RUNTIME_DIR": taken}, 1, "/home/u/.local/share/kiln", "/home/u/.local/share/kiln/kiln.sock"},
		{map[string]string{"HOME": "/home/u", "XDG_DATA_HOME": "/d"}, 1, "/d/kiln", "/d/kiln/kiln.sock"},
		{map[string]string{"KILN_ROOT": long}, 1, long, long + "/kiln.sock"},
		{map[string]string{"KILN_ROOT": "/k", "XDG_RUNTIME_DIR": runtime}, 1, "/k", "/k/kiln.sock"},
	} {
		p, err := ownPlace(func(k string) string { return tt.env[k] }, tt.uid)
		if err != nil || p.root != tt.root || p.socket != tt.socket {
			t.Errorf("%v: %+v, %v, want %s and %s", tt.env, p, err, tt.root, tt.socket)
		}
	}
	if p, err := ownPlace(func(string) string { return "" }, 1); err == nil {
		t.Errorf("without any folder: %+v", p)
	}
}

// shortDir is a directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kiln")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func placeIn(dir string) place {
	return place{root: dir, socket: filepath.Join(dir, "s"), log: filepath.Join(dir, "log"), lock: filepath.Join(dir, "lock")}
}

func TestStartFails(t *testing.T) {
	var notice bytes.Buffer
	s := starter{place: placeIn(shortDir(t)), notice: &notice, command: func(place) (*exec.Cmd, error) {
		return exec.Command("sh", "-c", "echo the reason >&2; exit 3"), nil
	}}
	err := s.start(context.Background())
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "the reason") {
		t.Errorf("error %v, want the exit status and the log", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	s.command = func(place) (*exec.Cmd, error) { return exec.Command("sleep", "1"), nil }
	if err := s.start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want DeadlineExceeded", err)
	}
}

// Of two clients that find no daemon, one starts it.
func TestStartOnce(t *testing.T) {
	d := clienttest.Start(t, nil)
	p := placeIn(shortDir(t))
	var mu sync.Mutex
	starts := 0
	s := starter{place: p, notice: io.Discard, command: func(place) (*exec.Cmd, error) {
		mu.Lock()
		starts++
		mu.Unlock()
		go relay(t, p.socket, strings.TrimPrefix(d.Address, "unix://"))
		return exec.Command("sleep", "2"), nil
	}}
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			if err := s.start(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	work.Wait()
	if starts != 1 {
		t.Errorf("%d starts, want 1", starts)
	}
}

// TestRenew meets daemons of another version: one that is idle makes room for a new one,
// others stay, and the user is told.
func TestRenew(t *testing.T) {
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	var notice bytes.Buffer
	var began []*exec.Cmd
	idle := "1h"
	s := starter{place: placeIn(shortDir(t)), notice: &notice, version: client.Version{Version: "v9", Revision: "new"}}
	s.command = func(p place) (*exec.Cmd, error) {
		cmd := exec.Command(filepath.Join(bin, "kiln"), "daemon", "--executor", "fake", "--root", p.root, "--addr", p.address(), "--idle-timeout", idle)
		began = append(began, cmd)
		return cmd, nil
	}
	t.Cleanup(func() {
		for _, cmd := range began {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have left before
		}
		for len(daemonsOf(s.root)) > 0 {
			time.Sleep(10 * time.Millisecond)
		}
	})
	if err := s.start(t.Context()); err != nil {
		t.Fatal(err)
	}
	old, ok := s.answers(t.Context())
	if !ok || old.Version != "v"+version {
		t.Fatalf("the daemon is %v, %v", old, ok)
	}
	renew := func(starts int, told string) {
		t.Helper()
		notice.Reset()
		if err := s.renew(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		if len(began) != starts || !strings.Contains(notice.String(), told) {
			t.Errorf("%d starts, want %d; told %q, want %q", len(began), starts, notice.String(), told)
		}
		if _, ok := s.answers(t.Context()); !ok {
			t.Error("no daemon answers")
		}
	}
	idle = "0"
	renew(2, "kiln: the daemon was idle and of another version (v"+version)
	renew(2, "kiln: warning: the daemon that answers is of another version (v"+version)
	s.version = old
	renew(2, "")
	if notice.Len() > 0 {
		t.Errorf("told %q of a daemon of the same version", notice.String())
	}
}

// relay makes a daemon appear at a second socket.
func relay(t *testing.T, socket, to string) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Error(err)
		return
	}
	t.Cleanup(func() { _ = l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("unix", to)
		if err != nil {
			t.Error(err)
			return
		}
		go func() { _, _ = io.Copy(up, c); _ = up.Close() }()
		go func() { _, _ = io.Copy(c, up); _ = c.Close() }()
	}
}
