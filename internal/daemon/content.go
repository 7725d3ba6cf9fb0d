package daemon

import (
	"context"
	"errors"
	"io"
	"io/fs"

	contentpb "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Blobs are those that images, results and caches are made of.
type Blobs interface {
	content.InfoReaderProvider
	Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error
}

// contentService is containerd.services.content.v1.Content, to read what the
// history names and what images and results are made of: clients look up there
// the manifest of what they had exported. Writing is Unimplemented.
type contentService struct {
	contentpb.UnimplementedContentServer
	*Server
}

const (
	contentChunk = 1 << 20 // bytes in one message
	contentInfos = 100     // in one message
)

// Info tells the size of a blob.
func (s *contentService) Info(ctx context.Context, r *contentpb.InfoRequest) (*contentpb.InfoResponse, error) {
	d := digest.Digest(r.Digest)
	if err := d.Validate(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%q failed validation: %v", r.Digest, err)
	}
	if info, ok := s.config.History.Stat(d); ok {
		return &contentpb.InfoResponse{Info: wireInfo(content.Info{Digest: d, Size: info.Size, CreatedAt: info.CreatedAt, UpdatedAt: info.CreatedAt})}, nil
	}
	info, err := s.config.Blobs.Info(ctx, d)
	if err != nil {
		return nil, missing(d, err)
	}
	return &contentpb.InfoResponse{Info: wireInfo(info)}, nil
}

// missing is err as clients know it.
func missing(d digest.Digest, err error) error {
	if errdefs.IsNotFound(err) || errors.Is(err, fs.ErrNotExist) {
		return status.Errorf(codes.NotFound, "content %s: not found", d)
	}
	return err
}

func wireInfo(i content.Info) *contentpb.Info {
	return &contentpb.Info{
		Digest: string(i.Digest), Size: i.Size, CreatedAt: timestamppb.New(i.CreatedAt), UpdatedAt: timestamppb.New(i.UpdatedAt), Labels: i.Labels,
	}
}

// List tells of the blobs that a filter matches, and without one of the history's:
// others go some time after they were pruned, and who lists all looks for what is kept.
func (s *contentService) List(r *contentpb.ListContentRequest, stream contentpb.Content_ListServer) error {
	filter, err := filters.ParseAll(r.Filters...)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "filter of blobs: %v", err)
	}
	m := &contentpb.ListContentResponse{}
	told := map[digest.Digest]bool{}
	tell := func(i content.Info) error {
		if told[i.Digest] || !filter.Match(content.AdaptInfo(i)) {
			return nil
		}
		told[i.Digest] = true
		m.Info = append(m.Info, wireInfo(i))
		if len(m.Info) < contentInfos {
			return nil
		}
		full := m
		m = &contentpb.ListContentResponse{}
		return stream.Send(full)
	}
	for _, b := range s.config.History.Blobs() {
		if err := tell(content.Info{Digest: b.Digest, Size: b.Size, CreatedAt: b.CreatedAt, UpdatedAt: b.CreatedAt}); err != nil {
			return err
		}
	}
	if len(r.Filters) > 0 {
		if err := s.config.Blobs.Walk(stream.Context(), tell); err != nil {
			return err
		}
	}
	if len(m.Info) == 0 {
		return nil
	}
	return stream.Send(m)
}

// open opens a blob, be it of the history or of anything else.
func (s *contentService) open(ctx context.Context, d digest.Digest) (content.ReaderAt, error) {
	blob, err := s.config.History.Open(d)
	if errors.Is(err, fs.ErrNotExist) {
		return s.config.Blobs.ReaderAt(ctx, ocispecs.Descriptor{Digest: d})
	}
	if err != nil {
		return nil, err
	}
	return blob, nil
}

// Read sends a blob, or, with an offset or a size, a part of it. Clients ask for
// as much as they have room for, so what is beyond the end is left out.
func (s *contentService) Read(r *contentpb.ReadContentRequest, stream contentpb.Content_ReadServer) error {
	d := digest.Digest(r.Digest)
	if err := d.Validate(); err != nil {
		return status.Errorf(codes.InvalidArgument, "%v", err)
	}
	blob, err := s.open(stream.Context(), d)
	if err != nil {
		return missing(d, err)
	}
	defer blob.Close()
	begin, end := max(r.Offset, 0), blob.Size()
	if begin > end {
		return status.Errorf(codes.OutOfRange, "read past object length %d bytes", end)
	}
	if r.Size > 0 {
		end = begin + min(r.Size, end-begin)
	}
	buf := make([]byte, min(contentChunk, end-begin))
	for at := begin; at < end; {
		n, err := blob.ReadAt(buf[:min(int64(len(buf)), end-at)], at)
		if n == 0 {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if err := stream.Send(&contentpb.ReadContentResponse{Offset: at, Data: buf[:n]}); err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}
