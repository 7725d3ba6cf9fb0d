package layer

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// windowsImage is a base of two layers as Windows has them.
func (w *world) windowsImage() *Ref {
	w.t.Helper()
	hard := entry{tar.Header{Typeflag: tar.TypeLink, Name: "Files/d/hard", Linkname: "Files/a", Mode: 0o600}, ""}
	lower := w.lazy(archive(w.t, folder("Files"), folder("Hives"), file("Hives/System", "hive"), file("top", "x"), file("UtilityVM/Files/u", "x"),
		file("Files/a", "1"), folder("Files/d"), file("Files/d/b", "2"), hard))
	upper := w.lazy(archive(w.t, folder("Files"), file("Files/d/.wh.b", ""), file("Files/c", "3")))
	lower.Windows, upper.Windows = true, true
	return w.image(lower, upper)
}

// Of an image for Windows, the files of the container are what later steps see,
// and what they make is laid out in the same way.
func TestWindowsLayers(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		base := w.windowsImage()
		w.want(base, "a=1", "c=3", "d/", "d/hard=1")
		top := w.step(base, func(dir string) error {
			return errors.Join(files("new/x=1", "c=4")(dir), os.Remove(filepath.Join(dir, "a")), os.Symlink("c", filepath.Join(dir, "link")))
		})
		blob := w.blobs(top, Variant{})[2]
		want := []string{"Hives", "Files", "Files/.wh.a", "Files/c", "Files/link->Files/c", "Files/new/", "Files/new/x"}
		if got := w.told(blob); !slices.Equal(got, want) {
			t.Errorf("the layer has\n%q, want\n%q", got, want)
		}
		for name, h := range w.headers(blob) {
			security := h.PAXRecords[paxSecurity]
			switch top := !strings.Contains(name, "/"); {
			case h.Typeflag == tar.TypeDir && (h.PAXRecords[paxFileAttributes] != "16" || h.Mode&0o170000 != 0o040000 || (security == securityOfFolders) == top),
				h.Typeflag == tar.TypeReg && (h.PAXRecords[paxFileAttributes] != "32" || h.Mode&0o170000 != 0o100000 || security != securityOfFiles),
				h.PAXRecords[paxCreationTime] == "":
				t.Errorf("%s is told as %+v", name, h)
			}
		}
		// What was written is read again, and converted as it is.
		w.want(w.again(w.blobs(top, Variant{Compression: zstdName, Force: true})), "c=4", "d/", "d/hard=1", "link!L---------", "new/", "new/x=1")
	})
}

// What was built for Windows from nothing has no layout of Windows, and is read
// all the same.
func TestWindowsImageFromNothing(t *testing.T) {
	w := newWorld(t, "overlayfs")
	plain := w.lazy(archive(t, file("a", "1"), file("Files/b", "2")))
	plain.Windows = true
	w.want(w.image(plain), "Files/", "Files/b=2", "a=1")
}

// A layer stays laid out as it was made, wherever it is put. What is made on top
// is for Windows if anything below is.
func TestWindowsMerges(t *testing.T) {
	w := newWorld(t, "overlayfs")
	base, own := w.windowsImage(), w.step(nil, files("own/x=1"))
	plain, windows := []string{"own/", "own/x"}, []string{"Hives", "Files", "Files/own/", "Files/own/x"}
	if got := w.told(w.blobs(own, Variant{})[0]); !slices.Equal(got, plain) {
		t.Errorf("the layer has %q", got)
	}
	merged, err := w.Merge(context.Background(), []*Ref{base, own})
	if err != nil {
		t.Fatal(err)
	}
	if got := w.told(w.blobs(merged, Variant{})[2]); !slices.Equal(got, plain) {
		t.Errorf("the merged layer has %q", got)
	}
	if got := w.told(w.blobs(w.step(merged, files("own/x=2")), Variant{})[3]); !slices.Equal(got, windows) {
		t.Errorf("the layer on the merged one has %q", got)
	}
	back := w.diff(base, w.step(base, files("own/x=1")))
	if got := w.told(w.blobs(back, Variant{})[0]); !slices.Equal(got, windows) {
		t.Errorf("the diff has %q", got)
	}
}

// The same blobs pulled for another system are what they are.
func TestWindowsBlobsForOthers(t *testing.T) {
	w := newWorld(t, "overlayfs")
	one := w.lazy(archive(t, file("Files/a", "1"), folder("Hives")))
	two := one
	two.Windows = true
	w.want(w.image(one), "Files/", "Files/a=1", "Hives/")
	w.want(w.image(two), "a=1")
}

// What the entry of a hard link says of the file counts, as with containerd.
func TestHardLinkSaysMore(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		h := entry{tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a", Mode: 0o4711, Uid: 5, Gid: 6}, ""}
		dir, release, err := w.Mount(context.Background(), w.image(w.lazy(archive(t, file("a", "1"), h))))
		if err != nil {
			t.Fatal(err)
		}
		defer w.released(release)
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dir, "a"), &st); err != nil || st.Mode&0o7777 != 0o4711 || st.Uid != 5 || st.Gid != 6 {
			t.Errorf("the file is %+v (%v)", st, err)
		}
	})
}

// headers are the entries of a blob by name.
func (w *world) headers(b Blob) map[string]*tar.Header {
	w.t.Helper()
	_, raw := w.readBlob(b)
	out := map[string]*tar.Header{}
	for tr := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		} else if err != nil {
			w.t.Fatal(err)
		}
		out[h.Name] = h
	}
}
