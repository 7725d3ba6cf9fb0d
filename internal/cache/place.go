package cache

import (
	"context"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// MaxRecord is the largest record that a [Shelf] keeps, bytes.
const MaxRecord = 8 << 20

// CheckRecord refuses a name or a record that no [Shelf] keeps.
func CheckRecord(name string, record []byte) error {
	if len(name) == 0 || len(name) > 100 || strings.Trim(name, "0123456789abcdef.-") != "" {
		return fmt.Errorf("record %.120q: expected a name of at most 100 lower-case hexadecimal digits, dots and dashes", name)
	}
	if len(record) > MaxRecord {
		return fmt.Errorf("record %s has %d bytes, expected at most %d", name, len(record), MaxRecord)
	}
	return nil
}

// RecordsOf asks for each of names, atOnce at a time. ask returns nil for what
// is missing.
func RecordsOf(ctx context.Context, names []string, atOnce int, ask func(context.Context, string) ([]byte, error)) (map[string][]byte, error) {
	found := map[string][]byte{}
	var mu sync.Mutex
	eg, gctx := errgroup.WithContext(ctx)
	eg.SetLimit(atOnce)
	for _, n := range names {
		if gctx.Err() != nil {
			break
		}
		eg.Go(func() error {
			b, err := ask(gctx, n)
			if err == nil && b != nil {
				mu.Lock()
				found[n] = b
				mu.Unlock()
			}
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	return found, context.Cause(ctx)
}

// MissingOf asks about each of blobs, atOnce at a time, and returns those that
// are not there, in their order.
func MissingOf(ctx context.Context, blobs []ocispecs.Descriptor, atOnce int, has func(context.Context, ocispecs.Descriptor) (bool, error)) (missing []ocispecs.Descriptor, err error) {
	there := make([]bool, len(blobs))
	eg, gctx := errgroup.WithContext(ctx)
	eg.SetLimit(atOnce)
	for i, b := range blobs {
		if gctx.Err() != nil {
			break
		}
		eg.Go(func() (err error) {
			there[i], err = has(gctx, b)
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for i, b := range blobs {
		if !there[i] {
			missing = append(missing, b)
		}
	}
	return missing, nil
}

// Verified hands on a blob's bytes. Its last read fails if they were not those
// that desc names; where says from whom they come.
func Verified(rc io.ReadCloser, desc ocispecs.Descriptor, where string) io.ReadCloser {
	return &verified{rc: rc, desc: desc, where: where, hash: desc.Digest.Algorithm().Hash()}
}

type verified struct {
	rc    io.ReadCloser
	desc  ocispecs.Descriptor
	where string
	hash  hash.Hash
	n     int64
}

func (v *verified) Read(p []byte) (int, error) {
	n, err := v.rc.Read(p)
	v.n += int64(n)
	v.hash.Write(p[:n])
	switch {
	case v.n > v.desc.Size || err == io.EOF && v.n < v.desc.Size:
		return 0, fmt.Errorf("read %s from %s: it has %d bytes there, expected %d", v.desc.Digest, v.where, v.n, v.desc.Size)
	case err == io.EOF:
		if got := digest.NewDigest(v.desc.Digest.Algorithm(), v.hash); got != v.desc.Digest {
			return 0, fmt.Errorf("read %s from %s: it is damaged there, its bytes have the digest %s", v.desc.Digest, v.where, got)
		}
	}
	return n, err
}

func (v *verified) Close() error { return v.rc.Close() }

// Locks keeps those who change the same thing apart, within this process. The
// zero value is ready for use.
type Locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	turn  chan struct{} // holds one value, taken by whoever has the lock
	users int
}

// Lock waits for its turn at name; unlock ends the turn.
func (l *Locks) Lock(ctx context.Context, name string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]*lock{}
	}
	one := l.held[name]
	if one == nil {
		one = &lock{turn: make(chan struct{}, 1)}
		l.held[name] = one
	}
	one.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(l.held, name)
		}
	}
	select {
	case one.turn <- struct{}{}:
		return func() { <-one.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
