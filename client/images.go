package client

import (
	"context"

	"github.com/kiln-build/kiln/internal/api/kiln"
)

// RootUsage is how much of the disk a daemon's whole folder takes.
type RootUsage struct {
	Records int64   `json:"records"` // bytes of what [Client.DiskUsage] lists
	Places  []Place `json:"places"`  // what else there is
	Used    int64   `json:"used"`    // bytes, all together
	Cap     int64   `json:"cap,omitempty"`
}

// Place is a part of a daemon's folder.
type Place struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Size        int64  `json:"size"` // bytes on disk
}

// RootUsage tells how much of the disk the daemon's whole folder takes.
func (c *Client) RootUsage(ctx context.Context) (*RootUsage, error) {
	r, err := kiln.NewKilnClient(c.conn).DiskUsage(ctx, &kiln.DiskUsageRequest{})
	if err != nil {
		return nil, c.own(err)
	}
	out := &RootUsage{Records: r.GetRecords(), Used: r.GetUsed(), Cap: r.GetCap(), Places: []Place{}}
	for _, p := range r.GetOthers() {
		out.Places = append(out.Places, Place{p.GetName(), p.GetDescription(), p.GetSize()})
	}
	return out, nil
}

// Image is a name in the daemon's store of images.
type Image struct {
	Name      string `json:"name"`
	Digest    string `json:"digest"`
	MediaType string `json:"mediaType"`
	Size      int64  `json:"size"` // bytes of its blobs that are there
	Layers    int    `json:"layers"`
}

// ListImages lists the names in the daemon's store of images.
func (c *Client) ListImages(ctx context.Context) ([]Image, error) {
	r, err := kiln.NewKilnClient(c.conn).ListImages(ctx, &kiln.ListImagesRequest{})
	if err != nil {
		return nil, c.own(err)
	}
	out := []Image{}
	for _, i := range r.GetImages() {
		out = append(out, Image{i.GetName(), i.GetDigest(), i.GetMediaType(), i.GetSize(), int(i.GetLayers())})
	}
	return out, nil
}

// RemoveImages has the daemon forget names, or all of them. It returns which, and
// how many bytes that freed: what other images or steps need stays.
func (c *Client) RemoveImages(ctx context.Context, all bool, names ...string) (removed []string, freed int64, err error) {
	r, err := kiln.NewKilnClient(c.conn).RemoveImages(ctx, &kiln.RemoveImagesRequest{Names: names, All: all})
	if err != nil {
		return nil, 0, c.own(err)
	}
	return r.GetRemoved(), r.GetFreed(), nil
}
