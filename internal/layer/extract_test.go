package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// canary puts a file beside what is written, and returns what says whether it
// was touched.
func canary(t *testing.T, root string) func() {
	t.Helper()
	victim := filepath.Join(root, "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		var st unix.Stat_t
		data, err := os.ReadFile(victim)
		if e := unix.Lstat(victim, &st); err != nil || e != nil || string(data) != "untouched" || st.Nlink != 1 || st.Mode&0o7777 != 0o600 {
			t.Errorf("the victim is %q %+v (%v)", data, st, err)
		}
	}
}

func link(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func hard(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, ""}
}

func TestHostileArchives(t *testing.T) {
	w := newWorld(t, "overlayfs")
	check := canary(t, w.root)
	outside := filepath.Join(w.root, "victim")
	sized := func(name string, uid int) entry {
		e := file(name, "")
		e.Uid, e.Format = uid, tar.FormatGNU
		return e
	}
	node := func(major, minor int64) entry {
		return entry{tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: major, Devminor: minor}, ""}
	}
	for name, tc := range map[string]struct {
		entries []entry
		err     string // part of the error, "" for none
		want    []string
	}{
		"dot dot":                    {[]entry{file("../victim", "x")}, "leads upwards", nil},
		"dot dot inside":             {[]entry{file("a/../../victim", "x")}, "leads upwards", nil},
		"only dot dot":               {[]entry{folder("..")}, "leads upwards", nil},
		"absolute name":              {[]entry{file(outside, "x")}, "", nil},
		"through absolute link":      {[]entry{link("out", w.root), file("out/victim", "x")}, "leads nowhere", nil},
		"through relative link":      {[]entry{link("out", "../../../../../../.."), file("out"+outside, "x")}, "", nil},
		"link is not followed":       {[]entry{link("f", outside), file("f", "x")}, "", []string{"f=x"}},
		"hard link dot dot":          {[]entry{hard("f", "../victim")}, "leads upwards", nil},
		"hard link absolute":         {[]entry{hard("f", outside)}, "hard link", nil},
		"hard link through link":     {[]entry{link("out", w.root), hard("f", "out/victim")}, "leads nowhere", nil},
		"hard link to link":          {[]entry{link("l", outside), hard("f", "l"), file("f", "x")}, "", []string{"f=x", "l!L---------"}},
		"hard link to the root":      {[]entry{hard("f", "/")}, "hard link to the root", nil},
		"whiteout of dot dot":        {[]entry{file(".wh...", "")}, "deletes", nil},
		"whiteout of dot":            {[]entry{file(".wh..", "")}, "deletes", nil},
		"whiteout of nothing":        {[]entry{file(".wh.", "")}, "deletes", nil},
		"whiteout through link":      {[]entry{link("out", w.root), file("out/.wh.victim", "")}, "", []string{"out!L---------"}},
		"opaque through link":        {[]entry{link("out", w.root), file("out/.wh..wh..opq", "")}, "", []string{"out!L---------"}},
		"overlay's own whiteout":     {[]entry{node(0, 0)}, "mark for a deletion", nil},
		"device out of range":        {[]entry{node(-1, 3)}, "out of range", nil},
		"owner out of range":         {[]entry{sized("f", 1<<32-1)}, "out of range", nil},
		"owner wraps to root":        {[]entry{sized("f", 1<<32)}, "out of range", nil},
		"file as directory":          {[]entry{file("a", "x"), file("a/b", "x")}, "not a directory", nil},
		"root as file":               {[]entry{file(".", "x")}, "root is no directory", nil},
		"root as link":               {[]entry{link(".", "/")}, "root is no directory", nil},
		"unknown type":               {[]entry{{tar.Header{Typeflag: 'Z', Name: "z"}, ""}}, "unknown", nil},
		"directory replaced by link": {[]entry{folder("d"), link("d", w.root), file("d/victim", "x")}, "leads nowhere", nil},
		"loop of links":              {[]entry{link("a", "b"), link("b", "a"), file("a/f", "x")}, "symbolic links", nil},
		"very deep":                  {[]entry{file(strings.Repeat("d/", 3000)+"f", "x")}, "file name too long", nil},
		"name too long":              {[]entry{file(strings.Repeat("x", 300), "x")}, "name too long", nil},
		"overlay attributes dropped": {[]entry{{tar.Header{Typeflag: tar.TypeDir, Name: "d", Mode: 0o755, PAXRecords: map[string]string{xattrPAX + "trusted.overlay.redirect": "/etc", xattrPAX + "trusted.overlay.opaque": "y"}}, ""}}, "", []string{"d/"}},
		"many attributes":            {[]entry{manyXattrs()}, "no space left", nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.image(w.lazy(archive(t, tc.entries...)))
			dir, release, err := w.Mount(context.Background(), r)
			switch {
			case tc.err == "" && err != nil:
				t.Errorf("error is %v", err)
			case tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)):
				t.Errorf("error is %v, want one with %q", err, tc.err)
			}
			if err == nil {
				if tc.want != nil {
					if got := listDir(t, dir); !slices.Equal(got, tc.want) {
						t.Errorf("files are %q, want %q", got, tc.want)
					}
				}
				if err := release(); err != nil {
					t.Error(err)
				}
			}
			check()
			w.debris()
		})
	}
}

func manyXattrs() entry {
	e := file("f", "")
	e.PAXRecords = map[string]string{}
	for i := range 2000 {
		e.PAXRecords[fmt.Sprintf("%suser.a%d", xattrPAX, i)] = strings.Repeat("v", 100)
	}
	return e
}

// zeros is a bomb: a file of nothing, huge.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestBombsAreCapped(t *testing.T) {
	dir := t.TempDir()
	root, err := openRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	limit := func(r io.Reader) *capped { return &capped{r: r, left: 1 << 20} }

	pr, pw := io.Pipe()
	go func() {
		tw := tar.NewWriter(pw)
		_ = tw.WriteHeader(&tar.Header{Name: "zeros", Size: 1 << 40, Mode: 0o644, Format: tar.FormatGNU})
		_, err := io.Copy(tw, zeros{})
		pw.CloseWithError(err)
	}()
	c := limit(pr)
	if _, err := extractTar(t.Context(), c, root, c, false); !errors.Is(err, ErrArchive) {
		t.Errorf("error is %v", err)
	}
	pr.Close()

	// A sparse file of one terabyte in a few hundred bytes (PAX format 1.0).
	var b bytes.Buffer
	sparseMap := make([]byte, 512)
	copy(sparseMap, "1\n1099511627776\n0\n")
	rec := func(k, v string) string {
		n := len(k) + len(v) + 3
		for len(fmt.Sprint(n))+len(k)+len(v)+3 != n {
			n = len(fmt.Sprint(n)) + len(k) + len(v) + 3
		}
		return fmt.Sprintf("%d %s=%s\n", n, k, v)
	}
	pax := rec("GNU.sparse.major", "1") + rec("GNU.sparse.minor", "0") + rec("GNU.sparse.name", "sparse") + rec("GNU.sparse.realsize", "1099511627776")
	for _, h := range []struct {
		kind byte
		body []byte
	}{{tar.TypeXHeader, []byte(pax)}, {tar.TypeReg, sparseMap}} {
		raw := make([]byte, 512)
		copy(raw, "name")
		copy(raw[100:], "0000644\x000000000\x000000000\x00")
		copy(raw[124:], fmt.Sprintf("%011o\x00%011o\x00", len(h.body), 0))
		raw[156] = h.kind
		copy(raw[257:], "ustar\x0000")
		copy(raw[148:], "        ")
		sum := 0
		for _, c := range raw {
			sum += int(c)
		}
		copy(raw[148:], fmt.Sprintf("%06o\x00 ", sum))
		b.Write(raw)
		b.Write(h.body)
		b.Write(make([]byte, (512-len(h.body)%512)%512))
	}
	b.Write(make([]byte, 1024))
	c = limit(&b)
	if _, err := extractTar(t.Context(), c, root, c, false); !errors.Is(err, ErrArchive) || !strings.Contains(err.Error(), "far more") {
		t.Errorf("error of the sparse file is %v", err)
	}
}

// script makes an archive of lines "TYPE NAME LINK", so that fuzzing gets at
// paths and not at checksums of headers.
func script(text string) []byte {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for line := range strings.Lines(text) {
		kind, names, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		name, target, _ := strings.Cut(names, " ")
		h := tar.Header{Name: name, Linkname: target, Mode: 0o755, Devmajor: int64(len(target) % 3), Format: tar.FormatPAX}
		if len(kind) == 1 {
			h.Typeflag = kind[0]
		}
		if h.Typeflag == tar.TypeReg {
			h.Size, h.Linkname = int64(len(target)), ""
		}
		if tw.WriteHeader(&h) == nil && h.Size > 0 {
			_, _ = tw.Write([]byte(target))
		}
	}
	_ = tw.Close() // an archive may well be broken
	return b.Bytes()
}

func FuzzExtract(f *testing.F) {
	f.Add("5 d\n0 d/f x\n2 l /d\n1 h d/f\n0 d/.wh.x\n0 .wh..wh..opq\n")
	f.Add("2 a ../../..\n0 a/b x\n1 c a/../victim\n0 ../victim y\n")
	f.Add("5 .\n3 dev\n6 pipe\n2 . /\n0 .wh...\n0 a/../../victim x\n")
	root := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 4<<10 {
			return
		}
		data := script(text)
		base := filepath.Join(root, fmt.Sprint(os.Getpid()))
		dir := filepath.Join(base, "in", "side")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(base)
		check := canary(t, base)
		_, out, err := extractBlob(t.Context(), bytes.NewReader(data), 0, dir, false)
		check()
		if err != nil {
			return
		}
		d, err := openRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		under, err := openBelow(nil, marksFor(false))
		if err != nil {
			t.Fatal(err)
		}
		m := &marker{root: d, below: under, always: true, implied: out.implied}
		for _, p := range out.opaques {
			if err := m.opaque(p); err != nil {
				t.Logf("opaque %q: %v", p, err)
			}
		}
		for _, p := range out.whiteouts {
			if err := m.whiteout(p); err != nil {
				t.Logf("whiteout %q: %v", p, err)
			}
		}
		check()
		left, err := os.ReadDir(filepath.Join(base, "in"))
		if err != nil || len(left) != 1 {
			t.Errorf("beside the directory are %v (%v)", left, err)
		}
	})
}
