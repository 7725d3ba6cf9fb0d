package registry

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/textproto"
	"strconv"
	"sync"
	"time"
)

// errStalled is the cause of a request that ended because its peer was silent.
var errStalled = errors.New("no byte came")

// stallTransport ends requests during which nothing moves for too long.
type stallTransport struct {
	next  http.RoundTripper
	limit time.Duration
}

func (t *stallTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	watch := &watchdog{limit: t.limit}
	watch.timer = time.AfterFunc(t.limit, func() { cancel(fmt.Errorf("%w for %v", errStalled, t.limit)) })
	req = req.Clone(ctx)
	resp, err := t.send(req, watch)
	watch.rest()
	if err != nil {
		watch.end()
		if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = &downloadBody{ReadCloser: resp.Body, watch: watch, ctx: ctx, cancel: func() { cancel(nil) }}
	return resp, nil
}

// send sends a request when it has something to send. What is uploaded may have to be
// pulled first, even from the same registry: until then a request would be open in vain,
// which a server may give up, or may answer no other request for.
func (t *stallTransport) send(req *http.Request, watch *watchdog) (*http.Response, error) {
	if req.Body != nil && req.Body != http.NoBody {
		body := newUploadBody(req.Body, watch)
		if err := body.await(req.Context(), req.ContentLength > 0); err != nil {
			_ = body.Close() // it was only read from
			return nil, err
		}
		req.Body = body
	}
	return t.next.RoundTrip(req)
}

// NewHTTPClient returns a client for servers that are no registries, but keep blobs
// as well. It ends requests during which no byte comes or goes for limit.
func NewHTTPClient(limit time.Duration) *http.Client {
	const connections = 32 // to a host, that are kept for the next request
	base := &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: limit, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout: limit, IdleConnTimeout: time.Minute, MaxIdleConnsPerHost: connections, ForceAttemptHTTP2: true,
	}
	return &http.Client{Transport: Stalling(base, limit)}
}

// Stalling returns a transport that ends requests of next during which no byte
// comes or goes for limit.
func Stalling(next http.RoundTripper, limit time.Duration) http.RoundTripper {
	return &stallTransport{next: next, limit: limit}
}

// watchdog bites when it is up for limit.
type watchdog struct {
	limit time.Duration
	timer *time.Timer
	mu    sync.Mutex
	ended bool
}

// watch begins to count, for times the limit.
func (w *watchdog) watch(times time.Duration) {
	w.mu.Lock()
	if !w.ended {
		w.timer.Reset(w.limit * times)
	}
	w.mu.Unlock()
}

func (w *watchdog) rest() {
	w.mu.Lock()
	w.timer.Stop()
	w.mu.Unlock()
}

func (w *watchdog) end() {
	w.mu.Lock()
	w.ended = true
	w.timer.Stop()
	w.mu.Unlock()
}

// uploadBody counts the time that a registry takes to accept bytes, and not
// the time that it takes to make them.
type uploadBody struct {
	io.Closer
	buffered *bufio.Reader // small, so that it holds the first bytes and passes on all reads after them
	watch    *watchdog
}

func newUploadBody(body io.ReadCloser, watch *watchdog) *uploadBody {
	return &uploadBody{body, bufio.NewReaderSize(body, 16), watch}
}

// await waits for the first byte, if there is to be one.
func (b *uploadBody) await(ctx context.Context, some bool) error {
	b.watch.rest()
	defer b.watch.watch(1)
	defer context.AfterFunc(ctx, func() { _ = b.Close() })() // ends the read
	_, err := b.buffered.Peek(1)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil, errors.Is(err, io.EOF) && !some:
		return nil
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	}
	return err
}

func (b *uploadBody) Read(p []byte) (int, error) {
	b.watch.rest()
	n, err := b.buffered.Read(p)
	if errors.Is(err, io.EOF) {
		b.watch.watch(4) // a registry checks and moves a blob before it answers
	} else {
		b.watch.watch(1)
	}
	return n, err
}

// downloadBody counts the time that bytes take to come, and not the time that
// their reader takes. It reports every way in which a connection breaks as
// io.ErrUnexpectedEOF, upon which a download goes on where it was.
type downloadBody struct {
	io.ReadCloser
	watch  *watchdog
	ctx    context.Context
	cancel func()
}

func (b *downloadBody) Read(p []byte) (int, error) {
	b.watch.watch(1)
	n, err := b.ReadCloser.Read(p)
	b.watch.rest()
	if err != nil && !errors.Is(err, io.EOF) {
		if cause := context.Cause(b.ctx); cause == nil || errors.Is(cause, errStalled) {
			return n, io.ErrUnexpectedEOF
		}
	}
	return n, err
}

func (b *downloadBody) Close() error {
	err := b.ReadCloser.Close()
	b.watch.end()
	b.cancel()
	return err
}

// failure is a request that failed for good after all attempts. It hides the
// error that caused it from containerd's client, which would begin anew.
type failure struct {
	registry   string
	attempts   int
	status     int           // 0 if there was no answer
	retryAfter time.Duration // what the registry asked for, if it did
	cause      error         // if there was no answer
	detail     string        // the beginning of the answer
}

func (f *failure) Error() string {
	what := ""
	switch {
	case f.status == http.StatusTooManyRequests:
		what = "limits requests (429 Too Many Requests)"
		if f.retryAfter > 0 {
			what += fmt.Sprintf(" and asks to wait %v", f.retryAfter)
		}
	case f.status != 0:
		what = fmt.Sprintf("failed (unexpected status %d %s)", f.status, http.StatusText(f.status))
	case errors.Is(f.cause, errStalled):
		what = fmt.Sprintf("did not answer: %v", f.cause)
	default:
		what = fmt.Sprintf("cannot be reached: failed to do request: %v", f.cause)
	}
	if f.detail != "" {
		what += ": " + f.detail
	}
	return fmt.Sprintf("registry %s %s (%d attempts)", f.registry, what, f.attempts)
}

// retryTransport repeats what failed for reasons that may pass.
type retryTransport struct {
	next              http.RoundTripper
	registry          string
	attempts          int
	backoff, maxPause time.Duration
}

func (t *retryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	attempts := t.attempts
	if req.Body != nil && req.Body != http.NoBody {
		attempts = 1 // what was read of the body cannot be had again: Push repeats it
	}
	pause := t.backoff
	for n := 1; ; n++ {
		resp, err := t.next.RoundTrip(req)
		if ctxErr := req.Context().Err(); ctxErr != nil && err != nil {
			return nil, err
		}
		f := t.judge(resp, err, n)
		if f == nil {
			return resp, nil
		}
		last := n >= attempts || f.retryAfter > t.maxPause
		if errors.Is(f.cause, errStalled) && n >= 2 {
			last = true // whoever waits has waited long enough
		}
		if last {
			return nil, f
		}
		wait := max(f.retryAfter, pause/2+rand.N(pause/2+1))
		pause = min(pause*2, t.maxPause)
		select {
		case <-time.After(wait):
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
}

// judge returns nil for an answer that is to be used.
func (t *retryTransport) judge(resp *http.Response, err error, attempts int) *failure {
	if err != nil {
		return &failure{registry: t.registry, attempts: attempts, cause: err}
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
	default:
		return nil
	}
	f := &failure{registry: t.registry, attempts: attempts, status: resp.StatusCode}
	f.retryAfter = retryAfter(resp.Header.Get("Retry-After"))
	detail, _ := io.ReadAll(io.LimitReader(resp.Body, 512)) // best effort: it is only shown
	f.detail = printable(detail)
	_ = resp.Body.Close()
	return f
}

// retryAfter reads a Retry-After header: seconds or a date.
func retryAfter(v string) time.Duration {
	v = textproto.TrimString(v)
	if s, err := strconv.ParseUint(v, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(v); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// printable makes a stranger's text fit to be shown on one line.
func printable(b []byte) string {
	out := make([]rune, 0, len(b))
	for _, r := range string(b) {
		if r == '\n' || r == '\t' || r == '\r' {
			r = ' '
		}
		if !strconv.IsPrint(r) {
			continue
		}
		out = append(out, r)
	}
	return textproto.TrimString(string(out))
}
