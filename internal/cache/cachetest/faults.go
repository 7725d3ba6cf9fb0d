package cachetest

import (
	"io"
	"net/http"
	"sync"
	"time"
)

// Faults is a handler before that of a server, which fails when told to.
type Faults struct {
	// Gate may hold requests.
	Gate Gate

	next http.Handler

	mu      sync.Mutex
	status  int // to answer with; 0 hangs
	left    int // requests that fail from now on
	failed  int
	matches func(*http.Request) bool
}

// NewFaults returns a handler that passes everything to next, until it is told otherwise.
func NewFaults(next http.Handler) *Faults { return &Faults{next: next} }

// Fail makes the next n requests that match fail with a status; 0 makes them
// hang until whoever asks gives up. A nil match is every request.
func (f *Faults) Fail(n, status int, match func(*http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.status, f.failed, f.matches = n, status, 0, match
}

// Failed is how many requests have failed since the last Fail.
func (f *Faults) Failed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.failed
}

// ServeHTTP answers or fails.
func (f *Faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.Gate.Pass()
	f.mu.Lock()
	fails := f.left > 0 && (f.matches == nil || f.matches(r))
	status := f.status
	if fails {
		f.left--
		f.failed++
	}
	f.mu.Unlock()
	switch {
	case !fails:
		f.next.ServeHTTP(w, r)
	case status == 0:
		// Whether the client has gone is seen only once its request was read.
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-r.Context().Done():
		case <-time.After(time.Minute): // so that a test that waits for ever still ends
		}
	default:
		w.WriteHeader(status)
	}
}
