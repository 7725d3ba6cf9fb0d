package git_test

import (
	"context"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/layer/layertest"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/internal/source/git"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
	"github.com/kiln-build/kiln/internal/store"
	"github.com/kiln-build/kiln/llb"
)

// world is what a source works in.
type world struct {
	layers  *layer.Store
	db      *store.Store
	repos   *git.Repos
	scratch string
	root    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	root := t.TempDir()
	db, err := store.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	layertest.Closing(t, db.Close)
	layers := layertest.Open(t, root, db)
	repos, err := git.OpenRepos(filepath.Join(root, "git"))
	if err != nil {
		t.Fatal(err)
	}
	scratch := filepath.Join(root, "scratch")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	return &world{layers, db, repos, scratch, root}
}

// source is a source without memory of what was asked.
func (w *world) source(blobs ...source.Source) *git.Source {
	return git.New(git.Config{Layers: w.layers, Memo: w.db, Repos: w.repos, Scratch: w.scratch, Blobs: blobs})
}

// get resolves and fetches.
func (w *world) get(ctx context.Context, s *git.Source, o *llb.SourceOp) (*source.Pin, *layer.Ref, error) {
	pin, err := s.Resolve(ctx, o, source.Options{})
	if err != nil {
		return nil, nil, err
	}
	ref, err := s.Fetch(ctx, pin)
	return pin, ref, err
}

// must does the same, and returns the files.
func (w *world) must(t *testing.T, s *git.Source, o *llb.SourceOp) (*source.Pin, map[string]string) {
	t.Helper()
	pin, ref, err := w.get(t.Context(), s, o)
	if err != nil {
		t.Fatalf("%s: %v", o.Identifier, err)
	}
	return pin, sourcetest.Files(t, w.layers, ref)
}

// clean fails the test if the source has left something in its scratch directory.
func (w *world) clean(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(w.scratch)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the scratch directory: %v, %v", left, err)
	}
}

// origin is a repository that others fetch from.
type origin struct {
	t   *testing.T
	dir string
}

// newOrigin makes a repository in dir with a branch "main".
func newOrigin(t *testing.T, dir string, initArgs ...string) *origin {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	o := &origin{t, dir}
	o.git(append([]string{"init", "-q", "-b", "main"}, initArgs...)...)
	return o
}

// git runs git in the repository, as somebody with a fixed name and clock.
func (o *origin) git(args ...string) string {
	o.t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = o.dir
	cmd.Env = append(os.Environ(),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com",
		"GIT_COMMITTER_NAME=C", "GIT_COMMITTER_EMAIL=c@example.com",
		"GIT_AUTHOR_DATE=1000000000 +0000", "GIT_COMMITTER_DATE=1100000000 +0000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		o.t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// write writes a file, executable if its name ends with ".sh".
func (o *origin) write(name, data string) {
	o.t.Helper()
	file := filepath.Join(o.dir, name)
	mode := os.FileMode(0o644)
	if strings.HasSuffix(name, ".sh") {
		mode = 0o755
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		o.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(data), mode); err != nil {
		o.t.Fatal(err)
	}
}

// commit commits everything, with the pairs of names and data written before,
// and returns the commit.
func (o *origin) commit(files ...string) string {
	o.t.Helper()
	for i := 0; i < len(files); i += 2 {
		o.write(files[i], files[i+1])
	}
	o.git("add", "-A")
	o.git("commit", "-q", "--allow-empty", "-m", "a commit")
	return o.git("rev-parse", "HEAD")
}

// server serves the repositories below a directory as git http-backend does.
type server struct {
	url, host string
	mu        sync.Mutex
	auth      string // what Authorization must be; "" is open to all
	requests  []string
	before    func(http.ResponseWriter, *http.Request) bool // answers itself if true
}

func serve(t *testing.T, dir string) *server {
	t.Helper()
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatalf("these tests need git: %v", err)
	}
	backend := &cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(out)), "git-http-backend"), Dir: dir, Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + dir, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1",
			"GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	s := &server{}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, strings.TrimSpace(r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization")))
		auth, before := s.auth, s.before
		s.mu.Unlock()
		if before != nil && before(w, r) {
			return
		}
		if auth != "" && r.Header.Get("Authorization") != auth {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	s.url, s.host = web.URL, strings.TrimPrefix(web.URL, "http://")
	return s
}

// take returns what was asked since the last time.
func (s *server) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.requests
	s.requests = nil
	return r
}

func (s *server) set(auth string, before func(http.ResponseWriter, *http.Request) bool) {
	s.mu.Lock()
	s.auth, s.before = auth, before
	s.mu.Unlock()
}

// op is the source of a repository of a server: rest is path#ref:subdir.
func (s *server) op(rest string, attrs ...string) *llb.SourceOp {
	path, _, _ := strings.Cut(rest, "#")
	o := &llb.SourceOp{Identifier: "git://" + s.host + rest, Attrs: map[string]string{llb.AttrGitFullURL: s.url + path}}
	for i := 0; i < len(attrs); i += 2 {
		o.Attrs[attrs[i]] = attrs[i+1]
	}
	return o
}
