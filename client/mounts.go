package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kiln-build/kiln/internal/api/kiln"
)

// CacheMount is a folder that RUN --mount=type=cache keeps.
type CacheMount struct {
	Name     string // of the folder, as disk usage shows it
	ID       string // as in the build file; without one there, the target
	Size     int64  // bytes on disk
	InUse    bool
	Uses     int64
	Created  time.Time
	LastUsed time.Time
}

func cacheMounts(list []*kiln.CacheMount) (out []CacheMount) {
	for _, m := range list {
		out = append(out, CacheMount{
			Name: m.GetName(), ID: m.GetId(), Size: m.GetSize(), InUse: m.GetInUse(), Uses: m.GetUses(),
			Created: m.GetCreatedAt().AsTime(), LastUsed: m.GetLastUsedAt().AsTime(),
		})
	}
	return out
}

// CacheMounts lists the cache mounts, by id.
func (c *Client) CacheMounts(ctx context.Context) ([]CacheMount, error) {
	r, err := kiln.NewCacheMountsClient(c.conn).ListCacheMounts(ctx, &kiln.ListCacheMountsRequest{})
	if err != nil {
		return nil, c.own(err)
	}
	return cacheMounts(r.GetMounts()), nil
}

// RemoveCacheMounts removes the cache mounts of ids, or all, except those that
// steps use. An id without a mount is an error.
func (c *Client) RemoveCacheMounts(ctx context.Context, all bool, ids ...string) (removed, inUse []CacheMount, err error) {
	r, err := kiln.NewCacheMountsClient(c.conn).RemoveCacheMounts(ctx, &kiln.RemoveCacheMountsRequest{Ids: ids, All: all})
	if err != nil {
		return nil, nil, c.own(err)
	}
	return cacheMounts(r.GetRemoved()), cacheMounts(r.GetInUse()), nil
}

// WriteCacheMount writes the files of a cache mount as a tar archive.
func (c *Client) WriteCacheMount(ctx context.Context, id string, w io.Writer) error {
	stream, err := kiln.NewCacheMountsClient(c.conn).ExportCacheMount(ctx, &kiln.ExportCacheMountRequest{Id: id})
	if err != nil {
		return c.own(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return c.own(err)
		}
		if _, err := w.Write(m.GetData()); err != nil {
			return fmt.Errorf("write archive: %w", err)
		}
	}
}

const archivePiece = 256 << 10 // bytes of one message

// ReadCacheMount puts the files of a tar archive, which may be compressed, in
// place of those of a cache mount, and returns what they take on disk.
func (c *Client) ReadCacheMount(ctx context.Context, id string, archive io.Reader) (size int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // a stream that is left is given up
	stream, err := kiln.NewCacheMountsClient(c.conn).ImportCacheMount(ctx)
	if err != nil {
		return 0, c.own(err)
	}
	buf := make([]byte, archivePiece)
	for first := true; ; first = false {
		n, err := archive.Read(buf)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("read archive: %w", err)
		}
		m := &kiln.ImportCacheMountRequest{Data: buf[:n]}
		if first {
			m.Id = id
		}
		// The daemon's answer says why it takes no more.
		if sendErr := stream.Send(m); sendErr != nil || err != nil {
			break
		}
	}
	r, err := stream.CloseAndRecv()
	if err != nil {
		return 0, c.own(err)
	}
	return r.GetSize(), nil
}
