package daemon

import (
	"context"
	"errors"
	"io"
	"io/fs"

	contentpb "github.com/containerd/containerd/api/services/content/v1"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/internal/history"
)

// contentService is containerd.services.content.v1.Content, to read what the
// history names and nothing else (BuildKit's api/services/control). Writing is
// Unimplemented.
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
	if err := digest.Digest(r.Digest).Validate(); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "%q failed validation: %v", r.Digest, err)
	}
	info, ok := s.config.History.Stat(digest.Digest(r.Digest))
	if !ok {
		return nil, notFound(digest.Digest(r.Digest))
	}
	return &contentpb.InfoResponse{Info: wireInfo(info)}, nil
}

func notFound(d digest.Digest) error {
	return status.Errorf(codes.NotFound, "content %s: not found", d)
}

func wireInfo(i history.BlobInfo) *contentpb.Info {
	t := timestamppb.New(i.CreatedAt)
	return &contentpb.Info{Digest: string(i.Digest), Size: i.Size, CreatedAt: t, UpdatedAt: t}
}

// List tells of all blobs. Of filters, which no client
// sends, it knows none.
func (s *contentService) List(r *contentpb.ListContentRequest, stream contentpb.Content_ListServer) error {
	if len(r.Filters) > 0 {
		return status.Error(codes.Unimplemented, "blobs of the history cannot be filtered")
	}
	m := &contentpb.ListContentResponse{}
	for _, info := range s.config.History.Blobs() {
		m.Info = append(m.Info, wireInfo(info))
		if len(m.Info) == contentInfos {
			if err := stream.Send(m); err != nil {
				return err
			}
			m = &contentpb.ListContentResponse{}
		}
	}
	if len(m.Info) == 0 {
		return nil
	}
	return stream.Send(m)
}

// Read sends a blob, or, with an offset or a size, a part of it.
func (s *contentService) Read(r *contentpb.ReadContentRequest, stream contentpb.Content_ReadServer) error {
	d := digest.Digest(r.Digest)
	if err := d.Validate(); err != nil {
		return status.Errorf(codes.InvalidArgument, "%v", err)
	}
	blob, err := s.config.History.Open(d)
	if errors.Is(err, fs.ErrNotExist) {
		return notFound(d)
	}
	if err != nil {
		return err
	}
	defer blob.Close()
	end := blob.Size()
	switch {
	case r.Offset < 0 || r.Size < 0 || r.Offset > end:
		return status.Errorf(codes.OutOfRange, "read past object length %d bytes", end)
	case r.Size > 0 && r.Size > end-r.Offset:
		return status.Errorf(codes.OutOfRange, "read past object length %d bytes", end)
	case r.Size > 0:
		end = r.Offset + r.Size
	}
	buf := make([]byte, min(contentChunk, end-r.Offset))
	for at := r.Offset; at < end; {
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
