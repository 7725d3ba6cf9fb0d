package gha

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/internal/cache"
)

// service is a cache.Objects. Documents, which change, are numbered entries; blobs
// are entries by their own key.
type service struct {
	c    *config
	conf Config
	http *http.Client

	listing sync.Once
	mu      sync.Mutex
	keys    map[string]bool   // of all blobs, if GitHub lists them
	found   map[string]string // addresses of blobs that were looked for, by key
}

// entry is what the service tells of one.
type entry struct {
	key string
	url string // signed, good for a while
}

// entryVersion tells entries of different makers apart; this is the one that
// BuildKit's have.
func entryVersion() string { return digest.FromString("|go-actionscache-1.0").Encoded() }

// load looks for an entry: by key, or the newest whose key begins with it.
func (s *service) load(ctx context.Context, key string, prefix bool) (*entry, error) {
	var e entry
	if s.c.version == 1 {
		var out struct {
			Key string `json:"cacheKey"`
			URL string `json:"archiveLocation"`
		}
		q := url.Values{"keys": {key}, "version": {entryVersion()}}
		if _, err := s.call(ctx, "look for", key, http.MethodGet, v1+"cache?"+q.Encode(), nil, &out, nil); err != nil {
			return nil, err
		}
		e = entry{out.Key, out.URL}
	} else {
		in := map[string]any{"key": key, "version": entryVersion(), "restore_keys": []string{}}
		if prefix {
			in["restore_keys"] = []string{key}
		}
		var out struct {
			OK  bool   `json:"ok"`
			Key string `json:"matched_key"`
			URL string `json:"signed_download_url"`
		}
		if _, err := s.call(ctx, "look for", key, http.MethodPost, v2+"GetCacheEntryDownloadURL", in, &out, nil); err != nil {
			return nil, err
		}
		if out.OK {
			e = entry{out.Key, out.URL}
		}
	}
	if e.url == "" || !prefix && e.key != key || !strings.HasPrefix(e.key, key) {
		return nil, nil
	}
	return &e, nil
}

// The paths of both versions of the protocol.
const (
	v1 = "/_apis/artifactcache/"
	v2 = "/twirp/github.actions.results.api.v1.CacheService/"
)

// save makes an entry, of size bytes of r. It returns errExists if somebody has
// begun to.
func (s *service) save(ctx context.Context, key string, size int64, r io.Reader) error {
	in := map[string]any{"key": key, "version": entryVersion()}
	if s.c.version == 1 {
		var out struct {
			ID int64 `json:"cacheId"`
		}
		if ok, err := s.call(ctx, "write", key, http.MethodPost, v1+"caches", in, &out, nil); err != nil || !ok || out.ID == 0 {
			return errors.Join(err, unless(ok && out.ID != 0 || err != nil, key))
		}
		path := v1 + "caches/" + strconv.FormatInt(out.ID, 10)
		if err := s.sendChunks(ctx, key, path, r); err != nil {
			return err
		}
		ok, err := s.call(ctx, "write", key, http.MethodPost, path, map[string]any{"size": size}, nil, nil)
		return errors.Join(err, unless(ok || err != nil, key))
	}
	var out struct {
		OK  bool   `json:"ok"`
		URL string `json:"signed_upload_url"`
	}
	if _, err := s.call(ctx, "write", key, http.MethodPost, v2+"CreateCacheEntry", in, &out, nil); err != nil || !out.OK {
		return errors.Join(err, unless(out.OK || err != nil, key))
	}
	if err := s.sendBlocks(ctx, key, out.URL, r); err != nil {
		return err
	}
	in["size_bytes"] = size
	out.OK = false
	_, err := s.call(ctx, "write", key, http.MethodPost, v2+"FinalizeCacheEntryUpload", in, &out, nil)
	return errors.Join(err, unless(out.OK || err != nil, key))
}

// unless is an error if the service did not do what it was asked for, and did not
// say why.
func unless(ok bool, key string) error {
	if ok {
		return nil
	}
	return fmt.Errorf("the cache service of GitHub Actions does not take %s", key)
}

// What an upload is cut into, and how many pieces are under way at a time.
const pieceSize, piecesAtOnce = 8 << 20, 2

// sendChunks uploads by the first version of the protocol.
func (s *service) sendChunks(ctx context.Context, key, path string, r io.Reader) error {
	eg, gctx := errgroup.WithContext(ctx)
	eg.SetLimit(piecesAtOnce)
	for at := int64(0); gctx.Err() == nil; {
		b := make([]byte, pieceSize)
		n, err := io.ReadFull(r, b)
		end := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !end {
			return errors.Join(err, eg.Wait())
		}
		if n > 0 {
			header := http.Header{"Content-Type": {"application/octet-stream"}, "Content-Range": {fmt.Sprintf("bytes %d-%d/*", at, at+int64(n)-1)}}
			eg.Go(func() error {
				ok, err := s.call(gctx, "write", key, http.MethodPatch, path, b[:n], nil, header)
				return errors.Join(err, unless(ok || err != nil, key))
			})
		}
		if at += int64(n); end {
			break
		}
	}
	return eg.Wait()
}

// sendBlocks uploads by the second version, into Azure's storage.
func (s *service) sendBlocks(ctx context.Context, key, signed string, r io.Reader) error {
	client, err := blockblob.NewClientWithNoCredential(signed, &blockblob.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: s.http, Telemetry: policy.TelemetryOptions{ApplicationID: "kiln"},
		Retry: policy.RetryOptions{MaxRetries: attempts - 1, RetryDelay: s.conf.Backoff, MaxRetryDelay: 20 * s.conf.Backoff},
	}})
	if err != nil {
		return errors.New("the cache service of GitHub Actions names a malformed address")
	}
	_, err = client.UploadStream(ctx, r, &blockblob.UploadStreamOptions{BlockSize: pieceSize, Concurrency: piecesAtOnce})
	var said *azcore.ResponseError
	if errors.As(err, &said) {
		return s.explain("write", key, answer{status: said.StatusCode}, err)
	}
	return s.explain("write", key, answer{}, err)
}

// Get returns the newest document.
func (s *service) Get(ctx context.Context, key string, limit int64) ([]byte, error) {
	e, err := s.load(ctx, key+"#", true)
	if err != nil || e == nil {
		return nil, err
	}
	rc, err := s.download(ctx, key, e.url, 0)
	if err != nil || rc == nil {
		return nil, err
	}
	defer rc.Close()
	b, err := cache.ReadObject(rc, limit)
	return b, s.explain("read", key, answer{}, err)
}

// Put makes the next of a document's entries. A key that somebody reserved is his
// for a while, after which he is taken to have crashed.
func (s *service) Put(ctx context.Context, key string, data []byte, ifAbsent bool) (bool, error) {
	since, pause, skip := time.Now(), 50*time.Millisecond, 0
	for {
		e, err := s.load(ctx, key+"#", true)
		if err != nil {
			return false, err
		}
		number := 0
		if e != nil {
			if ifAbsent {
				return false, nil
			}
			if number, err = strconv.Atoi(strings.TrimPrefix(e.key, key+"#")); err != nil {
				return false, fmt.Errorf("the cache service of GitHub Actions has an entry %q, expected a number after #", e.key)
			}
		}
		err = s.save(ctx, fmt.Sprint(key, "#", max(number, skip)+1), int64(len(data)), bytes.NewReader(data))
		if !errors.Is(err, errExists) {
			return err == nil, err
		}
		if time.Since(since) > s.conf.Locked {
			skip = max(number, skip) + 1
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, 2*time.Second)
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

// Has tells whether there is a blob. The service does not say of what size.
func (s *service) Has(ctx context.Context, key string, _ int64) (bool, error) {
	s.listing.Do(func() { s.list(ctx) })
	s.mu.Lock()
	keys, there := s.keys, s.keys[key]
	s.mu.Unlock()
	if keys != nil {
		return there, nil
	}
	e, err := s.load(ctx, key, false)
	if err == nil && e != nil {
		s.remember(key, e.url)
	}
	return e != nil, err
}

func (s *service) remember(key, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.found[key] = address
}

// Upload makes an entry of a blob. A key cannot be had again once it was reserved,
// so the bytes are read and verified first.
func (s *service) Upload(ctx context.Context, key string, size int64, open func(context.Context) (io.ReadCloser, error)) error {
	r, err := open(ctx)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("write %s: %w", key, err)
	}
	if r, err = open(ctx); err != nil {
		return err
	}
	defer r.Close()
	err = s.save(ctx, key, size, r)
	if errors.Is(err, errExists) {
		err = nil // somebody sends it now, or has: whoever does not find it then has a miss
	}
	if err == nil {
		s.mu.Lock()
		if s.keys != nil {
			s.keys[key] = true
		}
		s.mu.Unlock()
	}
	return err
}

// Open reads a blob from an offset on. An address that is good no more is asked for
// again.
func (s *service) Open(ctx context.Context, key string, offset int64) (io.ReadCloser, error) {
	s.mu.Lock()
	address := s.found[key]
	s.mu.Unlock()
	if address != "" {
		if rc, err := s.download(ctx, key, address, offset); err == nil {
			return rc, nil
		}
	}
	e, err := s.load(ctx, key, false)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, s.explain("read", key, answer{status: http.StatusNotFound}, errors.New("status 404"))
	}
	s.remember(key, e.url)
	return s.download(ctx, key, e.url, offset)
}

// download reads from the storage behind the service.
func (s *service) download(ctx context.Context, key, address string, offset int64) (io.ReadCloser, error) {
	r := request{method: http.MethodGet, url: address}
	if offset > 0 {
		r.header = http.Header{"Range": {fmt.Sprintf("bytes=%d-", offset)}}
	}
	pause := s.conf.Backoff
	for n := 1; ; n++ {
		resp, err := s.send(ctx, r)
		status := 0
		if err == nil {
			if status = resp.StatusCode; status == http.StatusPartialContent || status == http.StatusOK && offset == 0 {
				return resp.Body, nil
			}
			_ = resp.Body.Close()
			err = fmt.Errorf("status %d", status)
		}
		again := status == 0 || status == http.StatusTooManyRequests || status >= http.StatusInternalServerError
		if !again || n == attempts || ctx.Err() != nil {
			return nil, s.explain("read", key, answer{status: status}, err)
		}
		select {
		case <-time.After(pause):
			pause *= 2
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
