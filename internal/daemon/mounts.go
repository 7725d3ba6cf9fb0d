package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/kiln"
	"github.com/kiln-build/kiln/internal/cachemount"
)

// mountsService is kiln.v1.CacheMounts.
type mountsService struct {
	kiln.UnimplementedCacheMountsServer
	*Server
}

func (s *mountsService) mounts() *cachemount.Mounts { return s.config.Builder.Worker.CacheMounts }

func wireMount(u cachemount.Usage) *kiln.CacheMount {
	return &kiln.CacheMount{
		Name: u.Name, Id: cachemount.Name(u.ID), Size: u.Size, InUse: u.InUse, Uses: int64(u.Uses),
		CreatedAt: wireTimestamp(u.Created), LastUsedAt: wireTimestamp(u.LastUsed),
	}
}

func (s *mountsService) sorted() ([]cachemount.Usage, error) {
	all, err := s.mounts().Usage()
	slices.SortFunc(all, func(a, b cachemount.Usage) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Name, b.Name))
	})
	return all, err
}

// ListCacheMounts lists the folders.
func (s *mountsService) ListCacheMounts(context.Context, *kiln.ListCacheMountsRequest) (*kiln.ListCacheMountsResponse, error) {
	all, err := s.sorted()
	if err != nil {
		return nil, wireError(err)
	}
	resp := &kiln.ListCacheMountsResponse{}
	for _, u := range all {
		resp.Mounts = append(resp.Mounts, wireMount(u))
	}
	return resp, nil
}

// RemoveCacheMounts removes folders that no step uses.
func (s *mountsService) RemoveCacheMounts(_ context.Context, req *kiln.RemoveCacheMountsRequest) (*kiln.RemoveCacheMountsResponse, error) {
	all, err := s.sorted()
	if err != nil {
		return nil, wireError(err)
	}
	var ids []string
	for _, name := range req.GetIds() {
		id := s.mounts().Named(name)
		ids = append(ids, id)
		if !slices.ContainsFunc(all, func(u cachemount.Usage) bool { return u.ID == id }) {
			return nil, status.Errorf(codes.NotFound, "no cache mount %q: %q lists those that there are", name, "kiln cache mounts ls")
		}
	}
	resp := &kiln.RemoveCacheMountsResponse{}
	for _, u := range all {
		if !req.GetAll() && !slices.Contains(ids, u.ID) {
			continue
		}
		removed, err := s.mounts().Remove(u.Name)
		switch {
		case err != nil:
			return nil, wireError(err)
		case removed:
			resp.Removed = append(resp.Removed, wireMount(u))
		default:
			resp.InUse = append(resp.InUse, wireMount(u))
		}
	}
	return resp, nil
}

const (
	archivePiece  = 256 << 10        // bytes of one message
	mountPatience = 30 * time.Second // with steps that use a mount
)

// ExportCacheMount sends a folder's files.
func (s *mountsService) ExportCacheMount(req *kiln.ExportCacheMountRequest, stream grpc.ServerStreamingServer[kiln.CacheMountArchive]) error {
	w := archiveWriter(func(b []byte) error { return stream.Send(&kiln.CacheMountArchive{Data: b}) })
	err := s.mounts().WriteArchive(stream.Context(), s.mounts().Named(req.GetId()), mountPatience, w)
	if errors.Is(err, cachemount.ErrNone) {
		return status.Errorf(codes.NotFound, "%v: %q lists those that there are", err, "kiln cache mounts ls")
	}
	return wireError(err)
}

// archiveWriter sends an archive in pieces.
type archiveWriter func([]byte) error

// Write sends b.
func (w archiveWriter) Write(b []byte) (n int, err error) {
	for piece := range slices.Chunk(b, archivePiece) {
		if err := w(piece); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// ImportCacheMount puts the files of an archive in place of a folder's.
func (s *mountsService) ImportCacheMount(stream grpc.ClientStreamingServer[kiln.ImportCacheMountRequest, kiln.ImportCacheMountResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return wireError(fmt.Errorf("import cache mount: %w", err))
	}
	if first.GetId() == "" {
		return status.Error(codes.InvalidArgument, "import cache mount: the first message names none")
	}
	id, rest := s.mounts().Named(first.GetId()), first.GetData()
	archive := &pieces{next: func() ([]byte, error) {
		if rest != nil {
			b := rest
			rest = nil
			return b, nil
		}
		m, err := stream.Recv()
		return m.GetData(), err
	}}
	if err := s.mounts().ReadArchive(stream.Context(), id, archive); err != nil {
		return wireError(err)
	}
	all, err := s.mounts().Usage()
	if err != nil {
		return wireError(err)
	}
	resp := &kiln.ImportCacheMountResponse{}
	for _, u := range all {
		if u.ID == id {
			resp.Size = max(resp.Size, u.Size)
		}
	}
	return stream.SendAndClose(resp)
}

// pieces joins the pieces of an archive.
type pieces struct {
	next func() ([]byte, error)
	left []byte
}

// Read returns what has come.
func (p *pieces) Read(b []byte) (int, error) {
	for len(p.left) == 0 {
		var err error
		if p.left, err = p.next(); err != nil {
			return 0, err
		}
	}
	n := copy(b, p.left)
	p.left = p.left[n:]
	return n, nil
}
