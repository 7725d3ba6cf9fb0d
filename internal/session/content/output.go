package content

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// ExportStore is the id under which a client offers the store that an image is
// written to as a layout, not as an archive (WIRE.md section 7.9).
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

// Finish names what was written: it makes the image the index's entry.
// descriptor is the base64 of JSON that a build answers with.
func (o *Output) Finish(descriptor string) error {
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
	index := ocispecs.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex, Manifests: []ocispecs.Descriptor{d},
	}
	if err := o.write(ocispecs.ImageIndexFile, index); err != nil {
		return err
	}
	if err := o.write(ocispecs.ImageLayoutFile, ocispecs.ImageLayout{Version: ocispecs.ImageLayoutVersion}); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(o.dir, "ingest")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("finish OCI layout: %w", err)
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
