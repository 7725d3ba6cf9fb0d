package git_test

import (
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
)

func TestSuite(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Subject {
		w := newWorld(t)
		top := t.TempDir()
		o := newOrigin(t, filepath.Join(top, "r.git"))
		o.commit("a", "1", "dir/run.sh", "2")
		s := serve(t, top)
		return sourcetest.Subject{
			Source: w.source(), Layers: w.layers, Context: t.Context(), Op: s.op("/r.git#main"),
			Files: map[string]string{"a": "1", "dir/run.sh": "2"},
			Change: func(*testing.T) map[string]string {
				o.commit("a", "changed")
				return map[string]string{"a": "changed", "dir/run.sh": "2"}
			},
		}
	})
}

func TestSuiteWithCommit(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T) sourcetest.Subject {
		w := newWorld(t)
		top := t.TempDir()
		commit := newOrigin(t, filepath.Join(top, "r.git")).commit("a", "1")
		return sourcetest.Subject{
			Source: w.source(), Layers: w.layers, Context: t.Context(), Op: serve(t, top).op("/r.git#" + commit),
			Files: map[string]string{"a": "1"},
		}
	})
}

// TestReferences resolves every kind of reference, in both formats of objects
// and from both kinds of servers.
func TestReferences(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		for _, kind := range []string{"smart", "dumb"} {
			t.Run(format+" "+kind, func(t *testing.T) {
				testReferences(t, format, kind == "smart")
			})
		}
	}
}

func testReferences(t *testing.T, format string, smart bool) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r"), "--object-format="+format)
	first := o.commit("a", "1", "sub/b", "in sub")
	o.git("tag", "light")
	o.git("tag", "-a", "heavy", "-m", "heavy")
	tag := o.git("rev-parse", "heavy")
	second := o.commit("a", "2")
	o.git("branch", "feature/x")
	third := o.commit("a", "3")
	o.git("branch", "light2", first)
	o.git("tag", "feature/x2", first)
	o.git("update-server-info")
	s := serve(t, top)
	if !smart {
		files := httptest.NewServer(http.FileServer(http.Dir(top)))
		t.Cleanup(files.Close)
		s = &server{url: files.URL, host: strings.TrimPrefix(files.URL, "http://")}
	}
	src := w.source()
	for _, tc := range []struct {
		ref, want, full, key, commit string
		attrs                        []string
	}{
		{"", "3", "refs/heads/main", third, "", nil},
		{"main", "3", "refs/heads/main", third, "", nil},
		{"refs/heads/main", "3", "refs/heads/main", third, "", nil},
		{"heads/main", "3", "refs/heads/main", third, "", nil},
		{"feature/x", "2", "refs/heads/feature/x", second, "", nil},
		{"light", "1", "refs/tags/light", first, "", nil},
		{"heavy", "1", "refs/tags/heavy", first, first, nil},
		{"refs/tags/heavy", "1", "refs/tags/heavy", first, first, nil},
		{"heavy", "1", "refs/tags/heavy", tag + ".git#refs/tags/heavy", "", []string{"git.keepgitdir", "true"}},
		{"main", "3", "refs/heads/main", third + ".git#refs/heads/main", "", []string{"git.keepgitdir", "true"}},
		{second, "2", second, second, "", nil},
		{second, "2", second, second + ".git#" + second, "", []string{"git.keepgitdir", "true"}},
		{"main", "3", "refs/heads/main", third + "(skip-submodules)", "", []string{"git.skipsubmodules", "true"}},
		{"main", "3", "refs/heads/main", third + "(mtime=commit)", "", []string{"git.mtime", "commit"}},
		{"main", "3", "refs/heads/main", third, "", []string{"git.mtime", "checkout", "git.checksum", third[:7]}},
		{"heavy", "1", "refs/tags/heavy", first, first, []string{"git.checksum", tag[:9]}},
		{"heavy", "1", "refs/tags/heavy", first, first, []string{"git.checksum", first}},
		{"main", "2", "refs/heads/main", second, "", []string{"git.checksum", second, "git.fetchbycommit", "true"}},
		{"", "2", second, second, "", []string{"git.checksum", second, "git.fetchbycommit", "true"}},
	} {
		op := s.op("/r/.git#"+tc.ref, tc.attrs...)
		pin, files := w.must(t, src, op)
		if files["a"] != tc.want || pin.Git.Ref != tc.full || pin.Key != tc.key || pin.Git.CommitChecksum != tc.commit {
			t.Errorf("%q %v: got a=%s, %+v, key %s; want %+v", tc.ref, tc.attrs, files["a"], pin.Git, pin.Key, tc)
		}
		if _, ok := files[".git/HEAD"]; ok != strings.Contains(tc.key, ".git#") {
			t.Errorf("%q %v: has .git: %v", tc.ref, tc.attrs, ok)
		}
	}
	pin, files := w.must(t, src, s.op("/r/.git#light:/x/../sub/"))
	if !maps.Equal(files, map[string]string{"b": "in sub"}) || pin.Key != first+":sub" {
		t.Errorf("subdir: files %v, key %s", files, pin.Key)
	}
	for _, tc := range []struct {
		ref, want string
		attrs     []string
	}{
		{"nosuch", "repository does not contain ref nosuch", nil},
		{"refs/heads/light", "does not contain ref", nil},
		{"main", "expected checksum to match " + first, []string{"git.checksum", first}},
		{second, "expected checksum to match", []string{"git.checksum", first}},
		{second[:8], "does not contain ref", nil},
		{"main", "invalid checksum foobar for Git URL, expected hex commit hash", []string{"git.checksum", "foobar"}},
		{"main", "fetch-by-commit requires a checksum", []string{"git.fetchbycommit", "true"}},
		{"main", "fetch-by-commit requires a full commit", []string{"git.fetchbycommit", "true", "git.checksum", first[:8]}},
		{strings.Repeat("0", len(first)-1) + "1", "failed to fetch remote", nil},
		{"light:nosuch", "nosuch", nil},
		{"light:sub/b", "non-directory", nil},
	} {
		if _, _, err := w.get(t.Context(), src, s.op("/r/.git#"+tc.ref, tc.attrs...)); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q %v: got %v, want %q", tc.ref, tc.attrs, err, tc.want)
		}
	}
	w.clean(t)
}

// TestMovedReference checks out what was resolved, even if the branch moves or
// vanishes in between.
func TestMovedReference(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	o.commit("a", "1")
	o.git("branch", "b")
	s, src := serve(t, top), w.source()
	for _, change := range []func(){
		func() { o.commit("a", "2"); o.git("branch", "-f", "b") },
		func() { o.git("branch", "-D", "b"); o.git("branch", "b/c") },
	} {
		pin, err := src.Resolve(t.Context(), s.op("/r.git#b"), source.Options{})
		if err != nil {
			t.Fatal(err)
		}
		want := o.git("show", "b:a")
		change()
		ref, err := src.Fetch(t.Context(), pin)
		if err != nil {
			t.Fatal(err)
		}
		if got := sourcetest.Files(t, w.layers, ref); got["a"] != want {
			t.Errorf("got %v, want a=%s", got, want)
		}
	}
	// A dumb server gives what is gone from its references, as long as it is there.
	o.git("tag", "-a", "v1", "-m", "v1")
	o.git("update-server-info")
	files := httptest.NewServer(http.FileServer(http.Dir(top)))
	t.Cleanup(files.Close)
	dumb := &server{url: files.URL, host: strings.TrimPrefix(files.URL, "http://")}
	pin, err := src.Resolve(t.Context(), dumb.op("/r.git/.git#v1"), source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.commit("a", "3")
	o.git("tag", "-f", "v1")
	o.git("update-server-info")
	ref, err := src.Fetch(t.Context(), pin)
	if err != nil {
		t.Fatal(err)
	}
	if got := sourcetest.Files(t, w.layers, ref); got["a"] != "2" {
		t.Errorf("got %v", got)
	}
	o.git("branch", "-f", "b/c", "HEAD^")
	// A branch below what was a branch.
	if _, files := w.must(t, src, s.op("/r.git#b/c")); files["a"] != "2" {
		t.Errorf("got %v", files)
	}
}

// TestSharedRepository fetches only what is new, and survives the loss of what
// it kept.
func TestSharedRepository(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	commit := o.commit("a", "1")
	s := serve(t, top)
	w.must(t, w.source(), s.op("/r.git#main:.", "git.keepgitdir", "true"))
	s.take()
	// The objects are here: the same commit by another way costs no fetch.
	_, files := w.must(t, w.source(), s.op("/r.git#"+commit))
	if got := s.take(); len(got) != 0 || files["a"] != "1" {
		t.Errorf("requests %v, files %v", got, files)
	}
	usage, err := w.repos.Usage()
	if err != nil || len(usage) != 1 || usage[0].InUse || usage[0].Size == 0 || usage[0].UsageCount != 2 ||
		!strings.HasSuffix(usage[0].Description, s.url+"/r.git") {
		t.Fatalf("usage %+v, %v", usage, err)
	}
	// What is damaged is made anew.
	objects := filepath.Join(w.root, "git", usage[0].ID, "repo.git", "objects")
	if err := os.RemoveAll(objects); err != nil {
		t.Fatal(err)
	}
	o.commit("a", "2")
	if _, files := w.must(t, w.source(), s.op("/r.git#main")); files["a"] != "2" {
		t.Errorf("got %v", files)
	}
	if removed, err := w.repos.Remove(usage[0].ID); err != nil || !removed {
		t.Fatalf("removed %v, %v", removed, err)
	}
	if removed, err := w.repos.Remove(usage[0].ID); err != nil || removed {
		t.Errorf("removed %v, %v, though it was gone", removed, err)
	}
	if removed, err := w.repos.Remove("../git"); err != nil || removed {
		t.Errorf("removed %v, %v, though it is no repository", removed, err)
	}
	o.commit("a", "3")
	if _, files := w.must(t, w.source(), s.op("/r.git#main")); files["a"] != "3" {
		t.Errorf("got %v", files)
	}
}

func TestModesAndTimes(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	o.write("dir/f", "1")
	if err := os.Symlink("f", filepath.Join(o.dir, "dir/link")); err != nil {
		t.Fatal(err)
	}
	o.commit("x.sh", "2")
	s := serve(t, top)
	_, ref, err := w.get(t.Context(), w.source(), s.op("/r.git#main", "git.mtime", "commit"))
	if err != nil {
		t.Fatal(err)
	}
	dir, release, err := w.layers.Mount(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{
		".": os.ModeDir | 0o755, "dir": os.ModeDir | 0o755, "dir/f": 0o644, "x.sh": 0o755, "dir/link": os.ModeSymlink | 0o777,
	} {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want || !info.ModTime().Equal(time.Unix(1100000000, 0)) {
			t.Errorf("%s: mode %v at %v, want %v at the commit's time", name, info.Mode(), info.ModTime().UTC(), want)
		}
	}
	if err := release(); err != nil {
		t.Error(err)
	}
}

func TestWritableFiles(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	o.commit("dir/f", "1", "x.sh", "2")
	s, src := serve(t, top), w.source()
	for _, writable := range []bool{false, true, false} {
		pin, err := src.Resolve(t.Context(), s.op("/r.git#main"), source.Options{WritableFiles: writable})
		if err != nil {
			t.Fatal(err)
		}
		ref, err := src.Fetch(t.Context(), pin)
		if err != nil {
			t.Fatal(err)
		}
		dir, release, err := w.layers.Mount(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]os.FileMode{"dir/f": 0o644, "x.sh": 0o755, "dir": os.ModeDir | 0o755}
		if writable {
			want["dir/f"] = 0o666
		}
		for name, mode := range want {
			if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || info.Mode() != mode {
				t.Errorf("writable %v: %s has mode %v, %v; want %v", writable, name, info.Mode(), err, mode)
			}
		}
		if err := release(); err != nil {
			t.Error(err)
		}
	}
}

// TestGitDir looks at what is left of git in the files.
func TestGitDir(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	commit := o.commit("a", "1")
	o.git("tag", "-a", "v1", "-m", "v1")
	s := serve(t, top)
	for _, tc := range []struct{ ref, show, want string }{
		{"main", "refs/heads/main", commit}, {"v1", "refs/tags/v1^{commit}", commit}, {commit, "HEAD", commit}, {"", "refs/heads/main", commit},
	} {
		_, ref, err := w.get(t.Context(), w.source(), s.op("/r.git#"+tc.ref, "git.keepgitdir", "true"))
		if err != nil {
			t.Fatal(err)
		}
		dir, release, err := w.layers.Mount(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		in := &origin{t, dir}
		flags := []string{"-c", "safe.directory=*"}
		if got := in.git(append(flags, "rev-parse", tc.show)...); got != tc.want {
			t.Errorf("%s: %s is %s, want %s", tc.ref, tc.show, got, tc.want)
		}
		if got := in.git(append(flags, "rev-parse", "HEAD")...); got != commit {
			t.Errorf("%s: HEAD is %s, want %s", tc.ref, got, commit)
		}
		if got := in.git(append(flags, "config", "remote.origin.url")...); got != s.url+"/r.git" {
			t.Errorf("origin is %s", got)
		}
		if got := in.git(append(flags, "for-each-ref", "refs/kiln")...); got != "" {
			t.Errorf("references of the daemon: %s", got)
		}
		if got := grep(t, dir, w.root); got != "" {
			t.Errorf("%s tells of the daemon's folders", got)
		}
		if err := release(); err != nil {
			t.Error(err)
		}
	}
}

// grep returns the first file that has a text in it.
func grep(t *testing.T, dir, text string) (found string) {
	t.Helper()
	err := filepath.Walk(dir, func(p string, info os.FileInfo, err error) error {
		if err != nil || !info.Mode().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), text) {
			found = p
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestOnceInABuild(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	o.commit("a", "1")
	s, src := serve(t, top), w.source()
	provider, err := secret.NewProvider(nil)
	if err != nil {
		t.Fatal(err)
	}
	build := sessiontest.Context(t.Context(), sessiontest.Connect(t, provider))
	before, err := src.Resolve(build, s.op("/r.git"), source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.commit("a", "2")
	s.take()
	after, err := src.Resolve(build, s.op("/r.git"), source.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.take(); after.Key != before.Key || len(got) != 0 {
		t.Errorf("the branch moved during a build; requests %v", got)
	}
	other, err := src.Resolve(t.Context(), s.op("/r.git"), source.Options{})
	if err != nil || other.Key == before.Key {
		t.Errorf("another build sees the old commit, %v", err)
	}
}
