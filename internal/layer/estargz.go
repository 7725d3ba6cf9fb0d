package layer

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"

	blobs "github.com/kiln-build/kiln/internal/content"
)

// estargzName is the compression of layers whose files can be read one by one:
// gzip with a table of contents, which is a file of the archive.
const estargzName = "estargz"

// Marks of such layers in manifests.
const (
	tocAnnotation  = estargz.TOCJSONDigestAnnotation
	sizeAnnotation = estargz.StoreUncompressedSizeAnnotation
)

func checkSeekableLevel(level int) error {
	if level < 0 || level > gzip.BestCompression {
		return fmt.Errorf("estargz level %d is unknown: want 1 to 9", level)
	}
	return nil
}

// makeSeekable writes the archive that from writes as an eStargz blob.
func (s *Store) makeSeekable(ctx context.Context, r *Ref, v Variant, w *blobs.Writer, from func(io.Writer) error) error {
	level := gzip.DefaultCompression
	if v.Level > 0 {
		level = v.Level
	}
	counted := newUnzipped()
	toc, err := writeSeekable(io.MultiWriter(w, counted), level, from)
	diffID, size, errCount := counted.finish(err)
	if err := errors.Join(err, errCount); err != nil {
		return fmt.Errorf("write eStargz: %w", err)
	}
	d, err := w.Keep(ctx, ociTypes[gzipName], w.Digest())
	if err != nil {
		return err
	}
	d.Annotations = map[string]string{tocAnnotation: toc.String(), sizeAnnotation: strconv.FormatInt(size, 10)}
	return s.noteBlob(r, v, d, diffID)
}

// writeSeekable compresses an archive; what it holds stays byte for byte, with
// the table of contents behind it.
func writeSeekable(to io.Writer, level int, from func(io.Writer) error) (toc digest.Digest, err error) {
	archive, in := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := from(in)
		in.CloseWithError(err)
		done <- err
	}()
	z := estargz.NewWriterLevel(to, level)
	err = z.AppendTarLossLess(archive)
	archive.CloseWithError(err)
	if errFrom := <-done; errFrom != nil {
		return "", errFrom
	}
	if err != nil {
		return "", err
	}
	return z.Close()
}

// unzipped digests what a gzip stream holds, while it is written.
type unzipped struct {
	*io.PipeWriter
	done chan struct{}
	hash digest.Digester
	size int64
	err  error
}

func newUnzipped() *unzipped {
	r, w := io.Pipe()
	u := &unzipped{PipeWriter: w, done: make(chan struct{}), hash: digest.Canonical.Digester()}
	go func() {
		defer close(u.done)
		z, err := gzip.NewReader(r)
		if err == nil {
			u.size, err = io.Copy(u.hash.Hash(), z)
		}
		u.err = err
		r.CloseWithError(err)
	}()
	return u
}

// finish returns the digest and size, unless what was written has failed with err.
func (u *unzipped) finish(err error) (digest.Digest, int64, error) {
	u.CloseWithError(err)
	<-u.done
	return u.hash.Digest(), u.size, u.err
}
