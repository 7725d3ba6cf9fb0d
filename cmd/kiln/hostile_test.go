package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/testscript"
)

// hostileTars are archives that want out, or lie.
func hostileTars() map[string][]tar.Header {
	return map[string][]tar.Header{
		"dotdot":   {{Name: "../../escaped", Typeflag: tar.TypeReg, Mode: 0o644}},
		"absolute": {{Name: "/escaped", Typeflag: tar.TypeReg, Mode: 0o644}},
		"symlink": {
			{Name: "way", Typeflag: tar.TypeSymlink, Linkname: "/", Mode: 0o777},
			{Name: "way/escaped", Typeflag: tar.TypeReg, Mode: 0o644},
		},
		"upward": {
			{Name: "way", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../..", Mode: 0o777},
			{Name: "way/escaped", Typeflag: tar.TypeReg, Mode: 0o644},
		},
		"hardlink": {{Name: "stolen", Typeflag: tar.TypeLink, Linkname: "../../../../../../etc/passwd", Mode: 0o644}},
		"device":   {{Name: "disk", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o666}},
	}
}

// scriptMakeTar: "mktar KIND FILE" writes a hostile archive.
func scriptMakeTar(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: mktar kind file")
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	headers, ok := hostileTars()[args[0]]
	switch {
	case ok:
		for _, h := range headers {
			ts.Check(w.WriteHeader(&h))
		}
		ts.Check(w.Close())
	case args[0] == "short": // says more than it has
		ts.Check(w.WriteHeader(&tar.Header{Name: "short", Typeflag: tar.TypeReg, Mode: 0o644, Size: 1 << 40}))
		buf.WriteString("that is all")
	case args[0] == "broken":
		ts.Check(w.WriteHeader(&tar.Header{Name: "broken", Typeflag: tar.TypeReg, Mode: 0o644}))
		copy(buf.Bytes()[148:], "notasum")
	default:
		ts.Fatalf("mktar: no kind %q", args[0])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), buf.Bytes(), 0o644))
}

// scriptRegistry: "registry NAME [fault]" starts a registry on loopback that
// holds the base image as library/base:1, and puts its address into NAME.
// Faults: a status code for blobs or, as "auth-CODE", for everything; "hang",
// "reset" and "lie" concern layers; "hang-upload" takes no blobs, and "login" wants
// the user "me" with the password "sesame".
func scriptRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: registry name [fault]")
	}
	fault := ""
	if len(args) == 2 {
		fault = args[1]
	}
	faults := &faultyRegistry{next: registry.New(registry.Logger(log.New(&bytes.Buffer{}, "", 0)))}
	faults.layers = map[string]bool{}
	host := strings.TrimPrefix(startLossy(ts, args[0], faults, faults.layers), "http://")
	ref, err := name.ParseReference(host+"/library/base:1", name.Insecure)
	ts.Check(err)
	index, err := layout.ImageIndexFromPath(ts.Getenv("BASE"))
	ts.Check(err)
	manifest, err := index.IndexManifest()
	ts.Check(err)
	image, err := index.Image(manifest.Manifests[0].Digest)
	ts.Check(err)
	ts.Check(ggcr.Write(ref, image))
	ts.Check(faults.arm(fault, image))
	ts.Setenv(args[0], host)
}

// faultyRegistry spoils the answers of a registry.
type faultyRegistry struct {
	next   http.Handler
	fault  string
	layers map[string]bool // paths end with one of these digests
}

func (f *faultyRegistry) arm(fault string, image v1.Image) error {
	layers, err := image.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		digest, err := l.Digest()
		if err != nil {
			return err
		}
		f.layers[digest.String()] = true
	}
	f.fault = fault
	return nil
}

var statusFault = regexp.MustCompile(`^(auth-)?([1-5]\d\d)$`)

func (f *faultyRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// That a layer exists, which a HEAD asks, is always told.
	layer := r.Method == http.MethodGet && f.layers[r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]]
	status := statusFault.FindStringSubmatch(f.fault)
	user, password, _ := r.BasicAuth()
	switch {
	case f.fault == "login" && (user != "me" || password != "sesame"):
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
	case f.fault == "login":
		f.next.ServeHTTP(w, r)
	case f.fault == "hang-upload" && strings.Contains(r.URL.Path, "/blobs/uploads/"):
		_, _ = io.Copy(io.Discard, r.Body) // only then it is seen when the client leaves
		<-r.Context().Done()
	case f.fault == "" || status == nil && !layer:
		f.next.ServeHTTP(w, r)
	case status != nil && (layer || status[1] != ""):
		code, err := strconv.Atoi(status[2])
		if err != nil {
			code = http.StatusInternalServerError
		}
		w.WriteHeader(code)
	case status != nil:
		f.next.ServeHTTP(w, r)
	case f.fault == "hang":
		<-r.Context().Done()
	default:
		f.spoil(w, r)
	}
}

// spoil gives a layer that ends early, or one that has other bytes.
func (f *faultyRegistry) spoil(w http.ResponseWriter, r *http.Request) {
	record := httptest.NewRecorder()
	f.next.ServeHTTP(record, r)
	body := record.Body.Bytes()
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	if f.fault == "lie" {
		body[len(body)/2] ^= 0xff
		_, _ = w.Write(body) // the client may be gone
		return
	}
	_, _ = w.Write(body[:len(body)/2])
	if flusher, ok := w.(http.Flusher); ok {
		flusher.Flush()
	}
	panic(http.ErrAbortHandler) // resets the connection
}
