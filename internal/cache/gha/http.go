package gha

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/kiln-build/kiln/internal/cache"
)

// request is one to the service or the storage behind it.
type request struct {
	method, url string
	header      http.Header
	body        []byte
}

// answer is what came of it.
type answer struct {
	status int
	body   []byte // at most maxAnswer bytes
}

const maxAnswer = 1 << 20 // bytes

// attempts is how often a request is made.
const attempts = 5

// do makes a request, again and again if it fails for a reason that may pass.
// Answers below 500 but "too many requests" are no errors.
func (s *service) do(ctx context.Context, r request) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.c.timeout)
	defer cancel()
	pause := s.conf.Backoff
	for n := 1; ; n++ {
		resp, err := s.send(ctx, r)
		wait := pause/2 + rand.N(pause/2+1)
		if err == nil {
			a.status = resp.StatusCode
			a.body, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
			_ = resp.Body.Close()
			if err == nil && a.status < http.StatusInternalServerError && a.status != http.StatusTooManyRequests {
				return a, nil
			}
			if after, numberErr := strconv.Atoi(strings.TrimSpace(resp.Header.Get("Retry-After"))); numberErr == nil && after >= 0 {
				wait = time.Duration(after) * time.Second
			}
		}
		if n == attempts || ctx.Err() != nil {
			if err == nil {
				err = fmt.Errorf("status %d", a.status)
			}
			return a, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return a, context.Cause(ctx)
		}
		pause *= 2
	}
}

func (s *service) send(ctx context.Context, r request) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, r.url, bytes.NewReader(r.body))
	if err != nil {
		return nil, errors.New("malformed address") // which may have a signature
	}
	maps.Copy(req.Header, r.header)
	req.Header.Set("User-Agent", "kiln")
	return s.http.Do(req)
}

// call asks the service itself. It returns false if the service knows no such
// thing, and errExists if there is one already.
func (s *service) call(ctx context.Context, verb, key, method, path string, in, out any, header http.Header) (bool, error) {
	r := request{method: method, url: strings.TrimRight(s.c.url, "/") + path, header: http.Header{
		"Authorization": {"Bearer " + s.c.token}, "Accept": {"application/json;api-version=6.0-preview.1"}, "Content-Type": {"application/json"},
	}}
	maps.Copy(r.header, header)
	switch in := in.(type) {
	case nil:
	case []byte:
		r.body = in
	default:
		var err error
		if r.body, err = json.Marshal(in); err != nil {
			return false, fmt.Errorf("encode request: %w", err)
		}
	}
	a, err := s.do(ctx, r)
	if err != nil {
		return false, s.explain(verb, key, a, err)
	}
	switch {
	case a.status == http.StatusNotFound || a.status == http.StatusNoContent && out != nil:
		return false, nil
	case a.status == http.StatusConflict || bytes.Contains(a.body, []byte("AlreadyExists")) || bytes.Contains(a.body, []byte("already_exists")):
		return false, errExists
	case a.status < 200 || a.status >= 300:
		return false, s.explain(verb, key, a, fmt.Errorf("status %d", a.status))
	}
	if out != nil && len(a.body) > 0 {
		if err := json.Unmarshal(a.body, out); err != nil {
			return false, fmt.Errorf("%s %s in the cache service of GitHub Actions: its answer is no JSON", verb, key)
		}
	}
	return true, nil
}

// errExists says that a key is taken.
var errExists = errors.New("there is such an entry already")

func (s *service) explain(verb, key string, a answer, err error) error {
	return cache.Refused(cache.Refusal{Verb: verb, Key: key, Where: "the cache service of GitHub Actions", Status: a.status,
		Login: "that the job's token may use the cache"}, err)
}
