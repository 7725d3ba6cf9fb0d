package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"path"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"
)

// lossy is a handler before that of a server that keeps blobs, which loses layers:
// all that begins as gzip does, but what a script's base image has.
type lossy struct {
	next   http.Handler
	spared map[string]bool // digests

	mu      sync.Mutex
	losing  bool
	late    bool            // that a layer exists is told, and it cannot be had
	written map[string]bool // since it lost all: names and digests
	lost    int             // answers
}

// ServeHTTP answers, or says that there is no such layer.
func (l *lossy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)
	l.mu.Lock()
	losing := l.losing && !l.written[name] && !l.spared[name] && (r.Method == http.MethodGet || r.Method == http.MethodHead && !l.late)
	if r.Method == http.MethodPut && l.written != nil {
		l.written[name], l.written[r.URL.Query().Get("digest")] = true, true
	}
	l.mu.Unlock()
	if losing && l.isLayer(r) {
		l.mu.Lock()
		l.lost++
		l.mu.Unlock()
		w.WriteHeader(http.StatusNotFound)
		return
	}
	l.next.ServeHTTP(w, r)
}

func (l *lossy) isLayer(r *http.Request) bool {
	whole := r.Clone(r.Context())
	whole.Method, whole.Body = http.MethodGet, http.NoBody
	whole.Header.Del("Range")
	answer := httptest.NewRecorder()
	l.next.ServeHTTP(answer, whole)
	return bytes.HasPrefix(answer.Body.Bytes(), []byte{0x1f, 0x8b})
}

func (l *lossy) lose(late bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losing, l.late, l.written, l.lost = true, late, map[string]bool{}, 0
}

// keep ends the losses, and tells how often a layer was asked for in vain.
func (l *lossy) keep() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.losing, l.written = false, nil
	return l.lost
}

// startLossy serves what the script may let lose layers, as name, and returns its URL.
func startLossy(ts *testscript.TestScript, name string, next http.Handler, spared map[string]bool) string {
	l := &lossy{next: next, spared: spared}
	server := httptest.NewServer(l)
	s := state(ts)
	if s.places == nil {
		s.places = map[string]*lossy{}
	}
	s.places[name] = l
	s.undo = append(s.undo, func() error { server.CloseClientConnections(); server.Close(); return nil })
	return server.URL
}

// scriptLose: "lose NAME [late]" has a registry, a "bucket", "azure" or "github" lose
// all layers that it has: late is one that still says that they exist. "! lose NAME"
// ends that, and fails if nobody has asked for one.
func scriptLose(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: lose name [late]")
	}
	l := state(ts).places[args[0]]
	switch {
	case l == nil:
		ts.Fatalf("lose: nothing is called %s", args[0])
	case !neg:
		l.lose(len(args) == 2)
	case l.keep() == 0:
		ts.Fatalf("lose: nobody has asked %s for a layer that is lost", args[0])
	}
}
