package layer

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/progress"
)

// imageVariant is the blob that a layer came with.
const imageVariant = "image"

// diffIDAnnotation says in records what a blob is uncompressed. It is the name
// that containerd and BuildKit use.
const diffIDAnnotation = "containerd.io/uncompressed"

// Variant says how layers are to be written as blobs.
type Variant struct {
	Compression string // "gzip", "estargz", "zstd", "uncompressed"; "" is gzip
	Level       int    // 0 is the default of the compression; see also LevelStore
	Force       bool   // convert layers that came otherwise, too
	Epoch       *int64 // Unix seconds; no file's time in new layers is later
	DockerTypes bool   // Docker's media types, not OCI's
}

// FromImage tells whether the layer came as a blob, so that its bytes are not ours to change.
func (r Record) FromImage() bool {
	_, came := r.Blobs[imageVariant]
	return came
}

// LevelStore is the gzip level that does not compress, which gzip calls 0.
const LevelStore = -2

// Blob is a layer as it stands in an image.
type Blob struct {
	Desc   ocispecs.Descriptor
	DiffID digest.Digest
	Ref    *Ref
}

func (v Variant) compression() string {
	if v.Compression == "" {
		return gzipName
	}
	return v.Compression
}

// key names all that forms the bytes of a blob.
func (v Variant) key() string {
	key := v.compression()
	if v.Level != 0 {
		key += ";level=" + strconv.Itoa(v.Level)
	}
	if v.Epoch != nil {
		key += epochKey + strconv.FormatInt(*v.Epoch, 10)
	}
	return key
}

const epochKey = ";epoch="

// changesTimes says whether the blob of a key has other times than the files.
func changesTimes(key string) bool { return strings.Contains(key, epochKey) }

// Blobs returns the layers of r, base first, as blobs in the content store,
// making them as needed and at most once. A layer that came from a registry is
// not pulled for this: use [Store.ReaderAt] for its bytes.
func (s *Store) Blobs(ctx context.Context, r *Ref, v Variant) ([]Blob, error) {
	c, err := newCodec(v)
	if err != nil {
		return nil, err
	}
	chain := r.chain()
	out := make([]Blob, len(chain))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(cap(s.cores)) // one layer keeps a core busy with reading
	for i, l := range chain {
		g.Go(func() error {
			b, err := s.blob(gctx, l, v, c)
			if err != nil {
				return fmt.Errorf("layer %s (%s): %w", l.id, l.Record().Description, err)
			}
			b.Desc.MediaType = mediaType(b.Desc.MediaType, v.DockerTypes)
			out[i] = b
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return out, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range chain {
		s.nameChainLocked(l)
	}
	return out, nil
}

func (s *Store) blob(ctx context.Context, r *Ref, v Variant, c codec) (Blob, error) {
	rec := r.Record()
	came, fromImage := rec.Blobs[imageVariant]
	if fromImage {
		have := compressionOf(came.MediaType)
		if have == gzipName && came.Annotations[tocAnnotation] != "" {
			have = estargzName
		}
		if !v.Force || have == v.compression() || have == "" {
			return Blob{Desc: came, DiffID: rec.DiffID, Ref: r}, nil
		}
		v.Epoch = nil // only what is made here is changed
	}
	key := v.key()
	if b, ok := s.kept(ctx, r, key); ok {
		return b, nil
	}
	err := s.makes.do(ctx, r.id+" "+key, func(ctx context.Context) error {
		if _, ok := s.kept(ctx, r, key); ok {
			return nil
		}
		if err := s.pin(r); err != nil {
			return err
		}
		defer s.unpin(r)
		if b, ok := s.blobOf(ctx, r, v, c); ok {
			return s.noteBlob(r, v, b.Desc, b.DiffID)
		}
		return s.make(ctx, r, v, c)
	})
	if err != nil {
		return Blob{}, err
	}
	b, ok := s.kept(ctx, r, key)
	if !ok {
		return Blob{}, fmt.Errorf("%w: the blob just made was removed", ErrNotFound)
	}
	return b, nil
}

// kept returns a blob made before.
func (s *Store) kept(ctx context.Context, r *Ref, key string) (Blob, bool) {
	d, ok := r.Record().Blobs[key]
	if !ok || !has(ctx, s.c.Content, d.Digest) {
		return Blob{}, false
	}
	diffID := digest.Digest(d.Annotations[diffIDAnnotation])
	d.Annotations = maps.Clone(d.Annotations)
	if delete(d.Annotations, diffIDAnnotation); len(d.Annotations) == 0 {
		d.Annotations = nil
	}
	return Blob{Desc: d, DiffID: diffID, Ref: r}, true
}

// blobOf is the blob of the layer that r is, laid elsewhere: it is the same, and who
// looks for that layer's blob, such as a cache, finds it. There is none if that layer
// is not kept any more.
func (s *Store) blobOf(ctx context.Context, r *Ref, v Variant, c codec) (Blob, bool) {
	of := r.Record().Of
	if of == "" {
		return Blob{}, false
	}
	l, err := s.Get(ctx, of)
	if err != nil {
		return Blob{}, false
	}
	b, err := s.blob(ctx, l, v, c)
	return b, err == nil
}

// make writes a blob and notes it.
func (s *Store) make(ctx context.Context, r *Ref, v Variant, c codec) error {
	rec := r.Record()
	task := progress.StepFrom(ctx).Task("compressing layer "+strings.TrimSpace(rec.Description), rec.Size)
	defer task.Done()
	from := s.source(ctx, r, rec, v)
	begin, plain := blobs.NewWriter, v.compression() == uncompressedName
	if plain {
		begin = blobs.NewUnhashedWriter // the archive's digest is the blob's
	}
	w, err := begin(s.c.Content)
	if err != nil {
		return err
	}
	defer w.Close() //nolint:errcheck // nothing is lost with it
	if v.compression() == estargzName {
		return s.makeSeekable(ctx, r, v, w, func(to io.Writer) error { return from(ctx, io.MultiWriter(to, taskWriter{task})) })
	}
	z := newCompressor(ctx, c, s.cores, w)
	diffID, err := z.finish(from(ctx, io.MultiWriter(z, taskWriter{task})))
	if err != nil {
		return err
	}
	made := diffID
	if !plain {
		made = w.Digest()
	}
	d, err := w.Keep(ctx, ociTypes[v.compression()], made)
	if err != nil {
		return err
	}
	return s.noteBlob(r, v, d, diffID)
}

func (s *Store) noteBlob(r *Ref, v Variant, d ocispecs.Descriptor, diffID digest.Digest) error {
	d.Annotations = maps.Clone(d.Annotations)
	if d.Annotations == nil {
		d.Annotations = map[string]string{}
	}
	d.Annotations[diffIDAnnotation] = diffID.String()
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.Epoch == nil && v.compression() != estargzName { // whose archive has a file more
		switch {
		case r.rec.DiffID == "":
			r.rec.DiffID = diffID
		case r.rec.DiffID != diffID:
			return fmt.Errorf("its files have digest %s, they had %s", diffID, r.rec.DiffID)
		}
	}
	// The old map may be in the hands of readers.
	made := maps.Clone(r.rec.Blobs)
	if made == nil {
		made = map[string]ocispecs.Descriptor{}
	}
	made[v.key()] = d
	r.rec.Blobs = made
	return s.saveLocked(r)
}

type taskWriter struct{ t *progress.Task }

func (w taskWriter) Write(p []byte) (int, error) {
	w.t.Add(int64(len(p)))
	return len(p), nil
}

// source returns what writes the archive of r: from a blob if one of the same
// archive is here or nothing else is, from the files otherwise.
func (s *Store) source(ctx context.Context, r *Ref, rec Record, v Variant) func(context.Context, io.Writer) error {
	for name, d := range rec.Blobs {
		if strings.HasPrefix(name, estargzName) {
			continue // its archive has a file more
		}
		if name == imageVariant || epochOf(name) == epochOf(v.key()) && has(ctx, s.c.Content, d.Digest) {
			return func(ctx context.Context, w io.Writer) error { return s.unzip(ctx, rec, d, w) }
		}
	}
	return func(ctx context.Context, w io.Writer) error { return s.archive(ctx, r, v.Epoch, w) }
}

func epochOf(key string) string {
	_, epoch, _ := strings.Cut(key, epochKey)
	return epoch
}

// unzip writes the archive that a blob has, pulling the blob if need be.
func (s *Store) unzip(ctx context.Context, rec Record, d ocispecs.Descriptor, w io.Writer) error {
	if err := s.pull(ctx, d, rec.Origin); err != nil {
		return err
	}
	blob, err := s.c.Content.ReaderAt(ctx, d)
	if err != nil {
		return fmt.Errorf("open blob: %w", err)
	}
	defer blob.Close()
	archive, err := decompress(content.NewReader(blob))
	if err != nil {
		return err
	}
	defer archive.Close()
	if _, err := io.Copy(w, &capped{r: archive, left: largestArchive(d.Size)}); err != nil {
		return fmt.Errorf("convert blob %s: %w", d.Digest, err)
	}
	return nil
}

// archive writes what r has over what is below it.
func (s *Store) archive(ctx context.Context, r *Ref, epoch *int64, w io.Writer) error {
	if err := s.materialize(ctx, r); err != nil {
		return err
	}
	under, err := s.openUnder(ctx, r.parent)
	if err != nil {
		return err
	}
	defer under.Close()
	rec := r.Record()
	t := newTarSink(ctx, w, epoch, func(p string) (bool, error) {
		parent, _, st, err := under.find(p)
		if err != nil || st == nil {
			return rec.Loose, err
		}
		return true, parent.Close()
	})
	t.windows = rec.Windows
	if err := t.begin(); err != nil {
		return err
	}
	if err := s.changes(ctx, r, t); err != nil {
		return fmt.Errorf("read files: %w", err)
	}
	return t.close()
}

// changes tells to what r, which must be here, has over what is below it.
func (s *Store) changes(ctx context.Context, r *Ref, to sink) error {
	rec := r.Record()
	d, err := openRoot(r.snapshotDir())
	if err != nil {
		return err
	}
	defer d.Close()
	if !s.native || rec.Loose {
		return s.walkUpper(ctx, r, d, to)
	}
	lowers, err := s.lowers(ctx, r.parent)
	if err != nil {
		return err
	}
	var before *os.File
	if len(lowers) > 0 {
		if before, err = openRoot(lowers[0]); err != nil {
			return err
		}
		defer before.Close()
	}
	return compare(ctx, before, d, to)
}

// ociTypes are the media types of layers by compression.
var ociTypes = map[string]string{
	gzipName:         ocispecs.MediaTypeImageLayerGzip,
	zstdName:         ocispecs.MediaTypeImageLayerZstd,
	uncompressedName: ocispecs.MediaTypeImageLayer,
}

const dockerLayer = "application/vnd.docker.image.rootfs.diff.tar"

// dockerTypes are Docker's names; zstd has none of its own in its
// specification, this is what moby and containerd take.
var dockerTypes = map[string]string{
	gzipName:         dockerLayer + ".gzip",
	zstdName:         dockerLayer + ".zstd",
	uncompressedName: dockerLayer,
}

// compressionOf returns the compression that a media type stands for, "" if it
// is none of ours, as those of layers that must not be distributed.
func compressionOf(mediaType string) string {
	for _, types := range []map[string]string{ociTypes, dockerTypes} {
		for compression, t := range types {
			if t == mediaType {
				return compression
			}
		}
	}
	return ""
}

// mediaType translates between the names of OCI and of Docker.
func mediaType(t string, docker bool) string {
	compression := compressionOf(t)
	switch {
	case compression == "":
		return t
	case docker:
		return dockerTypes[compression]
	}
	return ociTypes[compression]
}
