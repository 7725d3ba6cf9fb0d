package daemon

import (
	"context"
	"errors"
	"io/fs"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/kiln"
)

// DiskUsage tells what the root folder holds beside records.
func (s *kilnService) DiskUsage(ctx context.Context, _ *kiln.DiskUsageRequest) (*kiln.DiskUsageResponse, error) {
	m, err := s.config.Collector.Measure(ctx)
	if err != nil {
		return nil, err
	}
	resp := &kiln.DiskUsageResponse{Records: m.Records, Used: m.Used, Cap: s.config.Collector.Cap}
	for _, p := range m.Places {
		if p.Size > 0 {
			resp.Others = append(resp.Others, &kiln.Place{Name: p.Name, Description: p.Description, Size: p.Size})
		}
	}
	return resp, nil
}

// ListImages lists the names in the local image store.
func (s *kilnService) ListImages(ctx context.Context, _ *kiln.ListImagesRequest) (*kiln.ListImagesResponse, error) {
	all, err := s.config.Collector.ListImages(ctx)
	if err != nil {
		return nil, err
	}
	resp := &kiln.ListImagesResponse{}
	for _, i := range all {
		resp.Images = append(resp.Images, &kiln.Image{
			Name: i.Name, Digest: string(i.Desc.Digest), MediaType: i.Desc.MediaType, Size: i.Size, Layers: int32(i.Layers),
		})
	}
	return resp, nil
}

// RemoveImages forgets names.
func (s *kilnService) RemoveImages(ctx context.Context, r *kiln.RemoveImagesRequest) (*kiln.RemoveImagesResponse, error) {
	if r.GetAll() && len(r.GetNames()) > 0 {
		return nil, status.Error(codes.InvalidArgument, "remove images: want names or all of them, not both")
	}
	removed, freed, err := s.config.Collector.RemoveImages(ctx, r.GetNames(), r.GetAll())
	if errors.Is(err, fs.ErrNotExist) {
		err = status.Error(codes.NotFound, err.Error())
	}
	if err != nil {
		return nil, err
	}
	return &kiln.RemoveImagesResponse{Removed: removed, Freed: freed}, nil
}
