package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/progress"
)

// MaxManifest is the size in bytes above which a manifest, an index or an image
// config is refused.
const MaxManifest = 4 << 20

// Resolve asks the registry what a normalised reference means now.
func (c *Client) Resolve(ctx context.Context, ref string) (ocispecs.Descriptor, error) {
	ref, o := c.optionsOf(ctx, ref)
	o.small = true
	task := progress.StepFrom(ctx).Task("resolve "+ref, 0)
	defer task.Done()
	_, desc, err := c.resolver(ctx, o).Resolve(quiet(ctx), ref)
	if err != nil {
		return desc, explain("pull", ref, err)
	}
	if desc.Size > MaxManifest {
		return desc, &Error{Op: "pull", Ref: ref, Reason: fmt.Sprintf(
			"the manifest is said to have %d bytes, more than the %d that are allowed", desc.Size, MaxManifest)}
	}
	return desc, nil
}

// Fetch returns a blob or manifest of the repository that origin, a reference,
// names. The reader goes on by itself after a broken connection, and fails at
// the end if the bytes are not those that desc names.
func (c *Client) Fetch(ctx context.Context, origin string, desc ocispecs.Descriptor) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, &Error{Op: "pull", Ref: origin, Reason: fmt.Sprintf("malformed digest %q", desc.Digest), Err: err}
	}
	// A manifest could send us anywhere: only the registry is asked.
	desc.URLs = nil
	ctx = quiet(ctx)
	origin, o := c.optionsOf(ctx, origin)
	f, err := c.resolver(ctx, o).Fetcher(ctx, origin)
	if err != nil {
		return nil, explain("pull", origin, err)
	}
	rc, err := f.Fetch(ctx, desc)
	if err != nil {
		return nil, explain("pull", origin, err)
	}
	return &verifiedReader{rc: rc, origin: origin, desc: desc, hash: desc.Digest.Algorithm().Hash()}, nil
}

// ReadAll returns a small blob, such as a manifest or a config, whole.
func (c *Client) ReadAll(ctx context.Context, origin string, desc ocispecs.Descriptor) ([]byte, error) {
	if desc.Size > MaxManifest || desc.Size < 0 {
		return nil, &Error{Op: "pull", Ref: origin, Reason: fmt.Sprintf(
			"%s is said to have %d bytes, expected at most %d", desc.Digest, desc.Size, MaxManifest)}
	}
	rc, err := c.Fetch(ctx, origin, desc)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(io.LimitReader(rc, MaxManifest+1))
}

// verifiedReader checks what it hands on.
type verifiedReader struct {
	rc     io.ReadCloser
	origin string
	desc   ocispecs.Descriptor
	hash   hash.Hash
	n      int64
	err    error
}

func (r *verifiedReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.rc.Read(p)
	r.n += int64(n)
	r.hash.Write(p[:n])
	switch {
	case r.n > r.desc.Size:
		r.err = r.wrong(fmt.Sprintf("sent more than the %d bytes", r.desc.Size))
	case err == io.EOF && r.n < r.desc.Size:
		r.err = r.wrong(fmt.Sprintf("sent %d of the %d bytes", r.n, r.desc.Size))
	case err == io.EOF:
		r.err = io.EOF
		if got := digest.NewDigest(r.desc.Digest.Algorithm(), r.hash); got != r.desc.Digest {
			r.err = r.wrong(fmt.Sprintf("sent bytes with digest %s instead of those", got))
		}
	case err != nil:
		r.err = explain("pull", r.origin, err)
	}
	if r.err != nil && !errors.Is(r.err, io.EOF) {
		return 0, r.err
	}
	return n, r.err
}

func (r *verifiedReader) wrong(what string) error {
	return &Error{Op: "pull", Ref: r.origin, Reason: fmt.Sprintf(
		"the registry %s of %s: the image is damaged there or on its way, pull again or push it anew", what, r.desc.Digest)}
}

// Close ends the download.
func (r *verifiedReader) Close() error { return r.rc.Close() }
