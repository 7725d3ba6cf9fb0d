package cachetest

import (
	"bytes"
	"encoding/xml"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Azure is the part of the protocol of Azure's blob storage that caches need, in
// memory: containers, and block blobs that are written at once or in blocks. It
// checks who asks only by name, or by a signature in the address being there.
type Azure struct {
	mu         sync.Mutex
	containers map[string]bool
	blobs      map[string][]byte
	blocks     map[string][]byte // by path and id, until they are committed
}

// NewAzure returns a server without containers.
func NewAzure() *Azure {
	return &Azure{containers: map[string]bool{}, blobs: map[string][]byte{}, blocks: map[string][]byte{}}
}

// ServeHTTP answers one request. Paths are /ACCOUNT/CONTAINER/BLOB.
func (a *Azure) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts := strings.SplitN(strings.TrimPrefix(r.URL.Path, "/"), "/", 3)
	w.Header().Set("X-Ms-Request-Id", "a-request")
	if len(parts) < 2 {
		refuse(w, http.StatusBadRequest, "InvalidUri")
		return
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "SharedKey "+parts[0]+":") && r.URL.Query().Get("sig") == "" {
		refuse(w, http.StatusForbidden, "AuthenticationFailed")
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || r.ContentLength >= 0 && int64(len(body)) != r.ContentLength {
		return // whoever sends it has gone
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	container := parts[0] + "/" + parts[1]
	if len(parts) == 2 {
		a.container(w, r, container)
		return
	}
	if !a.containers[container] {
		refuse(w, http.StatusNotFound, "ContainerNotFound")
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		a.read(w, r)
	case http.MethodPut:
		a.write(w, r, body)
	default:
		refuse(w, http.StatusMethodNotAllowed, "UnsupportedHttpVerb")
	}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("X-Ms-Error-Code", code)
	w.WriteHeader(status)
}

func (a *Azure) container(w http.ResponseWriter, r *http.Request, name string) {
	there := a.containers[name]
	switch {
	case r.Method == http.MethodPut && there:
		refuse(w, http.StatusConflict, "ContainerAlreadyExists")
	case r.Method == http.MethodPut:
		a.containers[name] = true
		w.WriteHeader(http.StatusCreated)
	case !there:
		refuse(w, http.StatusNotFound, "ContainerNotFound")
	}
}

func (a *Azure) read(w http.ResponseWriter, r *http.Request) {
	b, ok := a.blobs[r.URL.Path]
	if !ok {
		refuse(w, http.StatusNotFound, "BlobNotFound")
		return
	}
	if v := r.Header.Get("X-Ms-Range"); v != "" {
		r.Header.Set("Range", v)
	}
	w.Header().Set("X-Ms-Blob-Type", "BlockBlob")
	w.Header().Set("ETag", `"`+strconv.Itoa(len(b))+`"`)
	http.ServeContent(w, r, "", time.Now(), bytes.NewReader(b))
}

func (a *Azure) write(w http.ResponseWriter, r *http.Request, body []byte) {
	q := r.URL.Query()
	if q.Get("comp") == "block" {
		a.blocks[r.URL.Path+"\x00"+q.Get("blockid")] = body
		w.WriteHeader(http.StatusCreated)
		return
	}
	if _, there := a.blobs[r.URL.Path]; there && r.Header.Get("If-None-Match") == "*" {
		refuse(w, http.StatusConflict, "BlobAlreadyExists")
		return
	}
	if q.Get("comp") == "blocklist" {
		var list struct {
			IDs []string `xml:",any"`
		}
		if err := xml.Unmarshal(body, &list); err != nil {
			refuse(w, http.StatusBadRequest, "InvalidXmlDocument")
			return
		}
		body = []byte{}
		for _, id := range list.IDs {
			b, ok := a.blocks[r.URL.Path+"\x00"+id]
			if !ok {
				refuse(w, http.StatusBadRequest, "InvalidBlockList")
				return
			}
			body = append(body, b...)
		}
	} else if r.Header.Get("X-Ms-Blob-Type") != "BlockBlob" {
		refuse(w, http.StatusBadRequest, "MissingRequiredHeader")
		return
	}
	a.blobs[r.URL.Path] = body
	w.Header().Set("ETag", `"`+strconv.Itoa(len(body))+`"`)
	w.WriteHeader(http.StatusCreated)
}

// Blob returns the bytes at a path, or nil.
func (a *Azure) Blob(path string) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.blobs[path]
}

// Damage changes a byte of a blob.
func (a *Azure) Damage(t *testing.T, path string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	b := bytes.Clone(a.blobs[path])
	if len(b) == 0 {
		t.Fatalf("there is no blob %s", path)
	}
	b[len(b)/2]++
	a.blobs[path] = b
}

// Lose removes a blob.
func (a *Azure) Lose(t *testing.T, path string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.blobs[path]; !ok {
		t.Fatalf("there is no blob %s", path)
	}
	delete(a.blobs, path)
}
