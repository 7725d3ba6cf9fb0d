package export_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/kiln-build/kiln/internal/api/filesync"
	"github.com/kiln-build/kiln/internal/api/kiln"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// daemonFile writes a file of the daemon's and opens it.
func daemonFile(t *testing.T, content []byte) *os.File {
	t.Helper()
	name := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(name, content, 0o444); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() }) // read only
	return f
}

// relay passes bytes on to a socket, as ssh does, and drops what else there is.
func relay(t *testing.T) func(address string) string {
	return func(address string) string {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "relay"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() }) // Accept tells
		go func() {
			for {
				from, err := l.Accept()
				if err != nil {
					return
				}
				to, err := net.Dial("unix", strings.TrimPrefix(address, "unix://"))
				if err != nil {
					_ = from.Close() // which the client tells
					continue
				}
				for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
					go func() {
						_, _ = io.Copy(pair[0], pair[1]) // either end may close first
						_, _ = pair[0].Close(), pair[1].Close()
					}()
				}
			}
		}()
		return "unix://" + l.Addr().String()
	}
}

// TestHandedFiles sends an archive of data and files, to a file and to a writer,
// by a socket and by one through which no file goes.
func TestHandedFiles(t *testing.T) {
	content := make([]byte, 40<<20+7)
	from := rand.NewChaCha8([32]byte{1})
	_, _ = from.Read(content) // never fails
	files := []*os.File{daemonFile(t, content[:5<<20]), daemonFile(t, content[5<<20+3:])}
	for _, c := range []struct {
		name   string
		handed bool
		via    func(string) string
	}{
		{"socket", true, func(address string) string { return address }},
		{"relay", false, relay(t)},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			var written bytes.Buffer
			caller := sessiontest.ConnectThrough(t, c.via, export.NewTargets(map[int]export.Target{
				0: export.FileTarget{Name: out}, 1: export.WriterTarget{W: &written},
			}))
			for id := range 2 {
				w, err := export.OpenHanding(t.Context(), caller, id, nil)
				if err != nil {
					t.Fatal(err)
				}
				told := int64(0)
				write := func(f *os.File, size int64) {
					if _, err := f.Seek(0, io.SeekStart); err != nil {
						t.Fatal(err)
					}
					ok, err := w.WriteFile(f, size, func(n int64) { told += n })
					if err != nil || ok != c.handed {
						t.Fatalf("handed over: %v, %v, want %v", ok, err, c.handed)
					}
					if !ok {
						if _, err := io.Copy(w, f); err != nil {
							t.Fatal(err)
						}
					}
				}
				write(files[0], 5<<20)
				if _, err := w.Write(content[5<<20 : 5<<20+3]); err != nil {
					t.Fatal(err)
				}
				write(files[1], int64(len(content)-5<<20-3))
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				if want := int64(len(content) - 3); c.handed && told != want {
					t.Errorf("told of %d bytes, want %d", told, want)
				}
			}
			got, err := os.ReadFile(out)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("the file has %d bytes that differ from the %d sent, %v", len(got), len(content), err)
			}
			if !bytes.Equal(written.Bytes(), content) {
				t.Errorf("the writer has %d bytes that differ from the %d sent", written.Len(), len(content))
			}
		})
	}
}

// TestHandedFilesFail has archives with files end early on either side: nothing is
// left of them, and the daemon says why.
func TestHandedFilesFail(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	caller := sessiontest.Connect(t, export.NewTargets(map[int]export.Target{
		0: export.FileTarget{Name: out}, 1: export.WriterTarget{W: full{}},
	}))
	f := daemonFile(t, []byte("short"))
	for _, c := range []struct {
		name string
		id   int
		size int64
		want string
	}{
		{"short", 0, 100, "EOF"},
		{"full", 1, 5, "disk is full"},
		{"unwanted", 7, 5, ""},
	} {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		w, err := export.OpenHanding(t.Context(), caller, c.id, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.WriteFile(f, c.size, func(int64) {})
		if c.want == "" {
			if err = errors.Join(err, w.Close()); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one about %q", c.name, err, c.want)
		}
		w.Abort()
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left are %v, %v, want nothing", left, err)
	}
}

// liar says what it likes of files.
type liar struct{ says *kiln.ArchiveTaken }

func (l liar) Register(s *grpc.Server) {
	filesync.RegisterFileSendServer(s, filesync.UnimplementedFileSendServer{})
	kiln.RegisterArchivesServer(s, l)
}

func (l liar) Take(stream grpc.BidiStreamingServer[kiln.ArchivePiece, kiln.ArchiveTaken]) error {
	if l.says == nil {
		return nil
	}
	if err := stream.Send(l.says); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// TestClientThatLies has clients that claim to have taken what they were not sent,
// or end the archive as if it were whole.
func TestClientThatLies(t *testing.T) {
	for name, c := range map[string]struct {
		says *kiln.ArchiveTaken
		want string
	}{
		"too much": {&kiln.ArchiveTaken{Bytes: 8}, "it says that it has 8 bytes of a file, of 7 that are left"},
		"less":     {&kiln.ArchiveTaken{Bytes: -1}, "it says that it has -1 bytes"},
		"nothing":  {&kiln.ArchiveTaken{}, "it says that it has 0 bytes"},
		"early":    {nil, "it ended the archive before its end"},
	} {
		t.Run(name, func(t *testing.T) {
			w, err := export.OpenHanding(t.Context(), sessiontest.Connect(t, liar{c.says}), 0, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Abort()
			_, err = w.WriteFile(daemonFile(t, []byte("content")), 7, func(int64) {})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one about %q", err, c.want)
			}
		})
	}
}
