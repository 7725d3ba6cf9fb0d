package git_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

func TestBadOps(t *testing.T) {
	w := newWorld(t)
	src := w.source()
	commit := strings.Repeat("a", 40)
	for _, tc := range []struct {
		id, want string
		attrs    []string
	}{
		{"git://example.com/x#-oops", "invalid git ref", nil},
		{"git://example.com/x#--upload-pack=/tmp/evil.sh", `invalid git ref "--upload-pack=/tmp/evil.sh"`, nil},
		{"git://example.com/x#a..b", "invalid git ref", nil},
		{"git://example.com/x#a b", "invalid git ref", nil},
		{"git://example.com/x#a%0ab", "invalid git ref", nil},
		{"git://example.com/x#main^{}", "invalid git ref", nil},
		{"git://example.com/x#+main", "", nil}, // a name like another
		{"git://example.com/x#" + strings.Repeat("a", 2000), "invalid git ref", nil},
		{"git://-oProxyCommand=x/y", "begins with", nil},
		{"git://example.com/x", "begins with", []string{llb.AttrGitFullURL, "ssh://-oProxyCommand=evil/x"}},
		{"git://example.com/x", "begins with", []string{llb.AttrGitFullURL, "ssh://-l@example.com/x"}},
		{"git://example.com/x", "begins with", []string{llb.AttrGitFullURL, "-l@example.com:x"}},
		{"git://example.com/x", "is not http, https, ssh or git", []string{llb.AttrGitFullURL, "file:///etc"}},
		{"git://example.com/x", "is not http, https, ssh or git", []string{llb.AttrGitFullURL, "ext://sh -c evil"}},
		{"git://example.com/x", "malformed git.fullurl", []string{llb.AttrGitFullURL, "ext::sh -c evil"}},
		{"git://example.com/x", "does not match source identifier", []string{llb.AttrGitFullURL, "https://example.org/x"}},
		{"git://example.com/x", "does not match source identifier", []string{llb.AttrGitFullURL, "https://example.com/y"}},
		{"git://example.com/x", "does not match source identifier", []string{llb.AttrGitFullURL, "https://user:pass@example.org/x"}},
		{"git://example.com/x", "control characters", []string{llb.AttrGitFullURL, "https://example.com/x\n"}},
		{"git://example.com/x", "expected true or false", []string{"git.keepgitdir", "1"}},
		{"git://example.com/x", "git.mtime", []string{"git.mtime", "now"}},
		{"git://example.com/x", "expected hex commit hash", []string{"git.checksum", "--exec"}},
		{"git://example.com/x#" + commit, "expected checksum to match", []string{"git.checksum", strings.Repeat("b", 40)}},
		{"git://example.com/x", "requires git.checksum", []string{"git.bundle", "oci-layout+blob://x@sha256:" + strings.Repeat("a", 64)}},
		{"git://example.com/x", "not supported", []string{"git.bundle", "https://x@sha256:" + strings.Repeat("a", 64), "git.checksum", commit}},
		{"git://example.com/x", "@sha256", []string{"git.bundle", "oci-layout+blob://x@sha256:../../etc", "git.checksum", commit}},
		{"git://example.com/x", "missing scheme", []string{"git.bundle", "x", "git.checksum", commit}},
		{"git://example.com/x", "incompatible", []string{"git.checkoutbundle", "true", "git.keepgitdir", "true"}},
		{"git://example.com/x#:sub", "incompatible", []string{"git.checkoutbundle", "true"}},
		{"git://user:sesame@exa mple.com/x", "malformed", nil},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // nothing is to be asked of anybody
		o := &llb.SourceOp{Identifier: tc.id, Attrs: map[string]string{}}
		for i := 0; i < len(tc.attrs); i += 2 {
			o.Attrs[tc.attrs[i]] = tc.attrs[i+1]
		}
		_, err := src.Resolve(ctx, o, source.Options{})
		switch {
		case err == nil:
			t.Errorf("%s %v was taken", tc.id, tc.attrs)
		case tc.want == "" && !errors.Is(err, context.Canceled), !strings.Contains(err.Error(), tc.want):
			t.Errorf("%s %v: got %v, want %q", tc.id, tc.attrs, err, tc.want)
		case strings.Contains(err.Error(), "pass@") || strings.Contains(err.Error(), "sesame"):
			t.Errorf("a password is in the error: %v", err)
		}
	}
}

// pkt makes a line of git's protocol.
func pkt(s string) string { return fmt.Sprintf("%04x%s", len(s)+4, s) }

// TestHostileAdvertisements has servers tell of references that git or we could
// take for something else.
func TestHostileAdvertisements(t *testing.T) {
	w := newWorld(t)
	sum := strings.Repeat("a", 40)
	web := serve(t, t.TempDir())
	advertise := func(body string) func(http.ResponseWriter, *http.Request) bool {
		return func(rw http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/info/refs") {
				rw.WriteHeader(http.StatusNotFound)
				return true
			}
			rw.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
			fmt.Fprint(rw, pkt("# service=git-upload-pack\n")+"0000"+body)
			return true
		}
	}
	for name, tc := range map[string]struct{ body, ref, want string }{
		"option as HEAD": {
			pkt(sum+" HEAD\x00symref=HEAD:refs/heads/--upload-pack=/tmp/evil.sh agent=x\n") + pkt(sum+" refs/heads/--upload-pack=/tmp/evil.sh\n") + "0000",
			"", `invalid git ref "--upload-pack=/tmp/evil.sh"`,
		},
		"HEAD outside": {pkt(sum+" HEAD\x00symref=HEAD:../../etc/passwd agent=x\n") + "0000", "", "default branch"},
		"no HEAD":      {pkt(sum+" refs/heads/main\x00agent=x\n") + "0000", "", "could not find default branch"},
		"nothing":      {"", "main", "failed to fetch remote"},
		"no protocol":  {"<html>", "main", "failed to fetch remote"},
		"commit is no": {pkt("--upload-pack=evil"+strings.Repeat("a", 22)+" refs/heads/main\x00agent=x\n") + "0000", "main", "failed to fetch remote"},
		"huge":         {strings.Repeat(pkt(sum+" refs/heads/main"+strings.Repeat("/x", 400)+"\n"), 1000) + "0000", "main", "does not contain ref main"},
	} {
		web.set("", advertise(tc.body))
		_, err := w.source().Resolve(t.Context(), web.op("/r.git#"+tc.ref), source.Options{})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	w.clean(t)
}

// TestHugeList gives up a server that tells of more references than fit.
func TestHugeList(t *testing.T) {
	w := newWorld(t)
	sum := strings.Repeat("a", 40)
	web := serve(t, t.TempDir())
	web.set("", func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.Header().Set("Content-Type", "application/x-git-upload-pack-advertisement")
		fmt.Fprint(rw, pkt("# service=git-upload-pack\n")+"0000"+pkt(sum+" refs/heads/zero\x00agent=x\n"))
		line := strings.Repeat("x", 900)
		for i := range 100_000 {
			if _, err := fmt.Fprint(rw, pkt(fmt.Sprintf("%s refs/heads/%s%d/refs/heads/main\n", sum, line, i))); err != nil {
				return true
			}
		}
		fmt.Fprint(rw, "0000")
		return true
	})
	_, err := w.source().Resolve(t.Context(), web.op("/r.git#main"), source.Options{})
	if err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("got %.200v", err)
	}
	w.clean(t)
}

// TestHostileTrees has repositories with files that try to be elsewhere.
func TestHostileTrees(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	secretFile := filepath.Join(victim, "secret")
	if err := os.WriteFile(secretFile, []byte("sesame"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, top)
	o := newOrigin(t, filepath.Join(top, "links.git"))
	for name, target := range map[string]string{"out": victim, "up": "../../../../../../.." + victim, "dir/inner": "../out", "file": secretFile} {
		o.write("dir/x", "x")
		if err := os.Symlink(target, filepath.Join(o.dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	o.commit()
	for _, sub := range []string{"out", "up", "dir/inner", "file", "out/../out", "dir/../../out", "/out", "dir/x", "../../../" + victim, victim} {
		_, ref, err := w.get(t.Context(), w.source(), s.op("/links.git#main:"+sub))
		if err == nil {
			t.Errorf("subdir %s was taken: layer %s", sub, ref.ID())
		} else if !strings.Contains(err.Error(), "invalid subdir") {
			t.Errorf("subdir %s: %v", sub, err)
		}
	}
	// The same as a checkout are links, and no more.
	_, files := w.must(t, w.source(), s.op("/links.git#main"))
	if len(files) != 1 {
		t.Errorf("got %v", files)
	}

	// Trees with names that git itself would never write.
	for name, entry := range map[string]struct{ mode, name, data string }{
		"git dir":         {"100644", ".git/config", "[core]\n\tfsmonitor = touch " + victim + "/hit\n"},
		"git dir in caps": {"100644", ".GIT/config", "x"},
		"git link":        {"120000", ".git", victim},
		"dot dot":         {"100644", "../" + "escaped", "x"},
	} {
		o := newOrigin(t, filepath.Join(top, strings.ReplaceAll(name, " ", "")+".git"))
		o.commit("a", "1")
		o.plant(entry.mode, entry.name, entry.data)
		for _, keep := range []string{"true", "false"} {
			_, _, err := w.get(t.Context(), w.source(), s.op("/"+strings.ReplaceAll(name, " ", "")+".git#evil", "git.keepgitdir", keep))
			if err == nil {
				t.Errorf("%s (git directory %s) was checked out", name, keep)
			}
		}
	}
	entries, err := os.ReadDir(victim)
	if err != nil || len(entries) != 1 {
		t.Errorf("victim has %v, %v", entries, err)
	}
	w.clean(t)
}

// plant makes a branch "evil" whose tree has one file of a name that git refuses
// to add: it is hashed by hand, directory by directory.
func (o *origin) plant(mode, name, data string) {
	o.t.Helper()
	object := func(kind string, content []byte) string {
		cmd := exec.Command("git", "hash-object", "-w", "-t", kind, "--literally", "--stdin")
		cmd.Dir = o.dir
		cmd.Stdin = strings.NewReader(string(content))
		out, err := cmd.CombinedOutput()
		if err != nil {
			o.t.Fatalf("hash %s: %v\n%s", kind, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	raw := func(sum string) []byte {
		var b []byte
		for i := 0; i < len(sum); i += 2 {
			var n byte
			if _, err := fmt.Sscanf(sum[i:i+2], "%02x", &n); err != nil {
				o.t.Fatal(err)
			}
			b = append(b, n)
		}
		return b
	}
	parts := strings.Split(name, "/")
	sum := object("blob", []byte(data))
	for i := len(parts) - 1; i >= 0; i-- {
		sum = object("tree", append([]byte(mode+" "+parts[i]+"\x00"), raw(sum)...))
		mode = "40000"
	}
	o.git("update-ref", "refs/heads/evil", o.git("commit-tree", "-m", "evil", sum))
}

// TestHooks has a repository that brings along whatever git might run.
func TestHooks(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	hit := filepath.Join(t.TempDir(), "hit")
	o := newOrigin(t, filepath.Join(top, "r.git"))
	o.write("hooks/post-checkout.sh", "#!/bin/sh\ntouch "+hit+"\n")
	o.commit(".gitattributes", "* filter=evil diff=evil merge=evil\n", "a", "1",
		".gitconfig", "[filter \"evil\"]\n\tsmudge = touch "+hit+"\n[core]\n\thooksPath = hooks\n")
	// The user's own configuration is nobody's business here.
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, ".gitconfig"), []byte("[filter \"evil\"]\n\tsmudge = touch "+hit+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	t.Setenv("GIT_CONFIG_COUNT", "1")
	t.Setenv("GIT_CONFIG_KEY_0", "filter.evil.smudge")
	t.Setenv("GIT_CONFIG_VALUE_0", "touch "+hit)
	t.Setenv("GIT_DIR", home)
	for _, keep := range []string{"true", "false"} {
		s := serve(t, top)
		if _, files := w.must(t, w.source(), s.op("/r.git#main", "git.keepgitdir", keep)); files["a"] != "1" {
			t.Errorf("got %v", files)
		}
	}
	if _, err := os.Stat(hit); err == nil {
		t.Error("something of the repository or of the user was run")
	}
}

// TestCancel ends git and all that it started.
func TestCancel(t *testing.T) {
	w := newWorld(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	reached := make(chan struct{})
	gone := make(chan struct{})
	go func() { // takes a connection and never says a word
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		close(reached)
		for err == nil {
			_, err = conn.Read(make([]byte, 1024))
		}
		close(gone)
	}()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no longer wanted")
	go func() { <-reached; cancel(why) }()
	began := time.Now()
	host := listener.Addr().String()
	o := &llb.SourceOp{Identifier: "git://" + host + "/x#main", Attrs: map[string]string{llb.AttrGitFullURL: "http://" + host + "/x"}}
	if _, err = w.source().Resolve(ctx, o, source.Options{}); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	select {
	case <-gone: // the child that had the connection has ended
	case <-time.After(2 * time.Minute):
		t.Error("a child of git goes on")
	}
	w.clean(t)
}

// TestOptionAsDefaultBranch has repositories, loose and packed, whose default branch
// is called as an option of git (CVE-2026-15793), and whoever asks for it.
func TestOptionAsDefaultBranch(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	hit := filepath.Join(t.TempDir(), "hit")
	evil := filepath.Join(t.TempDir(), "evil.sh")
	if err := os.WriteFile(evil, []byte("#!/bin/sh\ntouch "+hit+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	branch := "refs/heads/--upload-pack=" + evil
	s := serve(t, top)
	for _, packed := range []bool{false, true} {
		name := fmt.Sprint("packed-", packed)
		o := newOrigin(t, filepath.Join(top, name))
		commit := o.commit("a", "1")
		for file, text := range map[string]string{
			"HEAD": "ref: " + branch + "\n", "packed-refs": "# pack-refs with: peeled fully-peeled sorted \n" + commit + " " + branch + "\n",
		} {
			if file == "packed-refs" && !packed {
				file, text = branch, commit+"\n"
			}
			at := filepath.Join(o.dir, ".git", file)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, attrs := range [][]string{nil, {"git.checkoutbundle", "true", "git.checksum", commit}} {
			for ref, want := range map[string]string{
				"": "invalid git ref", strings.TrimPrefix(branch, "refs/heads/"): "invalid git ref", "HEAD": "does not contain ref HEAD",
				branch: "", // its whole name is no option
			} {
				_, _, err := w.get(t.Context(), w.source(), s.op("/"+name+"/.git#"+ref, attrs...))
				if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%s, ref %q, %v: got %v, want %q", name, ref, attrs, err, want)
				}
			}
		}
	}
	if _, err := os.Lstat(hit); err == nil {
		t.Error("the repository's program was run")
	}
	w.clean(t)
}
