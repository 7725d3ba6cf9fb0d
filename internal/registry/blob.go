package registry

import (
	"context"
	"io"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// mostReferrers is how many documents that refer to one are looked at.
const mostReferrers = 256

// OpenBlob opens a blob of which only the digest is known, of the repository
// that origin, a reference, names. It returns its size in bytes, too. Reading
// fails at the end if the bytes are not those of the digest.
func (c *Client) OpenBlob(ctx context.Context, origin string, d digest.Digest) (io.ReadCloser, int64, error) {
	ctx = quiet(ctx)
	f, err := c.byDigest(ctx, origin)
	if err != nil {
		return nil, 0, err
	}
	rc, desc, err := f.FetchByDigest(ctx, d)
	if err != nil {
		return nil, 0, explain("pull", origin, err)
	}
	return &verifiedReader{rc: rc, origin: origin, desc: desc, hash: d.Algorithm().Hash()}, desc.Size, nil
}

func (c *Client) byDigest(ctx context.Context, origin string) (remotes.FetcherByDigest, error) {
	f, err := c.resolver(ctx, hostOptions{}).Fetcher(ctx, origin)
	if err != nil {
		return nil, explain("pull", origin, err)
	}
	by, ok := f.(remotes.FetcherByDigest)
	if !ok {
		return nil, &Error{Op: "pull", Ref: origin, Reason: "blobs cannot be had by their digest alone"}
	}
	return by, nil
}

// Referrers lists what refers to a manifest of the repository that origin
// names, such as its signatures. A registry that cannot tell has none.
func (c *Client) Referrers(ctx context.Context, origin string, d digest.Digest) ([]ocispecs.Descriptor, error) {
	ctx = quiet(ctx)
	f, err := c.resolver(ctx, hostOptions{}).Fetcher(ctx, origin)
	if err != nil {
		return nil, explain("pull", origin, err)
	}
	lister, ok := f.(remotes.ReferrersFetcher)
	if !ok {
		return nil, nil
	}
	found, err := lister.FetchReferrers(ctx, d)
	if errdefs.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, explain("pull", origin, err)
	}
	return found[:min(len(found), mostReferrers)], nil
}
