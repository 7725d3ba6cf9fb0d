package export

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/kiln"
	"github.com/kiln-build/kiln/internal/session"
)

// step is how much of a file the client writes before it tells of it, bytes.
const step = 16 << 20

// pieces is an archive of whose files some are handed over.
type pieces struct {
	grpc.BidiStreamingClient[kiln.ArchivePiece, kiln.ArchiveTaken]
}

func (p pieces) send(data []byte) error { return p.Send(&kiln.ArchivePiece{Data: data}) }

func (p pieces) recv() error {
	_, err := p.Recv()
	return err
}

// WriteFile writes what the next size bytes of f are by handing f to the client,
// which must not be able to write to it, and tells taken of each run of bytes
// that the client has. It returns false, and has written nothing, if the client
// cannot be handed files: then they have to be read and written.
func (w *Writer) WriteFile(f *os.File, size int64, taken func(n int64)) (bool, error) {
	if w.unwanted || size == 0 {
		return true, nil
	}
	if w.handed == nil {
		return false, nil
	}
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() {
		return false, nil
	}
	if err := w.caller.HandFile(f); err != nil {
		w.handed = nil // it goes on without
		return false, nil
	}
	piece := &kiln.ArchivePiece{File: &kiln.HandedFile{Device: st.Dev, Inode: st.Ino, Size: size}}
	if err := w.handed.Send(piece); err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("send archive to client: %w", err)
	}
	for left := size; left > 0; {
		m, err := w.handed.Recv()
		if err != nil {
			if err = w.ended(err); err == nil && !w.unwanted {
				err = errors.New("send archive to client: it ended the archive before its end")
			}
			return false, err
		}
		if m.GetMissing() && left == size {
			w.handed = nil
			return false, nil
		}
		n := m.GetBytes()
		if n <= 0 || n > left {
			return false, fmt.Errorf("send archive to client: it says that it has %d bytes of a file, of %d that are left", n, left)
		}
		taken(n)
		left -= n
	}
	return true, nil
}

// archiveTarget takes an archive that write writes.
type archiveTarget interface {
	take(write func(io.Writer) error) error
}

// Take takes an archive whose files may be handed over.
func (t *Targets) Take(stream grpc.BidiStreamingServer[kiln.ArchivePiece, kiln.ArchiveTaken]) error {
	target, err := t.target(stream.Context())
	if err != nil {
		return err
	}
	archive, ok := target.(archiveTarget)
	if !ok {
		return status.Error(codes.InvalidArgument, "the output takes files, not an archive")
	}
	if err := archive.take(func(to io.Writer) error { return copyPieces(to, stream) }); err != nil {
		return status.Errorf(codes.Unknown, "write output: %v", err)
	}
	return nil
}

func copyPieces(to io.Writer, stream grpc.BidiStreamingServer[kiln.ArchivePiece, kiln.ArchiveTaken]) error {
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if file := piece.GetFile(); file != nil {
			err = copyFile(to, stream, file)
		} else {
			_, err = to.Write(piece.GetData())
		}
		if err != nil {
			return err
		}
	}
}

// copyFile writes the content of a file that was handed over. Where both are
// files, the kernel copies it.
func copyFile(to io.Writer, stream grpc.BidiStreamingServer[kiln.ArchivePiece, kiln.ArchiveTaken], file *kiln.HandedFile) error {
	f := session.TakeFile(stream.Context(), file.GetDevice(), file.GetInode())
	if f == nil {
		return stream.Send(&kiln.ArchiveTaken{Missing: true})
	}
	defer f.Close()
	for left := file.GetSize(); left > 0; {
		n, err := io.CopyN(to, f, min(left, step))
		if err != nil {
			return fmt.Errorf("copy a file of the daemon: %w", err)
		}
		left -= n
		if err := stream.Send(&kiln.ArchiveTaken{Bytes: n}); err != nil {
			return err
		}
	}
	return nil
}
