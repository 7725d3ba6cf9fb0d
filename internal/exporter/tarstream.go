package exporter

import (
	"archive/tar"
	"bufio"
	"fmt"
	"io"
	"os"
)

// fileWriter is a stream that may take a file's content without its being read
// here. It returns false, and has written nothing, if it has to be read.
type fileWriter interface {
	WriteFile(f *os.File, size int64, taken func(n int64)) (bool, error)
}

// tarStream is a tar archive that is written to a stream.
type tarStream struct {
	tar *tar.Writer
	buf *bufio.Writer
	to  io.Writer
}

func newTarStream(to io.Writer) *tarStream {
	buf := bufio.NewWriterSize(to, 1<<20)
	return &tarStream{tar.NewWriter(buf), buf, to}
}

// add writes a file that has the content of from.
func (a *tarStream) add(h *tar.Header, from io.Reader) error {
	if err := a.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write %s to archive: %w", h.Name, err)
	}
	return a.copy(a.tar, h, from)
}

// addFile writes a file that has the content of f, which is at its beginning, and
// tells sent of what went out.
func (a *tarStream) addFile(h *tar.Header, f *os.File, sent func(n int64)) error {
	told := onlyReader{io.TeeReader(io.NewSectionReader(f, 0, h.Size), count(sent))}
	to, ok := a.to.(fileWriter)
	if !ok {
		return a.add(h, told)
	}
	// The archive's writer wants to write all content itself, so this file has one of
	// its own, for the header.
	if err := a.tar.Flush(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	err := tar.NewWriter(a.buf).WriteHeader(h)
	if err == nil {
		err = a.buf.Flush()
	}
	if err == nil {
		ok, err = to.WriteFile(f, h.Size, sent)
	}
	if err != nil {
		return fmt.Errorf("write %s to archive: %w", h.Name, err)
	}
	if !ok {
		if err := a.copy(a.buf, h, told); err != nil {
			return err
		}
	}
	_, err = a.buf.Write(make([]byte, -h.Size&(block-1)))
	return err
}

// block is what sizes of content are rounded up to in an archive, bytes.
const block = 512

// copy writes the content of h.
func (a *tarStream) copy(to io.Writer, h *tar.Header, from io.Reader) error {
	if _, err := io.CopyBuffer(onlyWriter{to}, onlyReader{from}, make([]byte, min(1<<20, h.Size+1))); err != nil {
		return fmt.Errorf("write %s to archive: %w", h.Name, err)
	}
	return nil
}

// count is told of the sizes of what is written to it.
type count func(n int64)

func (c count) Write(p []byte) (int, error) {
	c(int64(len(p)))
	return len(p), nil
}

// onlyWriter and onlyReader hide shortcuts of io.Copy, which would use smaller buffers.
type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }

// close ends the archive, but not the stream.
func (a *tarStream) close() error {
	if err := a.tar.Close(); err != nil {
		return fmt.Errorf("finish archive: %w", err)
	}
	if err := a.buf.Flush(); err != nil {
		return fmt.Errorf("send archive: %w", err)
	}
	return nil
}
