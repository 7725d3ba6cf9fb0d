package cachetest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Actions is a server that speaks both versions of the protocol of the cache
// service of GitHub Actions, and the list of caches of GitHub's API. It begins at
// an address of its own, and ends with the test.
type Actions struct {
	Faults *Faults
	URL    string

	storage *Azure // where entries are kept
	mu      sync.Mutex
	entries []*actionsEntry // in their order
	listed  int
}

type actionsEntry struct {
	id                  int
	scope, key, version string
	committed           bool
	chunks              map[int64][]byte // of the first version
}

// path is where an entry's bytes are.
func (e *actionsEntry) path() string { return "/storage/actions/" + strconv.Itoa(e.id) }

// NewActions starts a server that ends with the test.
func NewActions(t testing.TB) *Actions {
	a := newActions()
	s := httptest.NewServer(a.Faults)
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	a.URL = s.URL
	return a
}

func newActions() *Actions {
	a := &Actions{storage: NewAzure()}
	a.storage.containers["storage/actions"] = true
	mux := http.NewServeMux()
	mux.HandleFunc("GET /_apis/artifactcache/cache", a.v1Load)
	mux.HandleFunc("POST /_apis/artifactcache/caches", a.v1Reserve)
	mux.HandleFunc("PATCH /_apis/artifactcache/caches/{id}", a.v1Upload)
	mux.HandleFunc("POST /_apis/artifactcache/caches/{id}", a.v1Commit)
	mux.HandleFunc("POST /twirp/github.actions.results.api.v1.CacheService/{method}", a.v2)
	mux.HandleFunc("GET /repos/{owner}/{name}/actions/caches", a.list)
	mux.Handle("/storage/", a.storage)
	a.Faults = NewFaults(mux)
	return a
}

// ServeActions serves at a listener until ctx ends, for tests in other programs.
// Its address is the listener's.
func ServeActions(ctx context.Context, l net.Listener) error {
	a := newActions()
	a.URL = "http://" + l.Addr().String()
	s := &http.Server{Handler: a.Faults, ReadHeaderTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve a cache of GitHub Actions: %w", err)
	}
	return nil
}

// Token is a job's, which writes into the first of scopes and reads all of them.
func Token(scopes ...string) string {
	var ac []map[string]any
	for i, s := range scopes {
		permission := 1
		if i == 0 {
			permission = 3
		}
		ac = append(ac, map[string]any{"Scope": s, "Permission": permission})
	}
	return token(ac, time.Now().Add(-time.Minute), time.Now().Add(time.Hour))
}

// OldToken is one that was good yesterday.
func OldToken() string {
	return token(nil, time.Now().Add(-25*time.Hour), time.Now().Add(-24*time.Hour))
}

func token(access any, begins, ends time.Time) string {
	part := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			return "" // maps of strings and numbers always can be
		}
		return base64.RawURLEncoding.EncodeToString(b)
	}
	ac, err := json.Marshal(access)
	if err != nil {
		ac = nil
	}
	return part(map[string]string{"alg": "HS256", "typ": "JWT"}) + "." +
		part(map[string]any{"ac": string(ac), "nbf": begins.Unix(), "exp": ends.Unix()}) + "." +
		base64.RawURLEncoding.EncodeToString([]byte("signature"))
}

// access reads a request's token.
func access(w http.ResponseWriter, r *http.Request) (read []string, write string, ok bool) {
	parts := strings.Split(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), ".")
	var claims struct{ Ac string }
	var scopes []struct {
		Scope      string
		Permission int
	}
	if len(parts) == 3 {
		if b, err := base64.RawURLEncoding.DecodeString(parts[1]); err == nil && json.Unmarshal(b, &claims) == nil {
			ok = json.Unmarshal([]byte(claims.Ac), &scopes) == nil
		}
	}
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
		return nil, "", false
	}
	for _, s := range scopes {
		read = append(read, s.Scope)
		if s.Permission&2 != 0 {
			write = s.Scope
		}
	}
	return read, write, true
}

// find returns the entry of a key, or the newest whose key begins with one of
// prefixes, in one scope after the other.
func (a *Actions) find(read []string, key, version string, prefixes []string) *actionsEntry {
	for _, p := range append([]string{key}, prefixes...) {
		for _, scope := range read {
			for _, e := range slices.Backward(a.entries) {
				exact := e.key == p || slices.Contains(prefixes, p) && strings.HasPrefix(e.key, p)
				if e.committed && e.scope == scope && e.version == version && exact {
					return e
				}
			}
		}
	}
	return nil
}

// reserve makes an entry, unless there is one.
func (a *Actions) reserve(scope, key, version string) *actionsEntry {
	for _, e := range a.entries {
		if e.scope == scope && e.key == key && e.version == version {
			return nil
		}
	}
	e := &actionsEntry{id: len(a.entries) + 1, scope: scope, key: key, version: version, chunks: map[int64][]byte{}}
	a.entries = append(a.entries, e)
	return e
}

func (a *Actions) signed(e *actionsEntry) string { return a.URL + e.path() + "?sig=signature" }

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // whoever asked may have gone
}

func (a *Actions) v1Load(w http.ResponseWriter, r *http.Request) {
	read, _, ok := access(w, r)
	if !ok {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	keys := strings.Split(r.URL.Query().Get("keys"), ",")
	e := a.find(read, keys[0], r.URL.Query().Get("version"), keys)
	if e == nil {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	reply(w, http.StatusOK, map[string]any{"cacheKey": e.key, "scope": e.scope, "archiveLocation": a.signed(e)})
}

func (a *Actions) v1Reserve(w http.ResponseWriter, r *http.Request) {
	_, write, ok := access(w, r)
	var in struct{ Key, Version string }
	if err := json.NewDecoder(r.Body).Decode(&in); !ok || err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.reserve(write, in.Key, in.Version)
	if e == nil {
		reply(w, http.StatusConflict, map[string]any{"typeKey": "ArtifactCacheItemAlreadyExistsException", "message": "Cache already exists."})
		return
	}
	reply(w, http.StatusCreated, map[string]any{"cacheId": e.id})
}

// reserved returns the entry that a request names.
func (a *Actions) reserved(w http.ResponseWriter, r *http.Request) *actionsEntry {
	id, err := strconv.Atoi(r.PathValue("id"))
	_, _, ok := access(w, r)
	if !ok {
		return nil
	}
	if err != nil || id < 1 || id > len(a.entries) || a.entries[id-1].committed {
		reply(w, http.StatusBadRequest, map[string]any{"message": "no such reservation"})
		return nil
	}
	return a.entries[id-1]
}

func (a *Actions) v1Upload(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	var from, to int64
	if _, err := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/*", &from, &to); err != nil || to-from+1 != int64(len(b)) {
		reply(w, http.StatusBadRequest, map[string]any{"message": "range and body differ"})
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.reserved(w, r); e != nil {
		e.chunks[from] = b
		w.WriteHeader(http.StatusNoContent)
	}
}

func (a *Actions) v1Commit(w http.ResponseWriter, r *http.Request) {
	var in struct{ Size int64 }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.reserved(w, r)
	if e == nil {
		return
	}
	data := []byte{}
	for e.chunks[int64(len(data))] != nil {
		data = append(data, e.chunks[int64(len(data))]...)
	}
	if int64(len(data)) != in.Size {
		reply(w, http.StatusBadRequest, map[string]any{"message": "size and chunks differ"})
		return
	}
	a.storage.mu.Lock()
	a.storage.blobs[e.path()] = data
	a.storage.mu.Unlock()
	e.committed, e.chunks = true, nil
	w.WriteHeader(http.StatusNoContent)
}

func (a *Actions) v2(w http.ResponseWriter, r *http.Request) {
	read, write, ok := access(w, r)
	var in struct {
		Key, Version string
		RestoreKeys  []string        `json:"restore_keys"`
		Size         json.RawMessage `json:"size_bytes"` // a number, or a string of one
	}
	if err := json.NewDecoder(r.Body).Decode(&in); !ok || err != nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch r.PathValue("method") {
	case "GetCacheEntryDownloadURL":
		e := a.find(read, in.Key, in.Version, in.RestoreKeys)
		if e == nil {
			reply(w, http.StatusOK, map[string]any{"ok": false})
			return
		}
		reply(w, http.StatusOK, map[string]any{"ok": true, "matched_key": e.key, "signed_download_url": a.signed(e)})
	case "CreateCacheEntry":
		e := a.reserve(write, in.Key, in.Version)
		if e == nil {
			reply(w, http.StatusConflict, map[string]any{"code": "already_exists", "msg": "cache entry with the same key, version, and scope already exists"})
			return
		}
		reply(w, http.StatusOK, map[string]any{"ok": true, "signed_upload_url": a.signed(e)})
	case "FinalizeCacheEntryUpload":
		for _, e := range a.entries {
			if e.scope == write && e.key == in.Key && e.version == in.Version && !e.committed {
				if b := a.storage.Blob(e.path()); b == nil || strings.Trim(string(in.Size), `"`) != strconv.Itoa(len(b)) {
					break
				}
				e.committed = true
				reply(w, http.StatusOK, map[string]any{"ok": true, "entry_id": strconv.Itoa(e.id)})
				return
			}
		}
		reply(w, http.StatusOK, map[string]any{"ok": false})
	default:
		reply(w, http.StatusNotFound, map[string]any{"code": "bad_route", "msg": "no handler"})
	}
}

func (a *Actions) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	perPage, _ := strconv.Atoi(q.Get("per_page")) // 0 is refused below
	page, _ := strconv.Atoi(q.Get("page"))
	if r.Header.Get("Authorization") != "Bearer ghtoken" || perPage < 1 || page < 1 {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.listed++
	var all []map[string]any
	for _, e := range a.entries {
		if e.committed && e.scope == q.Get("ref") && strings.HasPrefix(e.key, q.Get("key")) {
			all = append(all, map[string]any{"key": e.key, "ref": e.scope})
		}
	}
	from := min((page-1)*perPage, len(all))
	reply(w, http.StatusOK, map[string]any{"total_count": len(all), "actions_caches": all[from:min(from+perPage, len(all))]})
}

// Listed is how many pages of a list were read.
func (a *Actions) Listed() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.listed
}

// Keys are those of all whole entries.
func (a *Actions) Keys() (keys []string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.entries {
		if e.committed {
			keys = append(keys, e.key)
		}
	}
	return keys
}

// Reserve takes a key as one does that crashes then.
func (a *Actions) Reserve(t *testing.T, scope, key, version string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reserve(scope, key, version) == nil {
		t.Fatalf("%s is taken", key)
	}
}

// entry returns the newest whole one of a key.
func (a *Actions) entry(t *testing.T, key string) *actionsEntry {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range slices.Backward(a.entries) {
		if e.committed && e.key == key {
			return e
		}
	}
	t.Fatalf("there is no entry %s", key)
	return nil
}

// Damage changes a byte of an entry.
func (a *Actions) Damage(t *testing.T, key string) { a.storage.Damage(t, a.entry(t, key).path()) }

// Lose removes an entry.
func (a *Actions) Lose(t *testing.T, key string) {
	e := a.entry(t, key)
	a.storage.Lose(t, e.path())
	a.mu.Lock()
	defer a.mu.Unlock()
	e.key, e.committed = "", false // its number stays taken
}
