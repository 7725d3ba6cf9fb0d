package content

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ExportStore is the id under which a client offers the store that an image is
// written to as a layout, not as an archive (BuildKit's session/content).
const ExportStore = "export"

// Output is a directory that an image is written to as an OCI layout. It is
// whole once Finish has returned.
type Output struct {
	content.Store
	dir string
}

// NewOutput makes the directory, or adds to the layout that is there.
func NewOutput(dir string) (*Output, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of OCI layout: %w", err)
	}
	store, err := local.NewStore(dir)
	if err != nil {
		return nil, fmt.Errorf("open OCI layout %s for writing: %w", dir, err)
	}
	return &Output{store, dir}, nil
}

// Finish names what was written: it makes the image an entry of the index.
// descriptor is the base64 of JSON that a build answers with, and names the image's
// names, separated by commas; without any, the entry is tagged "latest".
func (o *Output) Finish(descriptor, names string) error {
	b, err := base64.StdEncoding.DecodeString(descriptor)
	var d ocispecs.Descriptor
	if err == nil {
		err = json.Unmarshal(b, &d)
	}
	if err == nil {
		err = d.Digest.Validate()
	}
	if err != nil {
		return fmt.Errorf("decode descriptor of the image: %w", err)
	}
	if names == "" {
		return o.Tag(d, "latest")
	}
	var entries []ocispecs.Descriptor
	for name := range strings.SplitSeq(names, ",") {
		entries = append(entries, annotated(d, name, tagOf(name)))
	}
	return o.put(entries)
}

// Tag makes a descriptor the index's entry for a tag.
func (o *Output) Tag(d ocispecs.Descriptor, tag string) error {
	return o.put([]ocispecs.Descriptor{annotated(d, "", tag)})
}

// annotationName is the annotation of an entry of an index that holds an image's
// whole name, as containerd writes it.
const annotationName = "io.containerd.image.name"

// annotated is d with a name and a tag.
func annotated(d ocispecs.Descriptor, name, tag string) ocispecs.Descriptor {
	d.Annotations = maps.Clone(d.Annotations)
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	if name != "" {
		d.Annotations[annotationName] = name
	}
	d.Annotations[ocispecs.AnnotationRefName] = tag
	return d
}

// tagOf is the tag in an image's name, and its digest if it has one.
func tagOf(name string) string {
	rest, digest, hasDigest := strings.Cut(name, "@")
	tag := ""
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		tag = rest[i+1:]
	}
	switch {
	case hasDigest:
		return tag + "@" + digest
	case tag == "":
		return name
	}
	return tag
}

// put adds entries to the index, in place of those with the same names.
func (o *Output) put(entries []ocispecs.Descriptor) (err error) {
	// The directory itself is the lock, so that none is left behind.
	dir, err := os.Open(o.dir)
	if err != nil {
		return fmt.Errorf("lock index of OCI layout: %w", err)
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	if err := syscall.Flock(int(dir.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("lock index of OCI layout: %w", err)
	}
	index, err := o.index()
	if err != nil {
		return err
	}
	for _, e := range entries {
		index.Manifests = slices.DeleteFunc(index.Manifests, func(m ocispecs.Descriptor) bool {
			return m.Annotations[ocispecs.AnnotationRefName] == e.Annotations[ocispecs.AnnotationRefName] &&
				m.Annotations[annotationName] == e.Annotations[annotationName]
		})
		index.Manifests = append(index.Manifests, e)
	}
	if err := o.write(ocispecs.ImageIndexFile, index); err != nil {
		return err
	}
	return o.write(ocispecs.ImageLayoutFile, ocispecs.ImageLayout{Version: ocispecs.ImageLayoutVersion})
}

// index is the layout's index, or a new one.
func (o *Output) index() (ocispecs.Index, error) {
	index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
	l, err := OpenStore(o.dir)
	if err != nil {
		return index, err
	}
	old, err := l.index()
	if err = errors.Join(err, l.Close()); errors.Is(err, fs.ErrNotExist) {
		return index, nil
	} else if err != nil {
		return index, err
	}
	index.Manifests, index.Annotations = old.Manifests, old.Annotations
	return index, nil
}

// Sweep removes the blobs that nothing in the index leads to.
func (o *Output) Sweep(ctx context.Context) error {
	index, err := o.index()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	used := map[digest.Digest]bool{}
	children := images.ChildrenHandler(o.Store)
	mark := images.HandlerFunc(func(ctx context.Context, d ocispecs.Descriptor) ([]ocispecs.Descriptor, error) {
		mu.Lock()
		used[d.Digest] = true
		mu.Unlock()
		return children(ctx, d)
	})
	if err := images.Dispatch(ctx, mark, nil, index.Manifests...); err != nil {
		return fmt.Errorf("find the blobs in use: %w", err)
	}
	var unused []digest.Digest
	err = o.Walk(ctx, func(info content.Info) error {
		if !used[info.Digest] {
			unused = append(unused, info.Digest)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list blobs: %w", err)
	}
	for _, d := range unused {
		if err := o.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove blob: %w", err)
		}
	}
	return nil
}

// write replaces a file as a whole.
func (o *Output) write(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s of OCI layout: %w", name, err)
	}
	file := filepath.Join(o.dir, name)
	if err := os.WriteFile(file+".new", b, 0o644); err != nil {
		return fmt.Errorf("write OCI layout: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("write OCI layout: %w", err)
	}
	return nil
}
