package export

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/kiln-build/kiln/internal/session"
)

// FileTarget is a file that takes an archive, see [WriteFile].
type FileTarget struct{ Name string }

// Receive writes what comes on stream, see take.
func (t FileTarget) Receive(stream grpc.ServerStream) error {
	return t.take(func(w io.Writer) error { return session.CopyContent(w, stream) })
}

func (t FileTarget) take(write func(io.Writer) error) error { return WriteFile(t.Name, write) }

// WriteFile makes a file of what is written. It appears whole or not at all, in the
// place of one that is there, or of what a symlink leads to; but a device or a pipe
// is written to as it is.
func WriteFile(name string, write func(io.Writer) error) error {
	given := name
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	}
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%s is a directory: want the name of a file", given)
	case !info.Mode().IsRegular():
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	beside := filepath.Join(filepath.Dir(name), ".kiln-"+rand.Text())
	f, err := os.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Close())
	if err == nil {
		err = os.Rename(beside, name)
	}
	if err != nil {
		err = errors.Join(err, os.Remove(beside))
	}
	return err
}

// WriterTarget hands an archive on to a writer, such as standard output.
type WriterTarget struct{ W io.Writer }

// Receive writes what comes on stream.
func (t WriterTarget) Receive(stream grpc.ServerStream) error {
	return session.CopyContent(t.W, stream)
}

func (t WriterTarget) take(write func(io.Writer) error) error { return write(t.W) }
