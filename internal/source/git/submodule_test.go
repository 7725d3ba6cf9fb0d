package git_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// addSubmodule adds a submodule with any address, after the real one was cloned.
func (o *origin) addSubmodule(real, address, path string) {
	o.t.Helper()
	o.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", "--name", path, "--", real, path)
	o.git("config", "-f", ".gitmodules", "submodule."+path+".url", address)
	o.commit()
}

func TestSubmodules(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	inner := newOrigin(t, filepath.Join(top, "inner.git"))
	inner.commit("deep", "3")
	sub := newOrigin(t, filepath.Join(top, "sub.git"))
	sub.commit("file", "2")
	sub.addSubmodule(inner.dir, "../inner.git", "in")
	o := newOrigin(t, filepath.Join(top, "r.git"))
	o.commit("a", "1")
	s := serve(t, top)
	o.addSubmodule(sub.dir, s.url+"/sub.git", "m/sub")
	pinned := sub.git("rev-parse", "HEAD")
	sub.commit("file", "newer")

	pin, files := w.must(t, w.source(), s.op("/r.git#main"))
	if files["a"] != "1" || files["m/sub/file"] != "2" || files["m/sub/in/deep"] != "3" {
		t.Errorf("got %v, want the submodules at %s", files, pinned)
	}
	gitFiles := map[string]string{"m/sub/.git": "gitdir: ../../.git/modules/m/sub\n", "m/sub/in/.git": "gitdir: ../../../.git/modules/m/sub/modules/in\n"}
	for name, want := range gitFiles {
		if files[name] != want {
			t.Errorf("%s is %q, want %q", name, files[name], want)
		}
	}
	_, files = w.must(t, w.source(), s.op("/r.git#main:m"))
	if files["sub/in/deep"] != "3" || files["sub/.git"] != gitFiles["m/sub/.git"] {
		t.Errorf("subdir: got %v", files)
	}
	skip, files := w.must(t, w.source(), s.op("/r.git#main", "git.skipsubmodules", "true"))
	if _, there := files["m/sub/file"]; there || skip.Key == pin.Key {
		t.Errorf("skipped: got %v with key %s", files, skip.Key)
	}
	_, files = w.must(t, w.source(), s.op("/r.git#main", "git.keepgitdir", "true"))
	for name, want := range gitFiles {
		if files["m/sub/in/deep"] != "3" || files[name] != want {
			t.Errorf("with git directory: %s is %q, want %q", name, files[name], want)
		}
	}
	w.clean(t)
}

// TestHostileSubmodules has submodules that try to read the daemon's files, or to
// have it run something.
func TestHostileSubmodules(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	private := newOrigin(t, filepath.Join(t.TempDir(), "private.git"))
	private.commit("secret", "sesame")
	hit := filepath.Join(t.TempDir(), "hit")
	s := serve(t, top)
	for name, tc := range map[string]struct{ url, extra string }{
		"file":        {"file://" + private.dir, ""},
		"path":        {private.dir, ""},
		"relative":    {"../../../../../../../../../../.." + private.dir, ""},
		"ext":         {"ext::sh -c touch% " + hit, ""},
		"option":      {"--upload-pack=touch " + hit, ""},
		"ssh option":  {"ssh://-oProxyCommand=touch%20" + hit + "/x", ""},
		"git command": {s.url + "/sub.git", "\tupdate = !touch " + hit + "\n"},
		"fd":          {"fd::17", ""},
		"newline":     {"https://127.0.0.1:1/%0ahost=example.com", ""},
	} {
		repo := strings.ReplaceAll(name, " ", "") + ".git"
		o := newOrigin(t, filepath.Join(top, repo))
		o.addSubmodule(private.dir, tc.url, "sub")
		if tc.extra != "" {
			f, err := os.OpenFile(filepath.Join(o.dir, ".gitmodules"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteString(tc.extra)
			if cerr := f.Close(); err != nil || cerr != nil {
				t.Fatal(err, cerr)
			}
			o.commit()
		}
		for _, keep := range []string{"true", "false"} {
			_, ref, err := w.get(t.Context(), w.source(), s.op("/"+repo+"#main", "git.keepgitdir", keep))
			if err == nil {
				t.Errorf("%s (git directory %s) was taken: %s", name, keep, ref.ID())
			}
		}
	}
	// A name that leads out of the git directory.
	o := newOrigin(t, filepath.Join(top, "name.git"))
	o.addSubmodule(private.dir, s.url+"/other.git", "sub")
	o.write(".gitmodules", "[submodule \"../../evil\"]\n\tpath = sub\n\turl = "+s.url+"/other.git\n")
	o.commit()
	if _, files, err := w.get(t.Context(), w.source(), s.op("/name.git#main")); err == nil {
		t.Errorf("a submodule's name with dots was taken: %v", files)
	}
	if _, err := os.Stat(hit); err == nil {
		t.Error("something was run")
	}
	w.clean(t)
}
