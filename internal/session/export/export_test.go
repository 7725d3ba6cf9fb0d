package export_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk is full") }

// ended tells when a target has returned.
type ended struct {
	export.Target
	done chan error
}

func (e ended) Receive(s grpc.ServerStream) error {
	err := e.Target.Receive(s)
	e.done <- err
	return err
}

func TestExport(t *testing.T) {
	dir := t.TempDir()
	file, link, aborted := filepath.Join(dir, "a.tar"), filepath.Join(dir, "link"), filepath.Join(dir, "no.tar")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	end := make(chan error, 1)
	caller := sessiontest.Connect(t, export.NewTargets(map[int]export.Target{
		0: export.FileTarget{Name: link}, 1: export.WriterTarget{W: &out}, 2: export.WriterTarget{W: full{}},
		3: ended{export.FileTarget{Name: aborted}, end}, 4: export.FileTarget{Name: dir},
	}))
	content := bytes.Repeat([]byte("layer"), 1<<20)
	send := func(id int) error {
		w, err := export.Open(context.Background(), caller, id, map[string]string{"containerimage.digest": "sha256:x"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			w.Abort()
			return err
		}
		return w.Close()
	}
	for id := range 2 {
		if err := send(id); err != nil {
			t.Errorf("exporter %d: %v", id, err)
		}
	}
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, content) {
		t.Errorf("the file has %d bytes, %v", len(got), err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("the symlink was replaced: %v, %v", info, err)
	}
	if !bytes.Equal(out.Bytes(), content) {
		t.Errorf("the writer has %d bytes", out.Len())
	}
	if err := send(2); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("error %v, want the writer's", err)
	}
	if err := send(4); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Errorf("error %v, want one about the directory", err)
	}
	if err := send(9); err != nil {
		t.Errorf("a result that nobody wants: %v", err)
	}
	w, err := export.Open(context.Background(), caller, 3, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if err := <-end; err == nil {
		t.Error("an aborted archive was taken as whole")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left are %v, %v, want the file and the link", left, err)
	}
}

// A pipe is written to, and stays one.
func TestWriteFileToPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDWR, 0) // so that nobody waits for another side
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	err = export.WriteFile(pipe, func(w io.Writer) error {
		_, err := io.WriteString(w, "said")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(reader, got); err != nil || string(got) != "said" {
		t.Errorf("read %q, %v", got, err)
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
		t.Errorf("the pipe became %v, %v", info, err)
	}
}
