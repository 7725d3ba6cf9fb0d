package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Repository asks one repository of a registry many small questions, one request
// each. It has the logins of whoever opened it. It may be used concurrently.
type Repository struct {
	client *Client
	name   reference.Named
	host   docker.RegistryHost
	scope  string

	mu      sync.Mutex
	renewed int // how often another way in was looked for
}

// Repository opens the repository that ref, which [Insecure] may have marked,
// names. Its mirrors are not asked. Without write, it is only read from.
func (c *Client) Repository(ctx context.Context, ref string, write bool) (*Repository, error) {
	ref, o := c.optionsOf(ctx, ref)
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("repository %q is malformed (expected host/name): %w", ref, err)
	}
	hosts, err := c.hosts(ctx, reference.Domain(named), o)
	if err != nil {
		return nil, err
	}
	r := &Repository{client: c, name: reference.TrimNamed(named), host: hosts[len(hosts)-1]}
	r.scope = "repository:" + reference.Path(named) + ":pull"
	if write {
		r.scope += ",push"
	}
	return r, nil
}

// Manifest returns the manifest that a tag stands for, or nil if there is none.
func (r *Repository) Manifest(ctx context.Context, tag string) ([]byte, error) {
	resp, err := r.ask(ctx, http.MethodGet, "/manifests/"+tag, acceptManifests(), nil)
	if err != nil || resp.StatusCode == http.StatusNotFound {
		return nil, r.end(resp, "pull", err)
	}
	b, err := io.ReadAll(io.LimitReader(resp.Body, MaxManifest+1))
	if err == nil && len(b) > MaxManifest {
		err = &Error{Op: "pull", Ref: r.name.String(), Reason: fmt.Sprintf("the manifest of %s has more than %d bytes", tag, MaxManifest)}
	}
	if said := resp.Header.Get("Docker-Content-Digest"); err == nil && said != "" && digest.FromBytes(b).String() != said {
		err = &Error{Op: "pull", Ref: r.name.String(), Reason: fmt.Sprintf("the manifest of %s is damaged there or on its way: try again", tag)}
	}
	return b, r.end(resp, "pull", err)
}

// Has tells whether there is such a tag.
func (r *Repository) Has(ctx context.Context, tag string) (bool, error) {
	return r.exists(ctx, "/manifests/"+tag, acceptManifests())
}

// HasBlob tells whether there is such a blob.
func (r *Repository) HasBlob(ctx context.Context, d digest.Digest) (bool, error) {
	return r.exists(ctx, "/blobs/"+d.String(), nil)
}

func (r *Repository) exists(ctx context.Context, path string, header http.Header) (bool, error) {
	resp, err := r.ask(ctx, http.MethodHead, path, header, nil)
	found := err == nil && resp.StatusCode == http.StatusOK
	return found, r.end(resp, "pull", err)
}

// Tag puts a manifest under a tag. What it names must be there.
func (r *Repository) Tag(ctx context.Context, tag, mediaType string, manifest []byte) error {
	err := r.client.repeat(ctx, func() error {
		resp, err := r.ask(ctx, http.MethodPut, "/manifests/"+tag, http.Header{"Content-Type": {mediaType}}, manifest)
		if err == nil && resp.StatusCode == http.StatusNotFound {
			err = remoteerrors.NewUnexpectedStatusErr(resp)
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		return err
	})
	return explain("push", r.name.String()+":"+tag, err)
}

func acceptManifests() http.Header {
	return http.Header{"Accept": {ocispecs.MediaTypeImageManifest, ocispecs.MediaTypeImageIndex, "*/*"}}
}

// end closes an answer and gives an error its words.
func (r *Repository) end(resp *http.Response, op string, err error) error {
	if resp != nil {
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again
		_ = resp.Body.Close()
	}
	return explain(op, r.name.String(), err)
}

// ask makes a request, and again with credentials if it is refused. Answers
// other than success and "not found" are errors; their bodies are still open.
func (r *Repository) ask(ctx context.Context, method, path string, header http.Header, body []byte) (*http.Response, error) {
	ctx = docker.WithScope(quiet(ctx), r.scope)
	const tries = 5 // one for each login that may be of use
	for n := 1; ; n++ {
		r.mu.Lock()
		renewed := r.renewed
		r.mu.Unlock()
		resp, err := r.once(ctx, method, path, header, body)
		if err != nil {
			return nil, inner(err)
		}
		switch {
		case resp.StatusCode == http.StatusUnauthorized && n < tries:
			_ = resp.Body.Close()
			if err := r.renew(ctx, renewed, resp); err != nil {
				return nil, err
			}
		case resp.StatusCode >= 200 && resp.StatusCode < 300, resp.StatusCode == http.StatusNotFound:
			return resp, nil
		default:
			return resp, remoteerrors.NewUnexpectedStatusErr(resp)
		}
	}
}

// inner takes off what net/http says around the errors of transports.
func inner(err error) error {
	if u, ok := err.(*url.Error); ok { //nolint:errorlint // it is the outermost, by contract
		return u.Err
	}
	return err
}

func (r *Repository) once(ctx context.Context, method, path string, header http.Header, body []byte) (*http.Response, error) {
	u := r.host.Scheme + "://" + r.host.Host + strings.TrimSuffix(r.host.Path, "/") + "/" + reference.Path(r.name) + path
	var from io.Reader
	if body != nil {
		from = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u, from)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", u, err)
	}
	maps.Copy(req.Header, header)
	req.Header.Set("User-Agent", r.client.cfg.UserAgent)
	if err := r.host.Authorizer.Authorize(ctx, req); err != nil {
		return nil, err
	}
	return r.host.Client.Do(req)
}

// renew looks for another way in, once for all whose requests were refused with
// the last.
func (r *Repository) renew(ctx context.Context, last int, refused *http.Response) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.renewed != last {
		return nil
	}
	if err := r.host.Authorizer.AddResponses(ctx, []*http.Response{refused}); err != nil {
		return err
	}
	r.renewed++
	return nil
}
