package cache

import (
	"context"
	"io"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Shelf keeps caches by key: small records by name, and blobs by digest. Each is
// there whole or not at all, writers never disturb each other's, and what was
// lost is missing, which is no error. All methods may be called concurrently.
type Shelf interface {
	// Records returns what is kept under names. Names that nothing is kept
	// under are missing in the answer.
	Records(ctx context.Context, names []string) (map[string][]byte, error)
	// Put keeps a record under a name: lower-case hexadecimal digits, '.' and
	// '-', at most 100 characters. If there is one already, it stays, unless
	// replace is set, and stored is false. The blobs that the record needs are
	// there, and stay there as long as it does.
	Put(ctx context.Context, name string, record []byte, needs []ocispecs.Descriptor, replace bool) (stored bool, err error)
	// Missing returns which of blobs are not kept, asking for many at once.
	Missing(ctx context.Context, blobs []ocispecs.Descriptor) ([]ocispecs.Descriptor, error)
	// Upload keeps a blob; open opens its bytes, which are verified.
	Upload(ctx context.Context, blob ocispecs.Descriptor, open func(context.Context) (io.ReadCloser, error)) error
	// Origin is where a [layer.Fetcher] gets the blobs from.
	Origin() string
}

// Shelves is a [Place] that can also keep caches by key.
type Shelves interface {
	// Shelf opens what attrs name, to be read, or to be written as well.
	Shelf(ctx context.Context, attrs map[string]string, write bool) (Shelf, error)
}

// Finisher is a [Shelf] that wants to know when a build has put everything.
type Finisher interface {
	// Finish tidies up. With root, it also writes the document by which whoever
	// owns the place finds all, for places that have no names.
	Finish(ctx context.Context, root bool) (*ocispecs.Descriptor, error)
}
