package session

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestSocketOfAnyPath listens on sockets of short and of long paths.
func TestSocketOfAnyPath(t *testing.T) {
	deep := filepath.Join(t.TempDir(), strings.Repeat("a", 200), strings.Repeat("b", 200))
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"short": t.TempDir(), "long": deep} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "sock")
			if _, err := DialUnix(t.Context(), path); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
				t.Errorf("nobody listens: %v, want one that there is no such file, with its path", err)
			}
			l, err := ListenUnix(path)
			if err != nil {
				t.Fatal(err)
			}
			if l.Addr().String() != path {
				t.Errorf("it listens on %s", l.Addr())
			}
			if _, err := ListenUnix(path); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), path) {
				t.Errorf("a second time: %v", err)
			}
			go func() {
				conn, err := l.Accept()
				if err == nil {
					_, _ = conn.Write([]byte("x"))
					_ = conn.Close()
				}
			}()
			conn, err := DialUnix(t.Context(), path)
			if err != nil {
				t.Fatal(err)
			}
			if n, err := conn.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Errorf("read %d, %v", n, err)
			}
			if err := errors.Join(conn.Close(), l.Close()); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the socket is there after it was closed: %v", err)
			}
		})
	}
	if _, err := ListenUnix(filepath.Join(deep, strings.Repeat("s", 150))); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a long name: %v", err)
	}
}
