package fileop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/llb"
)

// context of the copies below, as a Dockerfile's COPY sees it
var sources = []string{
	"a.txt", "b.txt", "c.go@755#7:8", "dir/x", "dir/y.go", "dir/sub/z@600", "dir/sub/w.go", "dir/empty/@711#1:1",
	"link -> a.txt", "dlink -> dir", "abs -> /dir/x", "out -> ../secret", "dangling -> nowhere",
	"dir/up -> ../a.txt", "other/x=other", "other/sub=file now",
}

// like the Dockerfile frontend sets a copy up
func dockerfile(src, dest string) llb.DoCopy {
	return llb.DoCopy{
		Src: src, Dest: dest, Mode: -1, Timestamp: llb.KeepTime, FollowSymlink: true,
		DirContents: true, CreateDest: true, Wildcard: true, AllowEmptyWildcard: true,
	}
}

func with(c llb.DoCopy, change func(*llb.DoCopy)) llb.DoCopy {
	change(&c)
	return c
}

func TestCopy(t *testing.T) {
	dirTree := func(at string) []string {
		var all []string
		for _, item := range []string{"x=dir/x", "y.go=dir/y.go", "sub/", "sub/z=dir/sub/z@600", "sub/w.go=dir/sub/w.go", "empty/@711#1:1", "up -> ../a.txt"} {
			name, content, has := strings.Cut(item, "=")
			full := strings.TrimPrefix(at+"/"+name, "/")
			if has && full != content {
				full += "=" + content
			} else if has {
				_, mode, hasMode := strings.Cut(content, "@")
				full += map[bool]string{true: "@" + mode}[hasMode]
			}
			all = append(all, full)
		}
		return all
	}
	for _, c := range []struct {
		name  string
		has   []string
		do    llb.DoCopy
		owner *Owner
		want  []string
		err   string
	}{
		// files
		{"file to a name", nil, dockerfile("a.txt", "/new"), nil, []string{"new=a.txt"}, ""},
		{"file to a slash", nil, dockerfile("/a.txt", "/new/"), nil, []string{"new/", "new/a.txt=a.txt"}, ""},
		{"file to slash dot", nil, dockerfile("/a.txt", "/new/."), nil, []string{"new/", "new/a.txt=a.txt"}, ""},
		{"file to a directory", []string{"d/"}, dockerfile("a.txt", "/d"), nil, []string{"d/", "d/a.txt=a.txt"}, ""},
		{"file to root", nil, dockerfile("a.txt", "/"), nil, []string{"a.txt"}, ""},
		{"file to deep", nil, dockerfile("a.txt", "/x/y/z"), nil, []string{"x/", "x/y/", "x/y/z=a.txt"}, ""},
		{"file replaces file", []string{"f=old@777#9:9", "g <- f"}, dockerfile("a.txt", "/f"), nil, []string{"f=a.txt", "g=old@777#9:9"}, ""},
		{"file through a link", []string{"l -> t"}, dockerfile("a.txt", "/l"), nil, []string{"l -> t", "t=a.txt"}, ""},
		{"file through a link out", []string{"l -> ../secret"}, dockerfile("a.txt", "/l"), nil, []string{"l -> ../secret", "secret=a.txt"}, ""},
		{"file in a linked directory", []string{"l -> /d", "d/"}, dockerfile("a.txt", "/l/"), nil, []string{"l -> /d", "d/", "d/a.txt=a.txt"}, ""},
		{"file replaces a link in a directory", []string{"d/a.txt -> ../x"}, dockerfile("a.txt", "/d/"), nil, []string{"d/", "d/a.txt=a.txt"}, ""},
		{"file below a file", []string{"f"}, dockerfile("a.txt", "/f/x"), nil, []string{"f"}, "not a directory"},
		{"file over a directory", []string{"d/a.txt/"}, dockerfile("a.txt", "/d/"), nil, []string{"d/", "d/a.txt/"}, "cannot replace to directory /d/a.txt with file"},
		{"keeps mode and owner", nil, dockerfile("c.go", "/"), nil, []string{"c.go@755#7:8"}, ""},
		{"no parents", nil, with(dockerfile("a.txt", "/x/y"), func(c *llb.DoCopy) { c.CreateDest = false }), nil, nil, "copy to /x/y: no such file"},
		// links as sources
		{"link followed", nil, dockerfile("link", "/l"), nil, []string{"l=a.txt"}, ""},
		{"link not followed", nil, with(dockerfile("link", "/l"), func(c *llb.DoCopy) { c.FollowSymlink = false }), nil, []string{"l -> a.txt"}, ""},
		{"absolute link followed", nil, dockerfile("abs", "/l"), nil, []string{"l=dir/x"}, ""},
		{"linked directory", nil, dockerfile("dlink", "/d"), nil, append(dirTree("d"), "d/"), ""},
		{"below a linked directory", nil, dockerfile("dlink/x", "/"), nil, []string{"x=dir/x"}, ""},
		{"link out", nil, dockerfile("out", "/l"), nil, nil, `"/out": not found`},
		{"dangling link", nil, dockerfile("dangling", "/l"), nil, nil, `"/dangling": not found`},
		{"path out", nil, dockerfile("../../secret", "/"), nil, nil, `"/secret": not found`},
		// directories
		{"directory's contents", nil, dockerfile("dir", "/d"), nil, append(dirTree("d"), "d/"), ""},
		{"directory's contents to a slash", nil, dockerfile("dir/", "/d/"), nil, append(dirTree("d"), "d/"), ""},
		{"directory's contents to root", nil, dockerfile("dir", "/"), nil, dirTree(""), ""},
		{"directory as such", []string{"d/"}, with(dockerfile("dir", "/d"), func(c *llb.DoCopy) { c.DirContents = false }), nil, append(dirTree("d/dir"), "d/", "d/dir/"), ""},
		{"directory as such to a new name", nil, with(dockerfile("dir", "/d"), func(c *llb.DoCopy) { c.DirContents = false }), nil, append(dirTree("d"), "d/"), ""},
		{"directory slash dot", []string{"d/"}, with(dockerfile("dir/.", "/d"), func(c *llb.DoCopy) { c.DirContents, c.Wildcard = false, false }), nil, append(dirTree("d"), "d/"), ""},
		{"directories merge", []string{"d/@700#3:3", "d/old", "d/sub/@700#4:4", "d/sub/keep"}, dockerfile("dir", "/d"), nil,
			append(dirTree("d"), "d/@700#3:3", "d/old", "d/sub/keep"), ""},
		{"directory over a file", []string{"d"}, dockerfile("dir", "/d"), nil, []string{"d"}, "cannot copy to non-directory: /d"},
		{"directory over a file in it", []string{"d/sub"}, dockerfile("dir", "/d"), nil, nil, "cannot copy to non-directory: /d/sub"},
		{"directory over a link in it", []string{"d/sub -> /e", "e/"}, dockerfile("dir", "/d"), nil, nil, "cannot copy to non-directory: /d/sub"},
		{"file over a directory in it", []string{"d/sub/q"}, dockerfile("other", "/d"), nil, nil, "cannot replace to directory /d/sub with file"},
		{"directory to a linked one", []string{"l -> e", "e/"}, dockerfile("other", "/l"), nil, []string{"l -> e", "e/", "e/x=other", "e/sub=file now"}, ""},
		{"replace file by directory", []string{"d/sub"}, with(dockerfile("dir", "/d"), func(c *llb.DoCopy) { c.ReplaceExistingDest = true }), nil, append(dirTree("d"), "d/"), ""},
		{"replace link by directory", []string{"d/sub -> /e", "e/"}, with(dockerfile("dir", "/d"), func(c *llb.DoCopy) { c.ReplaceExistingDest = true }), nil, append(dirTree("d"), "d/", "e/"), ""},
		{"replace directory by file", []string{"d/sub/q"}, with(dockerfile("other", "/d"), func(c *llb.DoCopy) { c.ReplaceExistingDest = true }), nil, []string{"d/", "d/x=other", "d/sub=file now"}, ""},
		// patterns
		{"wildcard", nil, dockerfile("*.txt", "/d/"), nil, []string{"d/", "d/a.txt=a.txt", "d/b.txt=b.txt"}, ""},
		{"wildcard with one directory", nil, dockerfile("d?r", "/d/"), nil, append(dirTree("d"), "d/"), ""},
		{"wildcard in the middle", nil, dockerfile("d*/x", "/d/"), nil, []string{"d/", "d/x=dir/x"}, ""},
		{"wildcard, nothing", nil, dockerfile("*.none", "/d/"), nil, nil, ""},
		{"wildcard in a linked directory", nil, dockerfile("dlink/*.go", "/"), nil, []string{"y.go=dir/y.go"}, ""},
		{"wildcard below nothing", nil, dockerfile("/nope/*", "/d/"), nil, nil, `"/nope": not found`},
		{"wildcard, nothing, not allowed", nil, with(dockerfile("*.none", "/d/"), func(c *llb.DoCopy) { c.AllowEmptyWildcard = false }), nil, nil, `"/*.none": not found`},
		{"stars without wildcard", nil, with(dockerfile("*.txt", "/"), func(c *llb.DoCopy) { c.Wildcard = false }), nil, nil, `"/*.txt": not found`},
		{"bad pattern", nil, dockerfile("[", "/"), nil, nil, "syntax error in pattern"},
		{"missing", nil, dockerfile("/foo", "/"), nil, nil, `"/foo": not found`},
		{"missing below a file", nil, dockerfile("/a.txt/x", "/"), nil, nil, `not`},
		{"include", nil, with(dockerfile("/", "/d"), func(c *llb.DoCopy) { c.Include = []string{"**/*.go"} }), nil,
			[]string{"d/", "d/c.go=c.go@755#7:8", "d/dir/", "d/dir/y.go=dir/y.go", "d/dir/sub/", "d/dir/sub/w.go=dir/sub/w.go"}, ""},
		{"include into existing", []string{"d/dir/@700#3:3"}, with(dockerfile("/", "/d"), func(c *llb.DoCopy) { c.Include = []string{"dir/sub/z"} }), nil,
			[]string{"d/", "d/dir/#3:3", "d/dir/sub/", "d/dir/sub/z=dir/sub/z@600"}, ""},
		{"include nothing", nil, with(dockerfile("/", "/d"), func(c *llb.DoCopy) { c.Include = []string{"none/*"} }), nil, []string{"d/"}, ""},
		{"exclude", nil, with(dockerfile("dir", "/d"), func(c *llb.DoCopy) { c.Exclude = []string{"sub", "*.go", "empty"} }), nil, []string{"d/", "d/x=dir/x", "d/up -> ../a.txt"}, ""},
		{"exclude but", nil, with(dockerfile("dir", "/d"), func(c *llb.DoCopy) { c.Exclude = []string{"*", "!sub/z"} }), nil, []string{"d/", "d/sub/", "d/sub/z=dir/sub/z@600"}, ""},
		{"parents", nil, with(dockerfile("/", "/d"), func(c *llb.DoCopy) { c.Include, c.Required = []string{"dir/sub"}, []string{"/dir/sub"} }), nil,
			[]string{"d/", "d/dir/", "d/dir/sub/", "d/dir/sub/z=dir/sub/z@600", "d/dir/sub/w.go=dir/sub/w.go"}, ""},
		{"required but missing", nil, with(dockerfile("/", "/d"), func(c *llb.DoCopy) { c.Include, c.Required = []string{"dir/none"}, []string{"/dir/none"} }), nil, nil, `"/dir/none": not found`},
		// metadata
		{"owner", nil, dockerfile("dir", "/d/e"), &Owner{11, 12}, []string{"d/#11:12", "d/e/#11:12", "d/e/x=dir/x#11:12", "d/e/y.go=dir/y.go#11:12", "d/e/sub/#11:12",
			"d/e/sub/z=dir/sub/z@600#11:12", "d/e/sub/w.go=dir/sub/w.go#11:12", "d/e/empty/@711#11:12", "d/e/up -> ../a.txt#11:12"}, ""},
		{"mode", nil, with(dockerfile("other", "/d/e"), func(c *llb.DoCopy) { c.Mode = 0o4711 }), nil, []string{"d/@711", "d/e/@711", "d/e/x=other@4711", "d/e/sub=file now@4711"}, ""},
		{"mode 0", nil, with(dockerfile("a.txt", "/a"), func(c *llb.DoCopy) { c.Mode = 0 }), nil, []string{"a=a.txt@0"}, ""},
		{"symbolic mode", nil, with(dockerfile("c.go", "/"), func(c *llb.DoCopy) { c.ModeStr = "u+s,go-x,g=rw" }), nil, []string{"c.go@4764#7:8"}, ""},
		{"symbolic mode of a tree", nil, with(dockerfile("dir/sub", "/d"), func(c *llb.DoCopy) { c.ModeStr = "a=rX" }), nil, []string{"d/", "d/z=dir/sub/z@444", "d/w.go=dir/sub/w.go@444"}, ""},
		{"bad mode", nil, with(dockerfile("a.txt", "/"), func(c *llb.DoCopy) { c.ModeStr = "u+q" }), nil, nil, `mode "u+q"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, srcDir := root(t)
			plant(t, srcDir, sources...)
			dst, dir := root(t)
			plant(t, dir, c.has...)
			err := Do(t.Context(), dst, src, &c.do, c.owner)
			if c.err != "" {
				wantErr(t, err, c.err)
				if strings.HasSuffix(c.err, "not found") && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("error %v is no fs.ErrNotExist", err)
				}
				return
			}
			must(t, err)
			wantTree(t, dir, c.want...)
		})
	}
}

func TestCopyTimes(t *testing.T) {
	src, srcDir := root(t)
	plant(t, srcDir, sources...)
	for _, stamp := range []int64{llb.KeepTime, 5_000_000_007} {
		dst, dir := root(t)
		plant(t, dir, "d/")
		want := epoch
		if stamp != llb.KeepTime {
			want = *timeOf(stamp)
		}
		for _, do := range []llb.DoCopy{
			with(dockerfile("dir", "/d"), func(c *llb.DoCopy) { c.Timestamp = stamp }),
			with(dockerfile("/", "/inc"), func(c *llb.DoCopy) { c.Timestamp, c.Include = stamp, []string{"dir/sub/*"} }),
		} {
			must(t, Copy(t.Context(), dst, src, &do, nil))
		}
		do := with(dockerfile("dir/x", "/p/q/r/x"), func(c *llb.DoCopy) { c.Timestamp = 5_000_000_007 })
		must(t, Copy(t.Context(), dst, src, &do, nil))
		for _, p := range []string{"p", "p/q", "p/q/r", "p/q/r/x"} {
			if got := mtime(t, filepath.Join(dir, p)); got.UnixNano() != do.Timestamp {
				t.Errorf("time of %s is %v", p, got)
			}
		}
		for _, p := range []string{"d", "d/x", "d/sub", "d/sub/z", "d/up", "d/empty", "inc", "inc/dir", "inc/dir/sub/z"} {
			if got := mtime(t, filepath.Join(dir, p)); !got.Equal(want) {
				t.Errorf("timestamp %d: time of %s is %v, want %v", stamp, p, got, want)
			}
		}
	}
}

func TestCopyKinds(t *testing.T) {
	src, srcDir := root(t)
	plant(t, srcDir, "f", "g <- f", "s/h <- f", "other")
	must(t, unix.Mkfifo(filepath.Join(srcDir, "fifo"), 0o640))
	must(t, unix.Mknod(filepath.Join(srcDir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(filepath.Join(srcDir, "sock"), unix.S_IFSOCK|0o600, 0))
	for _, k := range []string{"user.k", "trusted.k", "trusted.overlay.opaque", "user.overlay.whiteout"} {
		must(t, unix.Setxattr(filepath.Join(srcDir, "other"), k, []byte("v"), 0))
		must(t, unix.Setxattr(filepath.Join(srcDir, "s"), k, []byte("v"), 0))
	}
	dst, dir := root(t)
	do := dockerfile("/", "/")
	must(t, Copy(t.Context(), dst, src, &do, nil))
	for _, item := range list(t, srcDir) {
		if !strings.Contains(strings.Join(list(t, dir), "\n")+"\n", item+"\n") {
			t.Errorf("%s is not there", item)
		}
	}
	if n := nlink(t, filepath.Join(dir, "f")); n != 3 {
		t.Errorf("f has %d names, want 3: not shared with the source, and with its own", n)
	}
	for _, name := range []string{"other", "s"} {
		attrs, err := dst.LXattrs(name)
		must(t, err)
		if string(attrs["user.k"]) != "v" || string(attrs["trusted.k"]) != "v" {
			t.Errorf("xattrs of %s: %v", name, attrs)
		}
		for k := range attrs {
			if overlayMark(k) {
				t.Errorf("%s came along", k)
			}
		}
	}
	if err := unix.Mknod(filepath.Join(srcDir, "zz"), unix.S_IFCHR|0o666, 0); err == nil {
		err := Copy(t.Context(), dst, src, &do, nil)
		if !errors.Is(err, errRemovedMark) {
			t.Errorf("a device that marks a removed file: %v", err)
		}
	}
}

// What a new file begins with by itself, of the folder it is made in, of the
// process and of its umask, is not what it keeps.
func TestCopiesAreAsTheirSources(t *testing.T) {
	src, srcDir := root(t)
	plant(t, srcDir, "f/open@666", "f/closed@0", "f/readonly@444#7:8", "f/setuid@4755#7:8", "f/setgid@2755", "f/program@777")
	dst, dir := root(t)
	plant(t, dir, "f/")
	must(t, os.Chown(filepath.Join(dir, "f"), 3, 5))
	must(t, os.Chmod(filepath.Join(dir, "f"), 0o755|fs.ModeSetgid))
	do := dockerfile("f", "/f")
	must(t, Copy(t.Context(), dst, src, &do, nil))
	for _, name := range []string{"open", "closed", "readonly", "setuid", "setgid", "program"} {
		want, err := os.Lstat(filepath.Join(srcDir, "f", name))
		must(t, err)
		got, err := os.Lstat(filepath.Join(dir, "f", name))
		must(t, err)
		u, g, _ := safepath.Owner(want)
		if uid, gid, _ := safepath.Owner(got); got.Mode() != want.Mode() || uid != u || gid != g {
			t.Errorf("%s is %v of %d:%d, want %v of %d:%d", name, got.Mode(), uid, gid, want.Mode(), u, g)
		}
	}
}

func TestHardLinksDoNotFollowReplacedNames(t *testing.T) {
	src, srcDir := root(t)
	plant(t, srcDir, "1/f=first", "2/f=second", "2/g <- 1/f", "1/h <- 2/f")
	dst, dir := root(t)
	do := dockerfile("[12]", "/")
	must(t, Copy(t.Context(), dst, src, &do, nil))
	wantTree(t, dir, "f=second", "g=first", "h=second")
}

func TestCopyOfManyAndBigFiles(t *testing.T) {
	src, srcDir := root(t)
	for i := range 300 {
		must(t, os.WriteFile(filepath.Join(srcDir, fmt.Sprintf("f%03d", i)), fmt.Appendf(nil, "%d", i), 0o600))
	}
	sparse, err := os.Create(filepath.Join(srcDir, "sparse"))
	must(t, err)
	must(t, sparse.Truncate(1<<30))
	_, err = sparse.WriteAt([]byte("middle"), 500<<20)
	must(t, err)
	must(t, sparse.Close())
	big := make([]byte, 3<<20+17)
	for i := range big {
		big[i] = byte(i * 7 >> 3)
	}
	must(t, os.WriteFile(filepath.Join(srcDir, "big"), big, 0o644))
	dst, dir := root(t)
	do := dockerfile("/", "/")
	must(t, Copy(t.Context(), dst, src, &do, nil))
	for i := range 300 {
		if b, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("f%03d", i))); string(b) != fmt.Sprint(i) {
			t.Errorf("f%03d holds %q, %v", i, b, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "big")); string(b) != string(big) {
		t.Errorf("the big file differs: %d bytes, %v", len(b), err)
	}
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "sparse"), &st))
	if st.Size != 1<<30 || st.Blocks*512 > 10<<20 {
		t.Errorf("the sparse file has %d bytes and takes %d", st.Size, st.Blocks*512)
	}
	f, err := os.Open(filepath.Join(dir, "sparse"))
	must(t, err)
	defer f.Close()
	got := make([]byte, 6)
	_, err = f.ReadAt(got, 500<<20)
	must(t, err)
	if string(got) != "middle" {
		t.Errorf("in the sparse file there is %q", got)
	}
	plain, err := os.Create(filepath.Join(dir, "plain"))
	must(t, err)
	defer plain.Close()
	in, err := os.Open(filepath.Join(srcDir, "big"))
	must(t, err)
	defer in.Close()
	c := &copier{ctx: t.Context()}
	must(t, c.copyPlain(plain, in, 0, int64(len(big))))
	if b, _ := os.ReadFile(filepath.Join(dir, "plain")); string(b) != string(big) {
		t.Error("copied by way of memory, it differs")
	}
}

func TestModes(t *testing.T) {
	for _, c := range []struct {
		change string
		before fs.FileMode
		want   fs.FileMode
	}{
		{"755", 0o600, 0o755},
		{"4755", 0o600, 0o755 | fs.ModeSetuid},
		{"0", 0o777, 0},
		{"u+x", 0o644, 0o744},
		{"+x", 0o644, 0o755},
		{"a-w", 0o666, 0o444},
		{"go=", 0o777, 0o700},
		{"u=rwx,g=rx,o=", 0o644, 0o750},
		{"u+x,go-w", 0o666, 0o744},
		{"a=rX", 0o644, 0o444},
		{"a=rX", 0o744, 0o555},
		{"a=rX", fs.ModeDir | 0o700, fs.ModeDir | 0o555},
		{"g=u", 0o640, 0o660},
		{"o=g-w", 0o660, 0o664},
		{"o+u", 0o700, 0o707},
		{"u+s", 0o755, 0o755 | fs.ModeSetuid},
		{"g+s", 0o755, 0o755 | fs.ModeSetgid},
		{"+s", 0o755, 0o755 | fs.ModeSetuid | fs.ModeSetgid},
		{"o+s", 0o755, 0o755},
		{"+t", fs.ModeDir | 0o777, fs.ModeDir | fs.ModeSticky | 0o777},
		{"-t", fs.ModeDir | fs.ModeSticky | 0o777, fs.ModeDir | 0o777},
		{"u=rw", 0o755 | fs.ModeSetuid, 0o655},
		{"u+r-w+x", 0o200, 0o500},
		{"ug+rw", 0, 0o660},
	} {
		m, err := parseMode(c.change)
		if err != nil {
			t.Errorf("%s: %v", c.change, err)
			continue
		}
		if got := m.apply(c.before); got != c.want {
			t.Errorf("%s of %v is %v, want %v", c.change, c.before, got, c.want)
		}
	}
	for _, bad := range []string{"", "u", "x", "u+q", "8", "77777", "u+x,", ",", "u*x", "u+gu", "u+rg", "755,u+x", "-1"} {
		if m, err := parseMode(bad); err == nil {
			t.Errorf("%q was taken for %v", bad, m)
		}
	}
}

func BenchmarkCopy(b *testing.B) {
	src, dir := root(b)
	content := make([]byte, 4096)
	for i := range 10_000 {
		sub := filepath.Join(dir, fmt.Sprintf("d%02d", i%100))
		if i < 100 {
			must(b, os.Mkdir(sub, 0o755))
		}
		must(b, os.WriteFile(filepath.Join(sub, fmt.Sprint(i)), content, 0o644))
	}
	do := dockerfile("/", "/")
	for range b.N {
		b.StopTimer()
		dst, _ := root(b)
		b.StartTimer()
		must(b, Copy(b.Context(), dst, src, &do, nil))
	}
}
