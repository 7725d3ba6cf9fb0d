package layer

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/snapshot"
)

var errStub = errors.New("to be written")

// Config is what a Store is made of.
type Config struct {
	Dir       string // a directory of its own, for mounts and files under way
	Snapshots *snapshot.Store
	Content   content.Store
	Records   Records
	Fetcher   Fetcher
}

// Store keeps layers.
type Store struct{}

// Ref is an immutable file system state. A nil Ref is the empty one.
type Ref struct{}

// Mutable is a file system state in the making.
type Mutable struct{}

// LazyBlob is a layer of an image that need not be here yet.
type LazyBlob struct {
	Desc   ocispecs.Descriptor
	DiffID digest.Digest
	Origin string // given to the Fetcher when the blob is wanted
}

// NewStore opens a store: it sweeps what a crash has left.
func NewStore(ctx context.Context, c Config) (*Store, error) { return nil, errStub }

// Close releases the store.
func (s *Store) Close() error { return nil }

// Use protects every layer touched from now on, until release, from Prune.
func (s *Store) Use() (release func()) { return func() {} }

// Get returns the layer kept under id, or ErrNotFound; a layer whose snapshot or
// parents are gone is not found.
func (s *Store) Get(ctx context.Context, id string) (*Ref, error) { return nil, errStub }

// FromBlobs returns the state that image layers make on top of each other, base
// first. Nothing is pulled until it is needed.
func (s *Store) FromBlobs(ctx context.Context, blobs []LazyBlob) (*Ref, error) { return nil, errStub }

// New begins a state on top of parent.
func (s *Store) New(ctx context.Context, parent *Ref, opt NewOptions) (*Mutable, error) {
	return nil, errStub
}

// NewOptions describe a layer to be made.
type NewOptions struct {
	Description string
	Type        string // Record.Type; "" is "regular"
}

// Merge lays refs over each other, later ones on top.
func (s *Store) Merge(ctx context.Context, refs []*Ref) (*Ref, error) { return nil, errStub }

// Diff returns what upper has that lower has not, deletions included.
func (s *Store) Diff(ctx context.Context, lower, upper *Ref) (*Ref, error) { return nil, errStub }

// Checksum is the digest of what sels select of r (nil selects everything).
func (s *Store) Checksum(ctx context.Context, r *Ref, sels []contenthash.Selector) (digest.Digest, error) {
	return "", errStub
}

// Variant says how layers are to be written as blobs.
type Variant struct {
	Compression string // "gzip", "zstd", "uncompressed"; "" is gzip
	Level       int    // 0 is the default of the compression
	Force       bool   // convert layers that came otherwise, too
	Epoch       *int64 // Unix seconds; no file's time in new layers is later
	DockerTypes bool   // Docker's media types, not OCI's
}

// Blob is a layer as it stands in an image.
type Blob struct {
	Desc   ocispecs.Descriptor
	DiffID digest.Digest
	Ref    *Ref
}

// Blobs returns the layers of r, base first, as blobs in the content store,
// making them as needed and at most once. A layer that came from a registry is
// not pulled for this: use Provide for its bytes.
func (s *Store) Blobs(ctx context.Context, r *Ref, v Variant) ([]Blob, error) { return nil, errStub }

// ReaderAt opens a blob of an image, pulling it first if it is not here.
func (s *Store) ReaderAt(ctx context.Context, b Blob) (content.ReaderAt, error) { return nil, errStub }

// ID is the name under which the layer is kept; "" for nil.
func (r *Ref) ID() string { return "" }

// Parent is the layer below, or nil.
func (r *Ref) Parent() *Ref { return nil }

// Record is what is kept of the layer.
func (r *Ref) Record() Record { return Record{} }

// Mount makes the files visible, read-only, at a directory on this machine,
// until release. Nil gives an empty directory.
func (s *Store) Mount(ctx context.Context, r *Ref) (dir string, release func() error, err error) {
	return "", nil, errStub
}

// Mount makes the files visible at a directory on this machine, to be changed,
// until release. It may be called again after release, and more than once at a time.
func (m *Mutable) Mount(ctx context.Context) (dir string, release func() error, err error) {
	return "", nil, errStub
}

// Mounts tells how to mount the state for those who mount for themselves.
func (m *Mutable) Mounts(ctx context.Context) ([]mount.Mount, error) { return nil, errStub }

// Commit freezes the state and keeps it. The Mutable is of no more use.
func (m *Mutable) Commit(ctx context.Context) (*Ref, error) { return nil, errStub }

// Discard forgets the state. It does nothing after Commit.
func (m *Mutable) Discard() error { return nil }
