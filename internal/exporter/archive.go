package exporter

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
)

// annotationImageName is where tools look for the full name of an image in an
// OCI layout (a habit that containerd began).
const annotationImageName = "io.containerd.image.name"

// ArchiveFiles are the files of an OCI image layout beside its blobs: the
// marker and the index. With docker set they include those that
// "docker load" reads.
func (img *Image) ArchiveFiles(docker bool) (map[string][]byte, error) {
	index := ocispecs.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispecs.MediaTypeImageIndex}
	for _, name := range img.Names {
		d := img.Root
		d.Annotations = map[string]string{}
		maps.Copy(d.Annotations, img.Root.Annotations)
		d.Annotations[annotationImageName] = name
		if _, tag, ok := cutTag(name); ok {
			d.Annotations[ocispecs.AnnotationRefName] = tag
		}
		index.Manifests = append(index.Manifests, d)
	}
	if len(img.Names) == 0 {
		index.Manifests = []ocispecs.Descriptor{img.Root}
	}
	values := map[string]any{
		ocispecs.ImageIndexFile:  index,
		ocispecs.ImageLayoutFile: ocispecs.ImageLayout{Version: ocispecs.ImageLayoutVersion},
	}
	if docker {
		if img.Single == nil {
			return nil, errors.New("a docker archive holds one platform: build for one, or export as type=oci")
		}
		values["manifest.json"], values["repositories"] = img.dockerFiles()
	}
	files := map[string][]byte{}
	for name, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", name, err)
		}
		files[name] = b
	}
	return files, nil
}

// dockerManifest is an entry of the manifest.json of "docker save".
type dockerManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// dockerFiles makes what older versions of Docker read.
func (img *Image) dockerFiles() ([]dockerManifest, map[string]map[string]string) {
	m := dockerManifest{Config: blobPath(img.Single.Config.Digest), RepoTags: []string{}, Layers: []string{}}
	top := ""
	for _, l := range img.Single.Layers {
		m.Layers = append(m.Layers, blobPath(l.Digest))
		top = l.Digest.Encoded()
	}
	repositories := map[string]map[string]string{}
	for _, name := range img.Names {
		// Docker writes names short, as a person would.
		if named, err := reference.ParseNormalizedNamed(name); err == nil {
			name = reference.FamiliarString(named)
		}
		m.RepoTags = append(m.RepoTags, name)
		if repo, tag, ok := cutTag(name); ok && top != "" {
			if repositories[repo] == nil {
				repositories[repo] = map[string]string{}
			}
			repositories[repo][tag] = top
		}
	}
	return []dockerManifest{m}, repositories
}

// cutTag splits a name that was normalised.
func cutTag(name string) (repo, tag string, ok bool) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, "", false
	}
	return name[:i], name[i+1:], true
}

func blobPath(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// WriteArchive writes an image as a tar archive in OCI's layout. Its bytes
// depend on the image alone. Nothing is held in memory but what the image
// holds, and nothing is written to disk.
func WriteArchive(ctx context.Context, w io.Writer, img *Image, store Layers, docker bool) error {
	files, err := img.ArchiveFiles(docker)
	if err != nil {
		return err
	}
	a := newTarStream(w)
	for _, dir := range []string{"blobs/", "blobs/sha256/"} {
		h := &tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: time.Unix(0, 0)}
		if err := a.tar.WriteHeader(h); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
	}
	for _, e := range img.archiveBlobs(store) {
		if err := e.write(ctx, a); err != nil {
			return err
		}
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		e := archiveEntry{name: name, size: int64(len(files[name])), data: files[name]}
		if err := e.write(ctx, a); err != nil {
			return err
		}
	}
	return a.close()
}

// archiveEntry is a file of an archive: data, or a layer.
type archiveEntry struct {
	name  string
	size  int64
	data  []byte
	layer *layer.Blob
	store Layers
}

// archiveBlobs lists the blobs by digest, each once.
func (img *Image) archiveBlobs(store Layers) []archiveEntry {
	byName := map[string]archiveEntry{}
	for _, b := range slices.Concat(img.Manifests, img.Configs) {
		name := blobPath(b.Desc.Digest)
		byName[name] = archiveEntry{name: name, size: b.Desc.Size, data: b.Data}
	}
	for _, l := range img.Layers {
		name := blobPath(l.Desc.Digest)
		byName[name] = archiveEntry{name: name, size: l.Desc.Size, layer: &l, store: store}
	}
	entries := make([]archiveEntry, 0, len(byName))
	for _, e := range byName {
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b archiveEntry) int { return strings.Compare(a.name, b.name) })
	return entries
}

func (e archiveEntry) write(ctx context.Context, a *tarStream) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: 0o444, Size: e.size, ModTime: time.Unix(0, 0)}
	if e.layer == nil {
		return a.add(h, bytes.NewReader(e.data))
	}
	r, err := e.store.ReaderAt(ctx, *e.layer)
	if err != nil {
		return fmt.Errorf("read layer %s: %w", e.layer.Desc.Digest, err)
	}
	defer r.Close()
	if r.Size() != e.size {
		return fmt.Errorf("layer %s has %d bytes, expected %d", e.layer.Desc.Digest, r.Size(), e.size)
	}
	task := progress.StepFrom(ctx).Task("sending "+e.layer.Desc.Digest.String(), e.size)
	defer task.Done()
	if f, ok := r.(blobs.File); ok {
		return a.addFile(h, f.File, task.Add)
	}
	return a.add(h, task.Reader(io.NewSectionReader(r, 0, e.size)))
}

// Archiver exports images as archives. It is what the exporters oci and docker
// have in common.
type Archiver struct {
	Layers Layers
	Docker bool // make it loadable by Docker, too
	// Open begins a stream to the client that target names, and Store opens the
	// client's content store for an archive that is written blob by blob.
	Open  func(ctx context.Context, to Target, response map[string]string) (io.WriteCloser, error)
	Store func(to Target) (content.Store, error)
}

// kind is which exporter of images it is.
func (a Archiver) kind() string {
	if a.Docker {
		return KindDocker
	}
	return KindOCI
}

// Check tells bad attributes.
func (a Archiver) Check(attrs map[string]string) error {
	_, err := DecodeImage(a.kind(), attrs)
	return err
}

// Export sends the archive. One for Docker has no attestations: it could not
// be loaded with them.
func (a Archiver) Export(ctx context.Context, in Input, to Target) (map[string]string, error) {
	o, err := DecodeImage(a.kind(), to.Attrs)
	if err != nil {
		return nil, err
	}
	if to.Session == nil {
		return nil, errors.New("export archive: there is no client to send it to")
	}
	if a.Docker {
		if len(in.Platforms) > 1 || isSplit(in) {
			return nil, errors.New("docker exporter does not currently support exporting manifest lists: build for one platform, or export as type=oci")
		}
		in.Platforms = slices.Clone(in.Platforms)
		for i := range in.Platforms {
			in.Platforms[i].Attestations = nil
		}
	}
	img, err := Assemble(ctx, a.Layers, in, o)
	if err != nil {
		return nil, err
	}
	to.KeepDocuments(img)
	if !o.Tar {
		return img.Response, a.toStore(ctx, img, to)
	}
	// A stream that is not closed is thrown away by the client when ctx ends.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := a.Open(ctx, to, img.Response)
	if err != nil {
		return nil, err
	}
	if err := WriteArchive(ctx, w, img, a.Layers, a.Docker); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("send archive: %w", err)
	}
	return img.Response, nil
}

// toStore writes the blobs only: the client makes the index.
func (a Archiver) toStore(ctx context.Context, img *Image, to Target) error {
	store, err := a.Store(to)
	if err != nil {
		return err
	}
	for _, l := range img.Layers {
		r, err := a.Layers.ReaderAt(ctx, l)
		if err != nil {
			return fmt.Errorf("read layer %s: %w", l.Desc.Digest, err)
		}
		err = content.WriteBlob(ctx, store, "kiln-"+l.Desc.Digest.String(), content.NewReader(r), plain(l.Desc))
		if cerr := r.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return fmt.Errorf("send layer %s: %w", l.Desc.Digest, err)
		}
	}
	for _, b := range slices.Concat(img.Configs, img.Manifests) {
		if err := content.WriteBlob(ctx, store, "kiln-"+b.Desc.Digest.String(), bytes.NewReader(b.Data), plain(b.Desc)); err != nil {
			return fmt.Errorf("send %s: %w", b.Desc.Digest, err)
		}
	}
	return nil
}

// plain is a descriptor without what is said only in a place.
func plain(d ocispecs.Descriptor) ocispecs.Descriptor {
	return ocispecs.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
}
