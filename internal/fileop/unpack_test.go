package fileop

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/llb"
)

func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content)), Gname: content}
}

func folder(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}

func link(kind byte, name, target string) tar.Header {
	return tar.Header{Typeflag: kind, Name: name, Linkname: target, Mode: 0o777}
}

// archive makes a tar. What a file holds is taken from its Gname.
func archive(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := h.Gname
		h.Gname, h.ModTime = "", epoch.Truncate(1e9)
		must(t, w.WriteHeader(&h))
		_, err := io.WriteString(w, content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func pack(t testing.TB, b []byte, open func(io.Writer) (io.WriteCloser, error)) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := open(&out)
	must(t, err)
	_, err = w.Write(b)
	must(t, errors.Join(err, w.Close()))
	return out.Bytes()
}

func zipped(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }

// A tar with the one file "f" that holds "bz", by bzip2, which Go cannot write.
const bzipped = "QlpoOTFBWSZTWUYJ68kAAHN7hMkAAEBAAH+AAADxAJ4QAACACCAAVDSbVGnqYhp6ho9QSQoPU0ADQd/czEIQe2pIRq2kmZNhkySB0z1ceAXEJeRcqTwWeVbPmzKFF423HoxPyMhH0TREA/F3JFOFCQRgnryQ"

func TestAddUnpacks(t *testing.T) {
	plain := archive(t, file("f", "content"), folder("d"), file("d/g", "more"))
	bz, err := base64.StdEncoding.DecodeString(bzipped)
	must(t, err)
	for name, c := range map[string]struct {
		data []byte
		want []string
	}{
		"tar":   {plain, []string{"f=content", "d/", "d/g=more"}},
		"gzip":  {pack(t, plain, zipped), []string{"f=content", "d/", "d/g=more"}},
		"zstd":  {pack(t, plain, func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) }), []string{"f=content", "d/", "d/g=more"}},
		"xz":    {pack(t, plain, func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) }), []string{"f=content", "d/", "d/g=more"}},
		"bzip2": {bz, []string{"f=bz"}},
	} {
		t.Run(name, func(t *testing.T) {
			src, srcDir := root(t)
			must(t, os.WriteFile(filepath.Join(srcDir, "a"), c.data, 0o644))
			must(t, os.Symlink("a", filepath.Join(srcDir, "link")))
			for _, from := range []string{"a", "link"} {
				dst, dir := root(t)
				do := with(dockerfile(from, "/x/y"), func(c *llb.DoCopy) { c.Unpack = true })
				must(t, Copy(t.Context(), dst, src, &do, nil))
				want := []string{"x/", "x/y/"}
				for _, w := range c.want {
					name, content, isFile := strings.Cut(w, "=")
					if w = "x/y/" + name; isFile {
						w += "=" + content
					}
					want = append(want, w)
				}
				wantTree(t, dir, want...)
				if name != "bzip2" && !mtime(t, filepath.Join(dir, "x/y/d")).Equal(epoch.Truncate(1e9)) {
					t.Error("a directory's time is not the archive's")
				}
			}
			dst, dir := root(t)
			do := dockerfile("a", "/")
			must(t, Copy(t.Context(), dst, src, &do, nil))
			wantTree(t, dir, "a="+string(c.data))
		})
	}
}

func TestAddCopiesWhatIsNoArchive(t *testing.T) {
	src, srcDir := root(t)
	cut := pack(t, []byte("only compressed"), zipped)
	plant(t, srcDir, "text", "empty=", "dir/f", "zip="+string(cut), "bad=\x1f\x8b\x08broken", "badxz=\xfd7zXZ\x00broken")
	dst, dir := root(t)
	do := with(dockerfile("*", "/"), func(c *llb.DoCopy) { c.Unpack = true })
	must(t, Copy(t.Context(), dst, src, &do, nil))
	wantTree(t, dir, "text", "empty=", "f=dir/f", "zip="+string(cut), "bad=\x1f\x8b\x08broken", "badxz=\xfd7zXZ\x00broken")
	do = with(dockerfile("none", "/"), func(c *llb.DoCopy) { c.Unpack = true })
	wantErr(t, Copy(t.Context(), dst, src, &do, nil), `"/none": not found`)
}

func TestUnpack(t *testing.T) {
	fifo := tar.Header{Typeflag: tar.TypeFifo, Name: "p", Mode: 0o600}
	null := tar.Header{Typeflag: tar.TypeChar, Name: "n", Mode: 0o666, Devmajor: 1, Devminor: 3}
	removed := tar.Header{Typeflag: tar.TypeChar, Name: "n", Mode: 0o666}
	owned := file("o", "x")
	owned.Uid, owned.Gid, owned.Mode = 7, 8, 0o4750
	nobody := file("o", "x")
	nobody.Uid = 1<<32 - 1
	zeros := "x" + strings.Repeat("\x00", 300<<10)
	for _, c := range []struct {
		name  string
		has   []string
		tar   []tar.Header
		owner *Owner
		want  []string
		err   string
	}{
		{"kinds", nil, []tar.Header{owned, fifo, null, link(tar.TypeSymlink, "s", "/anywhere"), link(tar.TypeLink, "h", "o")}, nil,
			[]string{"o=x@4750#7:8", "p 10000 0@600", "n 20000 259@666", "s -> /anywhere", "h=x@4750#7:8"}, ""},
		{"owner", nil, []tar.Header{owned, folder("d"), link(tar.TypeSymlink, "s", "x"), file("i/f", "")}, &Owner{1, 2},
			[]string{"o=x@4750#1:2", "d/#1:2", "s -> x#1:2", "i/#1:2", "i/f=#1:2"}, ""},
		{"implied parents", nil, []tar.Header{file("a/b/c", "x")}, nil, []string{"a/", "a/b/", "a/b/c=x"}, ""},
		{"absolute names", nil, []tar.Header{file("/a/b", "x")}, nil, []string{"a/", "a/b=x"}, ""},
		{"dots", nil, []tar.Header{folder("./"), file("./a/../b", "x")}, nil, []string{"b=x"}, ""},
		{"merge and replace", []string{"d/@700#3:3", "d/old", "f=old", "l -> ../secret", "x/y"},
			[]tar.Header{folder("d"), file("f", "new"), file("l", "new"), file("x", "file")}, nil,
			[]string{"d/", "d/old", "f=new", "l=new", "x=file"}, ""},
		{"through a link inside", []string{"l -> /d", "d/"}, []tar.Header{file("l/f", "x")}, nil, []string{"l -> /d", "d/", "d/f=x"}, ""},
		{"same name twice", nil, []tar.Header{file("f", "one"), file("f", "two")}, nil, []string{"f=two"}, ""},
		{"folder replaced between its files", nil, []tar.Header{folder("e"), file("d/f", "x"), link(tar.TypeSymlink, "d", "e"), file("d/g", "x")}, nil,
			[]string{"e/", "d -> e", "e/g=x"}, ""},
		{"zeros last", nil, []tar.Header{file("z", zeros)}, nil, []string{"z=" + zeros}, ""},
		{"dot dot", nil, []tar.Header{file("../secret", "x")}, nil, nil, "leads out of the destination"},
		{"dot dot later", nil, []tar.Header{file("a/../../secret", "x")}, nil, nil, "leads out of the destination"},
		{"the root", nil, []tar.Header{link(tar.TypeSymlink, "./", "/")}, nil, nil, "replace the destination itself"},
		{"link out, then through it", nil, []tar.Header{link(tar.TypeSymlink, "l", ".."), file("l/secret", "x")}, nil, []string{"l -> ..", "secret=x"}, ""},
		{"deep link out", nil, []tar.Header{folder("d"), link(tar.TypeSymlink, "d/l", "../../secret"), file("d/l/x", "x")}, nil, []string{"d/", "d/l -> ../../secret", "secret/", "secret/x=x"}, ""},
		{"hard link out", nil, []tar.Header{link(tar.TypeLink, "h", "../secret")}, nil, nil, "leads out of the destination"},
		{"hard link through a link", nil, []tar.Header{link(tar.TypeSymlink, "l", ".."), link(tar.TypeLink, "h", "l/secret")}, nil, nil, "no such file"},
		{"hard link to a link", nil, []tar.Header{link(tar.TypeSymlink, "l", "../secret"), link(tar.TypeLink, "h", "l"), file("h", "x")}, nil, []string{"l -> ../secret", "h=x"}, ""},
		{"mark of removal", nil, []tar.Header{removed}, nil, nil, "marks a removed file"},
		{"strange kind", nil, []tar.Header{{Typeflag: '7', Name: "c"}}, nil, nil, "unknown kind of entry"},
		{"owner out of range", nil, []tar.Header{nobody}, nil, nil, "out of range"},
		{"a directory below a file", nil, []tar.Header{file("f", "x"), file("f/g", "x")}, nil, nil, "not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dst, dir := root(t)
			plant(t, dir, c.has...)
			err := Unpack(t.Context(), dst, bytes.NewReader(archive(t, c.tar...)), UnpackOptions{Owner: c.owner})
			if c.err != "" {
				wantErr(t, err, c.err)
				return
			}
			must(t, err)
			if c.name == "kinds" {
				if n := nlink(t, filepath.Join(dir, "h")); n != 2 {
					t.Errorf("h has %d names", n)
				}
				wantTree(t, dir, "h=x@4750#7:8", "o <- h", "p 10000 0@600", "n 20000 259@666", "s -> /anywhere")
				return
			}
			wantTree(t, dir, c.want...)
		})
	}
}

func TestUnpackLeavesHoles(t *testing.T) {
	content := strings.Repeat("\x00", 40<<20) + "end"
	dst, dir := root(t)
	must(t, Unpack(t.Context(), dst, bytes.NewReader(pack(t, archive(t, file("f", content)), zipped)), UnpackOptions{}))
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(dir, "f"), &st))
	if st.Size != int64(len(content)) || st.Blocks*512 > 1<<20 {
		t.Errorf("the file has %d bytes and takes %d", st.Size, st.Blocks*512)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "f")); string(b) != content {
		t.Errorf("it differs, %v", err)
	}
}

func TestUnpackXattrs(t *testing.T) {
	h := file("f", "x")
	h.PAXRecords = map[string]string{paxXattr + "user.k": "v", paxXattr + "trusted.overlay.opaque": "y", paxXattr + "nonsense": "x"}
	dst, _ := root(t)
	must(t, Unpack(t.Context(), dst, bytes.NewReader(archive(t, h)), UnpackOptions{}))
	attrs, err := dst.LXattrs("f")
	must(t, err)
	if len(attrs) != 1 || string(attrs["user.k"]) != "v" {
		t.Errorf("xattrs %v", attrs)
	}
}

func TestUnpackLies(t *testing.T) {
	whole := archive(t, file("f", strings.Repeat("content", 1000)))
	huge := tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 1 << 39, Mode: 0o644}
	more := tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 1 << 41, Mode: 0o644}
	only := func(h tar.Header) []byte {
		var b bytes.Buffer
		must(t, tar.NewWriter(&b).WriteHeader(&h))
		return b.Bytes()
	}
	zip := pack(t, whole, zipped)
	for name, c := range map[string]struct {
		data []byte
		err  string
	}{
		"cut short":            {whole[:3000], "unexpected EOF"},
		"cut short compressed": {zip[:len(zip)/2], "unexpected EOF"},
		"does not fit":         {only(huge), "are free on the disk"},
		"too much":             {only(more), "holds more than"},
		"no tar":               {bytes.Repeat([]byte("x"), 2048), "invalid tar header"},
		"xz dictionary":        {xzAsking(40), "dictionary"},
		"not gzip":             {[]byte("\x1f\x8b\x08\xff\xff"), "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			dst, _ := root(t)
			wantErr(t, Unpack(t.Context(), dst, bytes.NewReader(c.data), UnpackOptions{}), c.err)
		})
	}
}

// xzAsking is the begin of an xz stream whose block wants a dictionary of this size code.
func xzAsking(bits byte) []byte {
	return append([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01"), bits, 0, 0, 0)
}

func TestXzWindow(t *testing.T) {
	for bits, want := range map[byte]int64{0: 4 << 10, 1: 6 << 10, 22: 8 << 20, 24: 16 << 20, 39: 3 << 30, 40: 4 << 30} {
		if got := xzWindow(xzAsking(bits)); got != want {
			t.Errorf("code %d is %d bytes, want %d", bits, got, want)
		}
	}
	sized := append([]byte("\xfd7zXZ\x00\x00\x04\xe6\xd6\xb4\x46\x04\xc0\x85\x01\x90\x02\x21\x01"), 40, 0, 0)
	if got := xzWindow(sized); got != 4<<30 {
		t.Errorf("with sizes in the header: %d", got)
	}
}

func TestUnpackCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dst, _ := root(t)
	if err := Unpack(ctx, dst, bytes.NewReader(archive(t, file("f", "x"))), UnpackOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// FuzzUnpack looks for archives that panic or reach out of the root, which
// root checks at the end.
func FuzzUnpack(f *testing.F) {
	f.Add(archive(f, file("f", "x"), link(tar.TypeSymlink, "l", ".."), file("l/secret", "x"), link(tar.TypeLink, "h", "l/../secret")))
	f.Add(pack(f, archive(f, file("../secret", "x")), zipped))
	f.Add(archive(f, folder("a/.."), file("./../secret", "x"), tar.Header{Typeflag: tar.TypeFifo, Name: "p"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		dst, dir := root(t)
		ctx, cancel := context.WithTimeout(t.Context(), 5e9)
		defer cancel()
		_ = Unpack(ctx, dst, bytes.NewReader(b), UnpackOptions{Owner: &Owner{}})
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dir, "../secret"), &st))
		if st.Nlink != 1 || st.Mode != unix.S_IFREG|0o600 {
			t.Errorf("the file outside has %d names and mode %o", st.Nlink, st.Mode)
		}
	})
}
