package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/upload"
	"github.com/kiln-build/kiln/internal/source"
)

// file is a download that is remembered.
type file struct {
	ETag         string        `json:"etag,omitempty"`
	LastModified string        `json:"lastModified,omitempty"`
	Digest       digest.Digest `json:"digest"`
	Name         string        `json:"name"`
	Layer        string        `json:"layer"`
}

// memoNamespace is where downloads are remembered.
const memoNamespace = "source.http"

// attempts is how often a download is begun before giving up.
const attempts = 4

// memoKey names what is remembered of a request: all that forms the file or
// the server's answer is part of it.
func (r *request) memoKey() (string, error) {
	name := r.file.Name
	k, err := r.key(name, r.checksum, "")
	if err != nil {
		return "", err
	}
	u := *r.url
	u.Fragment = ""
	return digest.FromString(u.String() + "\n" + k).Encoded(), nil
}

// get returns the file as the server has it now, downloading it unless the
// one that is kept still is it.
func (s *Source) get(ctx context.Context, r *request) (file, *layer.Ref, error) {
	if r.url.Host == upload.Host {
		return s.getUpload(ctx, r)
	}
	key, err := r.memoKey()
	if err != nil {
		return file{}, nil, err
	}
	known, ref := s.remembered(ctx, key)
	if ref != nil && r.checksum != "" && known.Digest == r.checksum {
		return known, ref, nil
	}
	pause := s.cfg.Backoff
	for n := 1; ; n++ {
		f, got, err := s.try(ctx, r, known, ref)
		if err == nil {
			return f, got, s.remember(key, f)
		}
		var passing *passingError
		if !errors.As(err, &passing) || n == attempts || ctx.Err() != nil || passing.after > time.Minute {
			return file{}, nil, fmt.Errorf("download %s: %w", r.shown(), err)
		}
		select {
		case <-time.After(max(pause, passing.after)):
		case <-ctx.Done():
			return file{}, nil, ctx.Err()
		}
		pause *= 2
	}
}

func (s *Source) remembered(ctx context.Context, key string) (file, *layer.Ref) {
	var f file
	b, ok := s.cfg.Memo.Value(memoNamespace, key)
	if !ok || json.Unmarshal(b, &f) != nil {
		return file{}, nil
	}
	ref, err := s.cfg.Layers.Get(ctx, f.Layer)
	if err != nil {
		return file{}, nil
	}
	return f, ref
}

// passingError is a failure that may pass; after is the pause that the server asks for.
type passingError struct {
	err   error
	after time.Duration
}

// Error has no login of a URL, such as that of a place that the server named.
func (e *passingError) Error() string { return source.WithoutLogins(e.err.Error()) }
func (e *passingError) Unwrap() error { return e.err }

// try makes one attempt. Some servers have ETags and do not look at those that
// they are sent, so what is known is asked about first, without the file.
func (s *Source) try(ctx context.Context, r *request, known file, ref *layer.Ref) (file, *layer.Ref, error) {
	req, err := s.newRequest(ctx, r)
	if err != nil {
		return file{}, nil, err
	}
	if ref != nil && known.ETag != "" {
		req.Header.Set("If-None-Match", known.ETag)
		if s.unchanged(req, known.ETag) {
			return known, ref, nil
		}
	} else if ref != nil && known.LastModified != "" {
		req.Header.Set("If-Modified-Since", known.LastModified)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(s.cfg.Stall, func() { cancel(fmt.Errorf("the server sent nothing for %v", s.cfg.Stall)) })
	defer watch.Stop()
	resp, err := s.client.Do(req.WithContext(ctx))
	if err != nil {
		return file{}, nil, failed(ctx, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotModified && ref != nil:
		return known, ref, nil
	case resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode >= 500:
		return file{}, nil, &passingError{fmt.Errorf("invalid response status %s", resp.Status), retryAfter(resp.Header.Get("Retry-After"))}
	case resp.StatusCode < 200 || resp.StatusCode >= 300:
		return file{}, nil, fmt.Errorf("invalid response status %s: check the URL and, if it needs a login, the secret HTTP_AUTH_TOKEN_%s", resp.Status, r.url.Hostname())
	case resp.ContentLength > s.cfg.MaxBytes:
		return file{}, nil, fmt.Errorf("the file has %d bytes, more than the %d that are allowed", resp.ContentLength, s.cfg.MaxBytes)
	}
	f := file{ETag: resp.Header.Get("ETag"), LastModified: resp.Header.Get("Last-Modified")}
	if f.Name, err = r.fileName(resp.Header); err != nil {
		return file{}, nil, err
	}
	body := &watchedReader{r: resp.Body, watch: watch, limit: s.cfg.Stall, ctx: ctx}
	got, err := s.save(ctx, r, &f, body, resp.ContentLength)
	return f, got, err
}

// unchanged asks whether the file still has its ETag. What else comes of it does
// not matter: the file is then asked for.
func (s *Source) unchanged(get *http.Request, etag string) bool {
	ctx, cancel := context.WithTimeout(get.Context(), s.cfg.Stall)
	defer cancel()
	req := get.Clone(ctx)
	req.Method = http.MethodHead
	// As in the request that follows; servers may have an ETag for each.
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := s.client.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close() // of no interest
	got := resp.Header.Get("ETag")
	switch resp.StatusCode {
	case http.StatusNotModified:
		return got == "" || sameETag(got, etag)
	case http.StatusOK:
		return sameETag(got, etag)
	}
	return false
}

// sameETag compares weakly.
func sameETag(a, b string) bool { return strings.TrimPrefix(a, "W/") == strings.TrimPrefix(b, "W/") }

// failed tells why a request came to nothing.
func failed(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		if errors.Is(cause, context.Canceled) || errors.Is(cause, context.DeadlineExceeded) {
			return cause
		}
		return &passingError{err: cause}
	}
	return &passingError{err: err}
}

// watchedReader ends the request when bytes stay away.
type watchedReader struct {
	r     io.Reader
	watch *time.Timer
	limit time.Duration
	ctx   context.Context
}

func (w *watchedReader) Read(p []byte) (int, error) {
	w.watch.Reset(w.limit)
	n, err := w.r.Read(p)
	w.watch.Stop()
	if err != nil && !errors.Is(err, io.EOF) {
		err = failed(w.ctx, err)
	}
	return n, err
}

func (s *Source) newRequest(ctx context.Context, r *request) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.url.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("User-Agent", s.cfg.UserAgent)
	for _, h := range r.headers {
		req.Header.Set(h.Name, h.Value)
	}
	auth, err := s.authorization(ctx, r)
	if err != nil {
		return nil, err
	}
	if auth != "" {
		req.Header.Set("Authorization", auth)
	}
	return req, nil
}

// authorization is what the client's secrets give for the host.
func (s *Source) authorization(ctx context.Context, r *request) (string, error) {
	get := func(id string) (string, error) {
		b, err := secret.Daemon{}.Secret(ctx, id)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("get secret %s: %w", id, err)
		}
		v := strings.TrimSpace(string(b))
		if strings.ContainsAny(v, "\r\n\x00") {
			return "", fmt.Errorf("secret %s has several lines, expected the value of one header", id)
		}
		return v, nil
	}
	if r.authSecret != "" {
		v, err := get(r.authSecret)
		if err == nil && v == "" {
			err = fmt.Errorf("secret %s, which the build names for %s, is not given", r.authSecret, r.url.Host)
		}
		return v, err
	}
	for _, host := range slices.Compact([]string{r.url.Host, r.url.Hostname()}) {
		if v, err := get("HTTP_AUTH_HEADER_" + host); err != nil || v != "" {
			return v, err
		}
		if v, err := get("HTTP_AUTH_TOKEN_" + host); err != nil || v != "" {
			return "Bearer " + v, err
		}
	}
	return "", nil
}

// getUpload takes the file from the client, which has it once: what it was is
// remembered for the client's session.
func (s *Source) getUpload(ctx context.Context, r *request) (file, *layer.Ref, error) {
	key, err := r.memoKey()
	if err != nil {
		return file{}, nil, err
	}
	callers := session.FromContext(ctx)
	for _, c := range callers {
		if f, ref := s.remembered(ctx, c.ID()+" "+key); ref != nil {
			return f, ref, nil
		}
	}
	rc, err := upload.Open(ctx, r.url.Path)
	if err != nil {
		return file{}, nil, err
	}
	defer rc.Close()
	f := file{}
	if f.Name, err = r.fileName(http.Header{}); err != nil {
		return file{}, nil, err
	}
	ref, err := s.save(ctx, r, &f, rc, -1)
	if err != nil {
		return file{}, nil, fmt.Errorf("fetch %s from the client: %w", r.url, err)
	}
	return f, ref, s.remember(callers[0].ID()+" "+key, f)
}

func (s *Source) remember(key string, f file) error {
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("encode download: %w", err)
	}
	return s.cfg.Memo.PutValue(memoNamespace, key, b)
}

// save makes a layer of a body, and completes f.
func (s *Source) save(ctx context.Context, r *request, f *file, body io.Reader, size int64) (*layer.Ref, error) {
	m, err := s.cfg.Layers.New(ctx, nil, layer.NewOptions{Description: "http url " + r.shown()})
	if err != nil {
		return nil, err
	}
	defer m.Discard() //nolint:errcheck // does nothing after Commit, and the first error counts
	dir, release, err := m.Mount(ctx)
	if err != nil {
		return nil, err
	}
	f.Digest, err = s.write(ctx, r, *f, dir, body, size)
	if rerr := release(); err == nil {
		err = rerr
	}
	if err != nil {
		return nil, err
	}
	ref, err := m.Commit(ctx)
	if err != nil {
		return nil, err
	}
	f.Layer = ref.ID()
	return ref, nil
}

func (s *Source) write(ctx context.Context, r *request, f file, dir string, body io.Reader, size int64) (digest.Digest, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return "", err
	}
	defer root.Close()
	task := progress.StepFrom(ctx).Task("downloading "+f.Name, max(size, 0))
	defer task.Done()
	out, err := root.OpenFile(f.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	defer out.Close()
	algorithm := digest.SHA256
	if r.checksum != "" {
		algorithm = r.checksum.Algorithm()
	}
	hash := algorithm.Hash()
	n, err := io.CopyBuffer(io.MultiWriter(out, hash), io.LimitReader(task.Reader(body), s.cfg.MaxBytes+1), make([]byte, 256<<10))
	if err != nil {
		return "", err
	}
	if n > s.cfg.MaxBytes {
		return "", fmt.Errorf("the file has more than the %d bytes that are allowed", s.cfg.MaxBytes)
	}
	got := digest.NewDigest(algorithm, hash)
	if r.checksum != "" && got != r.checksum {
		return "", fmt.Errorf("digest mismatch %s: expected %s: the server has another file now, or somebody tampers with it", got, r.checksum)
	}
	mtime := time.Unix(0, 0)
	if t, err := http.ParseTime(f.LastModified); err == nil {
		mtime = t
	}
	return got, r.file.Finish(root, f.Name, out, mtime)
}

// retryAfter reads a Retry-After header: seconds or a date.
func retryAfter(v string) time.Duration {
	if d, err := time.ParseDuration(strings.TrimSpace(v) + "s"); err == nil && d >= 0 {
		return d
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}
