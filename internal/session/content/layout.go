package content

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Layout is an OCI image layout on disk as a content store that can only be
// read. Close it after use.
type Layout struct{ root *os.Root }

// OpenLayout opens the layout in a directory.
func OpenLayout(dir string) (*Layout, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open OCI layout: %w", err)
	}
	l := &Layout{root}
	b, err := l.readFile(ocispecs.ImageLayoutFile)
	var marker ocispecs.ImageLayout
	if err == nil {
		err = json.Unmarshal(b, &marker)
	}
	if err == nil && marker.Version == "" {
		err = errors.New("no version is given")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s is no OCI layout: read its file %s: %w", dir, ocispecs.ImageLayoutFile, err), root.Close())
	}
	return l, nil
}

// Close lets the directory go.
func (l *Layout) Close() error { return l.root.Close() }

// OpenStore opens the blobs and the index in a directory, such as those of a cache,
// whether it is marked as an OCI layout or not.
func OpenStore(dir string) (*Layout, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	return &Layout{root}, nil
}

// index reads the layout's index.
func (l *Layout) index() (ocispecs.Index, error) {
	var index ocispecs.Index
	b, err := l.readFile(ocispecs.ImageIndexFile)
	if err != nil {
		return index, fmt.Errorf("read index of OCI layout: %w", err)
	}
	if err := json.Unmarshal(b, &index); err != nil {
		return index, fmt.Errorf("decode index of OCI layout: %w", err)
	}
	return index, nil
}

// Resolve returns what the layout's index has under a tag, or under an image's whole
// name; or its only entry if tag is empty.
func (l *Layout) Resolve(tag string) (ocispecs.Descriptor, error) {
	index, err := l.index()
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	for _, d := range index.Manifests {
		if tag != "" && d.Annotations[annotationName] == tag {
			return d, nil
		}
	}
	var found *ocispecs.Descriptor
	for i := range index.Manifests {
		d := &index.Manifests[i]
		if tag != "" && d.Annotations[ocispecs.AnnotationRefName] != tag {
			continue
		}
		if found != nil && found.Digest != d.Digest {
			return *d, fmt.Errorf("the OCI layout holds several images that match tag %q: name one by its digest", tag)
		}
		found = d
	}
	if found == nil {
		return ocispecs.Descriptor{}, fmt.Errorf("the OCI layout has no image with tag %q: %w: %w", tag, errdefs.ErrNotFound, fs.ErrNotExist)
	}
	return *found, nil
}

// readFile reads a small file.
func (l *Layout) readFile(name string) ([]byte, error) {
	f, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const most = 16 << 20
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && len(b) > most {
		err = fmt.Errorf("%s has more than %d bytes", name, most)
	}
	return b, err
}

// open opens a regular file, and never waits for one that is not.
func (l *Layout) open(name string) (*os.File, error) {
	info, err := l.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	return l.root.Open(name)
}

func (l *Layout) blob(d digest.Digest) (*os.File, fs.FileInfo, error) {
	if err := d.Validate(); err != nil {
		return nil, nil, fmt.Errorf("digest %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
	}
	f, err := l.open(path.Join(ocispecs.ImageBlobsDir, d.Algorithm().String(), d.Encoded()))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("the OCI layout has no blob %s: %w", d, errdefs.ErrNotFound)
	} else if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, info, nil
}

// Info tells of a blob.
func (l *Layout) Info(_ context.Context, d digest.Digest) (content.Info, error) {
	f, info, err := l.blob(d)
	if err != nil {
		return content.Info{}, err
	}
	at := info.ModTime()
	return content.Info{Digest: d, Size: info.Size(), CreatedAt: at, UpdatedAt: at}, f.Close()
}

// ReaderAt opens a blob.
func (l *Layout) ReaderAt(_ context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	f, info, err := l.blob(desc.Digest)
	if err != nil {
		return nil, err
	}
	return sized{f, info.Size()}, nil
}

type sized struct {
	*os.File
	size int64
}

func (s sized) Size() int64 { return s.size }

// errReadOnly answers what would change the layout.
var errReadOnly = fmt.Errorf("an OCI layout to build from is not written to: %w", errdefs.ErrNotImplemented)

// Walk tells of each blob.
func (l *Layout) Walk(ctx context.Context, fn content.WalkFunc, wanted ...string) error {
	filter, err := filters.ParseAll(wanted...)
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	return fs.WalkDir(l.root.FS(), ocispecs.ImageBlobsDir, func(name string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && name == ocispecs.ImageBlobsDir {
			return nil
		}
		d := digest.NewDigestFromEncoded(digest.Algorithm(path.Base(path.Dir(name))), path.Base(name))
		if err != nil || ctx.Err() != nil || !e.Type().IsRegular() || d.Validate() != nil {
			return errors.Join(err, ctx.Err())
		}
		info, err := l.Info(ctx, d)
		if errdefs.IsNotFound(err) {
			return nil // just removed
		} else if err != nil || !filter.Match(content.AdaptInfo(info)) {
			return err
		}
		return fn(info)
	})
}

// Update is refused.
func (l *Layout) Update(context.Context, content.Info, ...string) (content.Info, error) {
	return content.Info{}, errReadOnly
}

// Delete is refused.
func (l *Layout) Delete(context.Context, digest.Digest) error { return errReadOnly }

// Status finds no write under way.
func (l *Layout) Status(context.Context, string) (content.Status, error) {
	return content.Status{}, errReadOnly
}

// ListStatuses finds no writes under way.
func (l *Layout) ListStatuses(context.Context, ...string) ([]content.Status, error) { return nil, nil }

// Abort is refused.
func (l *Layout) Abort(context.Context, string) error { return errReadOnly }

// Writer is refused.
func (l *Layout) Writer(context.Context, ...content.WriterOpt) (content.Writer, error) {
	return nil, errReadOnly
}
