package corpus

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/crypto/ssh"
)

// Site is what cases load from the network: files, repositories and images, all
// from this machine.
type Site struct {
	// Facts are words for Read: HTTP, GIT, SSH and SCP (what addresses of
	// repositories begin with), REGISTRY, and of the repository "repo" the COMMIT,
	// the FIRST commit and the TAG object; SHA256 is the commit of "sha256".
	Facts   map[string]string
	servers []*httptest.Server
	shell   *gitShell
}

// Close ends the servers.
func (s *Site) Close() {
	for _, server := range s.servers {
		server.Close()
	}
	if s.shell != nil {
		_ = s.shell.Close() // nobody asks it any more
	}
}

func (s *Site) serve(h http.Handler) string {
	server := httptest.NewServer(h)
	s.servers = append(s.servers, server)
	return server.URL
}

// NewSite serves the bases as images of a registry, and what the script makes in
// dir: the folder "http", and repositories in the folder "git", by ssh to those
// who have a key.
func NewSite(ctx context.Context, dir, script string, bases *Bases, user ssh.PublicKey) (s *Site, err error) {
	s = &Site{Facts: map[string]string{}}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	cmd := exec.CommandContext(ctx, "sh", "-eu", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "HOME="+dir, "TZ=UTC",
		"GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=C", "GIT_COMMITTER_EMAIL=c@example.com",
		"GIT_AUTHOR_DATE=1000000000 +0000", "GIT_COMMITTER_DATE=1100000000 +0000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("make the site: %w: %s", err, out)
	}
	// The script ends with lines of NAME=VALUE.
	for line := range strings.Lines(string(out)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			s.Facts[k] = v
		}
	}
	s.Facts["HTTP"] = s.serve(serveFiles(filepath.Join(dir, "http")))
	exe, err := exec.CommandContext(ctx, "git", "--exec-path").Output()
	if err != nil {
		return nil, fmt.Errorf("find git's programs: %w", err)
	}
	s.Facts["GIT"] = s.serve(&cgi.Handler{
		Path: filepath.Join(strings.TrimSpace(string(exe)), "git-http-backend"), Dir: dir, Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + filepath.Join(dir, "git"), "GIT_HTTP_EXPORT_ALL=1",
			"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	})
	if s.shell, err = serveGit(filepath.Join(dir, "git"), user); err != nil {
		return nil, fmt.Errorf("serve repositories by ssh: %w", err)
	}
	s.Facts["SSH"], s.Facts["SCP"] = s.shell.url, s.shell.scp
	s.Facts["REGISTRY"] = strings.TrimPrefix(s.serve(registry.New(registry.Logger(log.New(io.Discard, "", 0)))), "http://")
	for n, d := range bases.Digests {
		s.Facts["digest-"+n] = d
	}
	return s, bases.push(s.Facts["REGISTRY"])
}

func (b *Bases) push(host string) error {
	for n, img := range b.images {
		ref, err := name.NewTag(host+"/bases/"+n+":latest", name.Insecure)
		if err != nil {
			return err
		}
		switch img := img.(type) {
		case v1.Image:
			err = remote.Write(ref, img)
		case v1.ImageIndex:
			err = remote.WriteIndex(ref, img)
		}
		if err != nil {
			return fmt.Errorf("push %s: %w", n, err)
		}
	}
	return nil
}

// serveFiles serves a folder. The path /status/N answers with a status,
// /named/... sends a Content-Disposition, and /plain/... no time and no tag.
func serveFiles(dir string) http.Handler {
	files := http.FileServer(http.Dir(dir))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch kind, rest, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); kind {
		case "missing":
			http.Error(w, "gone", http.StatusNotFound)
			return
		case "moved":
			http.Redirect(w, r, "/"+rest, http.StatusFound)
			return
		case "named":
			w.Header().Set("Content-Disposition", `attachment; filename="given name"`)
			r.URL.Path = "/" + rest
		case "plain":
			w.Header().Set("Last-Modified", "")
			data, err := os.ReadFile(filepath.Join(dir, filepath.Base(rest)))
			if err != nil {
				http.Error(w, err.Error(), http.StatusNotFound)
				return
			}
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader(string(data)))
			return
		}
		files.ServeHTTP(w, r)
	})
}
