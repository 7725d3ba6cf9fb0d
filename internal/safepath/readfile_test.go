package safepath

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadFile(t *testing.T) {
	both(t, func(t *testing.T, dir string, r *Root) {
		must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("1234"), 0o644))
		must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o755))
		must(t, r.Mknod("fifo", unix.S_IFIFO|0o644, 0))
		if text, err := r.ReadFile("file", 4); string(text) != "1234" || err != nil {
			t.Errorf("read %q, %v; want 1234", text, err)
		}
		if _, err := r.ReadFile("file", 3); err == nil || err.Error() != "read file: it exceeds 3 bytes" {
			t.Errorf("a file above the limit: error %v", err)
		}
		if _, err := r.ReadFile("folder", 4); !errors.Is(err, unix.EISDIR) {
			t.Errorf("a folder: error %v, want EISDIR", err)
		}
		if _, err := r.ReadFile("fifo", 4); !errors.Is(err, ErrSpecial) {
			t.Errorf("a fifo: error %v, want ErrSpecial", err)
		}
	})
}
