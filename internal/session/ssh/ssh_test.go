package ssh_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/session/ssh"
)

// agent answers every connection with what it reads, in upper case.
func agent(t *testing.T) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = c.Close() }()
				buf := make([]byte, 100)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					if _, err := c.Write([]byte(strings.ToUpper(string(buf[:n])))); err != nil {
						return
					}
				}
			}()
		}
	}()
	return socket
}

func TestForward(t *testing.T) {
	p := ssh.NewProvider(map[string]string{ssh.DefaultID: agent(t)})
	ctx := sessiontest.Context(context.Background(), sessiontest.Connect(t), sessiontest.Connect(t, p))
	path := filepath.Join(t.TempDir(), "s")
	if _, err := (ssh.Daemon{}).Listen(ctx, "other", path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("unknown agent: %v, want ErrNotExist", err)
	}
	stop, err := (ssh.Daemon{}).Listen(ctx, ssh.DefaultID, path)
	if err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	for range 2 {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
		for _, word := range []string{"sign", "this"} {
			if _, err := c.Write([]byte(word)); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(word))
			if _, err := io.ReadFull(c, got); err != nil || string(got) != strings.ToUpper(word) {
				t.Fatalf("got %q, %v", got, err)
			}
		}
	}
	stop() // ends the connections that are open, too
	for _, c := range open {
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection outlives the forwarding")
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}
