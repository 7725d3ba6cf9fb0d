package git_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
	"github.com/kiln-build/kiln/llb"
)

// blobs is a source of blobs in memory.
type blobs struct {
	layers *layer.Store
	data   map[digest.Digest]string
	asked  []*llb.SourceOp
}

func (b *blobs) Schemes() []string { return []string{"docker-image+blob", "oci-layout+blob"} }

func (b *blobs) Resolve(_ context.Context, op *llb.SourceOp, _ source.Options) (*source.Pin, error) {
	b.asked = append(b.asked, op)
	_, d, _ := strings.Cut(op.Identifier, "@")
	return &source.Pin{Op: op, Digest: digest.Digest(d), Name: op.Attrs[llb.AttrHTTPFilename]}, nil
}

func (b *blobs) Fetch(ctx context.Context, pin *source.Pin) (*layer.Ref, error) {
	data, ok := b.data[pin.Digest]
	if !ok {
		return nil, fmt.Errorf("no blob %s", pin.Digest)
	}
	m, err := b.layers.New(ctx, nil, layer.NewOptions{})
	if err != nil {
		return nil, err
	}
	dir, release, err := m.Mount(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, pin.Name), []byte(data), 0o600); err != nil {
		return nil, err
	}
	if err := release(); err != nil {
		return nil, err
	}
	return m.Commit(ctx)
}

// TestBundles makes bundles of a repository, and checkouts of the bundles where
// the repository is not to be had.
func TestBundles(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) { testBundles(t, format) })
	}
}

func testBundles(t *testing.T, format string) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"), "--object-format="+format)
	o.commit("a", "0")
	commit := o.commit("a", "1", "sub/b", "2")
	o.git("tag", "-a", "v1", "-m", "v1")
	o.git("update-server-info")
	s := serve(t, top)
	kept := &blobs{layers: w.layers, data: map[digest.Digest]string{}}
	src := w.source(kept)
	bundles := map[string]digest.Digest{}
	for _, ref := range []string{"main", "v1", commit} {
		// Some of it is here already, without history.
		w.must(t, src, s.op("/r.git#"+ref))
		pin, files := w.must(t, src, s.op("/r.git#"+ref, "git.checkoutbundle", "true", "git.checksum", commit))
		if len(files) != 1 || files["bundle"] == "" || pin.Key != commit+"(bundle)" {
			t.Fatalf("%s: got %d files with key %s", ref, len(files), pin.Key)
		}
		bundles[ref] = digest.FromString(files["bundle"])
		kept.data[bundles[ref]] = files["bundle"]
	}
	s.take()
	fresh := newWorld(t)
	kept.layers = fresh.layers
	for _, tc := range []struct {
		bundle, ref string
		attrs       []string
		want        string // file .git/<name>, if the directory is kept
	}{
		{"main", "main", nil, ""},
		{"main", "refs/heads/main", nil, ""},
		{"main", "", nil, ""},
		{"main", commit, nil, ""},
		{"main", "main", []string{"git.checksum", commit[:8]}, ""},
		{"main", "", []string{"git.checksum", commit[:8]}, ""},
		{"v1", "v1", nil, ""},
		{"v1", "refs/tags/v1", []string{"git.keepgitdir", "true"}, ".git/refs/tags/v1"},
		{commit, commit, nil, ""},
		{"main", "main", []string{"git.keepgitdir", "true"}, ".git/refs/heads/main"},
	} {
		if usage, err := fresh.repos.Usage(); err != nil {
			t.Fatal(err)
		} else if len(usage) > 0 {
			if _, err := fresh.repos.Remove(usage[0].ID); err != nil {
				t.Fatal(err)
			}
		}
		op := s.op("/r.git#"+tc.ref, append([]string{
			"git.checksum", commit, "git.bundle", "oci-layout+blob://not/real@" + bundles[tc.bundle].String(), "oci.session", "s", "oci.store", "mine",
		}, tc.attrs...)...)
		_, ref, err := fresh.get(t.Context(), fresh.source(kept), op)
		if err != nil {
			t.Errorf("%+v: %v", tc, err)
			continue
		}
		files := sourcetest.Files(t, fresh.layers, ref)
		if files["a"] != "1" || files["sub/b"] != "2" || tc.want != "" && files[tc.want] == "" {
			t.Errorf("%+v: got %v", tc, maps.Keys(files))
		}
	}
	if got := s.take(); len(got) != 0 {
		t.Errorf("the remote was asked: %v", got)
	}
	last := kept.asked[len(kept.asked)-1]
	if last.Attrs[llb.AttrOCIStore] != "mine" || last.Attrs[llb.AttrOCISession] != "s" {
		t.Errorf("asked for %+v", last)
	}
	fresh.clean(t)
}

func TestBadBundles(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	commit := o.commit("a", "1")
	o.git("update-ref", "refs/heads/-evil", commit)
	file := filepath.Join(t.TempDir(), "b")
	o.git("bundle", "create", "-q", file, "main")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	kept := &blobs{layers: w.layers, data: map[digest.Digest]string{}}
	for name, tc := range map[string]struct{ data, checksum, ref, want string }{
		"another commit":  {string(good), strings.Repeat("a", 40), "", "not found in bundle"},
		"another ref":     {string(good), commit, "nosuch", "does not contain ref"},
		"no bundle":       {"hello", commit, "main", "inspect git bundle"},
		"cut off":         {string(good[:len(good)-30]), commit, "main", "import git bundle"},
		"empty":           {"", commit, "main", "inspect git bundle"},
		"option as a ref": {"# v2 git bundle\n" + commit + " --upload-pack=/tmp/evil.sh\n\nPACK", commit, "main", "bundle"},
		"ref outside":     {"# v2 git bundle\n" + commit + " ../../../config\n\nPACK", commit, "main", "bundle"},
	} {
		d := digest.FromString(tc.data)
		kept.data[d] = tc.data
		op := &llb.SourceOp{Identifier: "git://example.com/r.git#" + tc.ref, Attrs: map[string]string{
			"git.checksum": tc.checksum, "git.bundle": "docker-image+blob://example.com/x@" + d.String(),
		}}
		if _, _, err := w.get(t.Context(), w.source(kept), op); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	// What comes is not what was named.
	d := digest.FromString("x")
	kept.data[d] = string(good)
	op := &llb.SourceOp{Identifier: "git://example.com/r.git", Attrs: map[string]string{
		"git.checksum": commit, "git.bundle": "docker-image+blob://example.com/x@" + d.String(),
	}}
	if _, _, err := w.get(t.Context(), w.source(kept), op); err == nil || !strings.Contains(err.Error(), "expected checksum to match") {
		t.Errorf("got %v", err)
	}
	if _, _, err := w.get(t.Context(), w.source(), op); err == nil || !strings.Contains(err.Error(), "no source takes") {
		t.Errorf("got %v", err)
	}
	w.clean(t)
}
