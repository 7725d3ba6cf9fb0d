package registry

import (
	"context"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// insecureMark leads a reference to a registry that need not be secure. No
// reference has an exclamation mark of its own.
const insecureMark = "insecure!"

// Insecure marks a reference, for [Client.Resolve] and as an origin: its registry
// may speak plain http and show any certificate.
func Insecure(ref string) string { return insecureMark + ref }

// optionsOf takes the mark off a reference.
func (c *Client) optionsOf(ctx context.Context, ref string) (string, hostOptions) {
	plain, marked := strings.CutPrefix(ref, insecureMark)
	if !marked {
		return ref, hostOptions{}
	}
	named, err := reference.ParseNormalizedNamed(plain)
	return plain, hostOptions{insecure: true, plain: err == nil && !speaksTLS(ctx, reference.Domain(named), c.cfg.Stall)}
}

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
	origin, o := c.optionsOf(ctx, origin)
	f, err := c.resolver(ctx, o).Fetcher(ctx, origin)
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
