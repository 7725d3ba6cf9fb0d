package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/internal/progress"
)

// Push is an image to be pushed.
type Push struct {
	Ref      string // normalised reference with a tag
	ByDigest bool   // push no tag
	Insecure bool   // accept plain http and any certificate
	Blobs    []Blob // layers and configs; doubles are pushed once
	// Manifests come in the order in which they are pushed: an index after what
	// it lists. The last one gets the tag.
	Manifests []Manifest
}

// Blob is a blob to be pushed.
type Blob struct {
	Desc ocispecs.Descriptor
	// Origin is a reference to an image that has the blob, if one is known: a
	// registry that has it already need not be sent it.
	Origin string
	// Open returns the bytes from the start; it may be called again.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Manifest is a manifest or an index to be pushed.
type Manifest struct {
	Desc ocispecs.Descriptor
	Data []byte
}

// Push pushes an image. What the registry has is not sent.
func (c *Client) Push(ctx context.Context, p Push) error {
	named, err := reference.ParseNormalizedNamed(p.Ref)
	if err != nil {
		return &Error{Op: "push", Ref: p.Ref, Reason: "the name is malformed (expected host/name:tag)", Err: err}
	}
	ctx = quiet(ctx)
	o := hostOptions{insecure: p.Insecure}
	if p.Insecure {
		o.plain = !speaksTLS(ctx, reference.Domain(named), c.cfg.Stall)
	}
	resolver := c.resolver(ctx, o)
	// Each blob and manifest is named by its digest; only the last by its tag.
	pusher, err := resolver.Pusher(ctx, reference.TrimNamed(named).String())
	if err != nil {
		return explain("push", p.Ref, err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.cfg.Parallel)
	seen := map[digest.Digest]bool{}
	for _, b := range p.Blobs {
		if seen[b.Desc.Digest] {
			continue
		}
		seen[b.Desc.Digest] = true
		g.Go(func() error { return c.pushBlob(gctx, pusher, named, b) })
	}
	if err := g.Wait(); err != nil {
		return explain("push", p.Ref, err)
	}
	for i, m := range p.Manifests {
		to := pusher
		if i == len(p.Manifests)-1 && !p.ByDigest {
			if to, err = resolver.Pusher(ctx, reference.TagNameOnly(named).String()); err != nil {
				return explain("push", p.Ref, err)
			}
		}
		if err := c.pushManifest(ctx, to, p.Ref, m); err != nil {
			return explain("push", p.Ref, err)
		}
	}
	return nil
}

func (c *Client) pushBlob(ctx context.Context, to remotes.Pusher, named reference.Named, b Blob) error {
	task := progress.StepFrom(ctx).Task("pushing "+b.Desc.Digest.String(), b.Desc.Size)
	defer task.Done()
	desc := b.Desc
	desc.Annotations = nil // they belong to the manifest
	if origin, err := reference.ParseNormalizedNamed(b.Origin); err == nil && reference.Domain(origin) == reference.Domain(named) {
		// containerd's pusher asks for a mount from what this annotation names.
		desc.Annotations = map[string]string{
			"containerd.io/distribution.source." + hostname(reference.Domain(named)): reference.Path(origin),
		}
	}
	return c.repeat(ctx, func() error {
		w, err := to.Push(ctx, desc)
		if err != nil {
			return err
		}
		defer w.Close()
		src := &reopenReader{open: func() (io.ReadCloser, error) { return b.Open(ctx) }}
		defer src.close()
		return content.Copy(ctx, w, &taskSeeker{reopenReader: src, task: task}, desc.Size, desc.Digest)
	})
}

func (c *Client) pushManifest(ctx context.Context, to remotes.Pusher, ref string, m Manifest) error {
	name, _, _ := strings.Cut(ref, "@")
	task := progress.StepFrom(ctx).Task(fmt.Sprintf("pushing manifest for %s@%s", name, m.Desc.Digest), int64(len(m.Data)))
	defer task.Done()
	desc := m.Desc
	desc.Annotations = nil
	return c.repeat(ctx, func() error {
		w, err := to.Push(ctx, desc)
		if err != nil {
			return err
		}
		defer w.Close()
		src := &reopenReader{open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(m.Data)), nil }}
		defer src.close()
		return content.Copy(ctx, w, src, desc.Size, desc.Digest)
	})
}

// repeat makes an upload again if it failed for a reason that may pass. What
// transport retries is not repeated: an upload's body cannot be sent twice there.
func (c *Client) repeat(ctx context.Context, upload func() error) error {
	pause := c.cfg.Backoff
	for n := 1; ; n++ {
		err := upload()
		if err == nil || errdefs.IsAlreadyExists(err) {
			return nil
		}
		var failed *failure
		if n >= c.cfg.Attempts || ctx.Err() != nil || !errors.As(err, &failed) ||
			failed.attempts > 1 || failed.retryAfter > c.cfg.MaxPause {
			if failed != nil && failed.attempts == 1 {
				failed.attempts = n
			}
			return err
		}
		select {
		case <-time.After(max(pause, failed.retryAfter)):
		case <-ctx.Done():
			return ctx.Err()
		}
		pause = min(pause*2, c.cfg.MaxPause)
	}
}

// speaksTLS finds out how to talk to a registry that need not be secure.
func speaksTLS(ctx context.Context, host string, limit time.Duration) bool {
	addr := host
	if _, _, err := net.SplitHostPort(host); err != nil {
		addr = net.JoinHostPort(host, "443")
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // whom it talks to matters not yet
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// reopenReader reads from the start again when asked to.
type reopenReader struct {
	open func() (io.ReadCloser, error)
	rc   io.ReadCloser
}

func (r *reopenReader) Read(p []byte) (int, error) {
	if r.rc == nil {
		rc, err := r.open()
		if err != nil {
			return 0, &sourceError{err}
		}
		r.rc = rc
	}
	n, err := r.rc.Read(p)
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	return n, err
}

// Seek goes back to the start; there is no other place to go to.
func (r *reopenReader) Seek(offset int64, whence int) (int64, error) {
	if offset != 0 || whence != io.SeekStart {
		return 0, fmt.Errorf("seek to %d (whence %d): only the start can be reached", offset, whence)
	}
	r.close()
	return 0, nil
}

func (r *reopenReader) close() {
	if r.rc != nil {
		_ = r.rc.Close() // only read from
		r.rc = nil
	}
}

// taskSeeker counts what is read, and takes it back when it is read again.
type taskSeeker struct {
	*reopenReader
	task *progress.Task
	n    int64
}

func (t *taskSeeker) Read(p []byte) (int, error) {
	n, err := t.reopenReader.Read(p)
	t.n += int64(n)
	t.task.Add(int64(n))
	return n, err
}

func (t *taskSeeker) Seek(offset int64, whence int) (int64, error) {
	t.task.Add(-t.n)
	t.n = 0
	return t.reopenReader.Seek(offset, whence)
}
