package conformance

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/pb"

	"github.com/kiln-build/kiln/conformance/peer"
)

// gitIn runs git in a directory, as somebody with a fixed name and clock.
func gitIn(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_COMMITTER_NAME=C", "GIT_COMMITTER_EMAIL=c@example.com",
		"GIT_AUTHOR_DATE=1000000000 +0000", "GIT_COMMITTER_DATE=1100000000 +0000")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// gitSite serves repositories as git http-backend does: "repo", with a submodule
// "sub", and "private", for those with a token.
type gitSite struct {
	url, first, second, tag string
}

func newGitSite(t *testing.T) *gitSite {
	t.Helper()
	top := t.TempDir()
	repo, sub := filepath.Join(top, "repo"), filepath.Join(top, "sub")
	for dir, files := range map[string]map[string]string{
		sub:  {"inner": "of the submodule\n"},
		repo: {"a": "1\n", "dir/b": "in dir\n", "dir/deep/c": "deep\n"},
	} {
		if err := os.MkdirAll(filepath.Join(dir, "dir", "deep"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := peer.WriteFiles(dir, files); err != nil {
			t.Fatal(err)
		}
		gitIn(t, dir, "init", "-q", "-b", "main")
		gitIn(t, dir, "config", "protocol.file.allow", "always")
	}
	if err := os.WriteFile(filepath.Join(repo, "run.sh"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("dir/b", filepath.Join(repo, "link")); err != nil {
		t.Fatal(err)
	}
	gitIn(t, sub, "add", ".")
	gitIn(t, sub, "commit", "-q", "-m", "sub")
	gitIn(t, repo, "add", ".")
	gitIn(t, repo, "commit", "-q", "-m", "first")
	gitIn(t, repo, "tag", "-a", "v1", "-m", "v1")
	gitIn(t, repo, "tag", "light")
	s := &gitSite{first: gitIn(t, repo, "rev-parse", "HEAD"), tag: gitIn(t, repo, "rev-parse", "v1")}
	gitIn(t, repo, "-c", "protocol.file.allow=always", "submodule", "add", "-q", sub, "vendor/sub")
	gitIn(t, repo, "config", "-f", ".gitmodules", "submodule.vendor/sub.url", "../../sub")
	if err := os.WriteFile(filepath.Join(repo, "a"), []byte("2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	gitIn(t, repo, "add", ".")
	gitIn(t, repo, "commit", "-q", "-m", "second")
	s.second = gitIn(t, repo, "rev-parse", "HEAD")
	gitIn(t, repo, "branch", "feature/x", s.first)

	backend := &cgi.Handler{
		Path: filepath.Join(gitIn(t, top, "--exec-path"), "git-http-backend"), Dir: top, Stderr: io.Discard,
		Env: []string{"GIT_PROJECT_ROOT=" + top, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1",
			"GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"},
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if rest, private := strings.CutPrefix(r.URL.Path, "/private"); private {
			user, password, _ := r.BasicAuth()
			if user != "x-access-token" || password != "sesame" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			r.URL.Path = "/repo" + rest
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(web.Close)
	s.url = web.URL
	return s
}

// TestGit has both daemons check out the same, and compares the files.
func TestGit(t *testing.T) {
	s := newGitSite(t)
	for name, st := range map[string]llb.State{
		"branch":          llb.Git(s.url+"/repo/.git", "main"),
		"default":         llb.Git(s.url+"/repo/.git", ""),
		"full name":       llb.Git(s.url+"/repo/.git", "refs/heads/feature/x"),
		"annotated tag":   llb.Git(s.url+"/repo/.git", "v1"),
		"tag":             llb.Git(s.url+"/repo/.git", "light"),
		"commit":          llb.Git(s.url+"/repo/.git", s.first),
		"directory":       llb.Git(s.url+"/repo/.git", "main:dir"),
		"of a submodule":  llb.Git(s.url+"/repo/.git", "main:vendor"),
		"no submodules":   llb.Git(s.url+"/repo/.git", "main", llb.GitSkipSubmodules()),
		"times":           llb.Git(s.url+"/repo/.git", "main", llb.GitMTimeCommit()),
		"checksum":        llb.Git(s.url+"/repo/.git", "v1", llb.GitChecksum(s.first)),
		"fetch by commit": llb.Git(s.url+"/repo/.git", "main", llb.GitChecksum(s.first), llb.GitFetchByCommit()),
		"git directory":   llb.Git(s.url+"/repo/.git", "main", llb.KeepGitDir()),
		"tag's directory": llb.Git(s.url+"/repo/.git", "v1", llb.KeepGitDir()),
		"private":         llb.Git(s.url+"/private/.git", "main"),
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			files := map[string]map[string]string{}
			for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
				files[d.Name] = gitFiles(t, d, st, name == "times")
			}
			if len(files["kiln"]) < 2 {
				t.Errorf("only files %v", files["kiln"])
			}
			compareFiles(t, files["kiln"], files["buildkit"])
		})
	}
}

// gitFiles builds a state and describes its files. What is in a git directory
// depends on times; of that, HEAD counts alone.
func gitFiles(t *testing.T, d *peer.Daemon, st llb.State, times bool) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := dial(ctx, t, d)
	defer c.Close()
	def, err := st.Marshal(ctx)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), d.Name+".tar")
	_, err = c.Solve(ctx, def, client.SolveOpt{
		Exports: []client.ExportEntry{{Type: client.ExporterTar, Output: func(map[string]string) (io.WriteCloser, error) { return os.Create(file) }}},
		Session: []session.Attachable{secretsprovider.FromMap(map[string][]byte{"GIT_AUTH_TOKEN": []byte("sesame")})},
	}, nil)
	if err != nil {
		t.Fatalf("%s: %v\ndaemon: %s", d.Name, err, d.Log())
	}
	in, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	files := map[string]string{}
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Trim(h.Name, "/")
		if base := filepath.Base(name); strings.HasPrefix(name, ".git/") && name != ".git/HEAD" || base == ".git" && name != ".git" {
			continue
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			t.Fatal(err)
		}
		files[name] = fmt.Sprintf("type %c mode %o owner %d:%d link %q size %d content %x", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, h.Size, sum.Sum(nil)[:8])
		if times {
			files[name] += h.ModTime.UTC().Format(" 2006-01-02 15:04:05")
		}
	}
}

// TestGitMetadata asks both daemons what a reference is.
func TestGitMetadata(t *testing.T) {
	s := newGitSite(t)
	for _, ref := range []string{"", "#main", "#v1", "#light", "#refs/tags/v1", "#feature/x", "#" + s.first, "#" + s.tag} {
		for _, objects := range []bool{false, true} {
			told := map[string]string{}
			for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
				err := asFrontend(t, d, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
					op := &pb.SourceOp{Identifier: "git://" + strings.TrimPrefix(s.url, "http://") + "/repo/.git" + ref,
						Attrs: map[string]string{pb.AttrFullRemoteURL: s.url + "/repo/.git"}}
					m, err := c.ResolveSourceMetadata(ctx, op, sourceresolver.Opt{GitOpt: &sourceresolver.ResolveGitOpt{ReturnObject: objects}})
					if err != nil {
						return nil, err
					}
					told[d.Name] = fmt.Sprintf("%v %+v", m.Op, *m.Git)
					return gateway.NewResult(), nil
				})
				if err != nil {
					t.Errorf("%s: %s: %v", d.Name, ref, err)
				}
			}
			if told["kiln"] != told["buildkit"] {
				t.Errorf("%q:\n  Kiln:     %s\n  BuildKit: %s", ref, told["kiln"], told["buildkit"])
			}
		}
	}
}

// TestGitErrors holds that both daemons refuse the same, in words that tools look for.
func TestGitErrors(t *testing.T) {
	s := newGitSite(t)
	for want, st := range map[string]llb.State{
		"repository does not contain ref nosuch": llb.Git(s.url+"/repo/.git", "nosuch"),
		"expected checksum to match":             llb.Git(s.url+"/repo/.git", "main", llb.GitChecksum(s.first)),
		"expected hex commit hash":               llb.Git(s.url+"/repo/.git", "main", llb.GitChecksum("foobar")),
		"invalid git ref":                        llb.Git(s.url+"/repo/.git", "--upload-pack=evil"),
		"failed to fetch remote":                 llb.Git(s.url+"/nosuch/.git", "main"),
		"error fetching default branch":          llb.Git(s.url+"/private/.git", ""),
		"invalid subdir":                         llb.Git(s.url+"/repo/.git", "main:a"),
		"fetch-by-commit requires":               llb.Git(s.url+"/repo/.git", "main", llb.GitFetchByCommit()),
	} {
		for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
			err := asFrontend(t, d, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
				def, err := st.Marshal(ctx)
				if err != nil {
					return nil, err
				}
				return c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
			})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %q", d.Name, err, want)
			}
		}
	}
}
