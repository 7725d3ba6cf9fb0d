package layer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	digest "github.com/opencontainers/go-digest"
)

func TestSeekableBlobs(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		base := w.image(w.lazy(archive(t, file("base", "b"))))
		top := w.step(base, files("a/small=1", "a/large="+strings.Repeat("x", 1<<20), "b=2"))
		plain := w.blobs(top, Variant{})
		got := w.blobs(top, Variant{Compression: "estargz"})
		if got[0].Desc.Digest != plain[0].Desc.Digest {
			t.Error("a layer that came otherwise was converted unasked")
		}
		forced := w.blobs(top, Variant{Compression: "estargz", Force: true, Level: 9})
		again := w.blobs(top, Variant{Compression: "estargz", Force: true, Level: 9})
		for i, b := range append(slices.Clone(forced), got[1]) {
			toc := w.checkSeekable(t, b)
			if i < len(again) && (again[i].Desc.Digest != b.Desc.Digest || again[i].Desc.Annotations[tocAnnotation] != toc) {
				t.Errorf("layer %d: %+v, before %+v", i, again[i], b)
			}
		}
		if got[1].DiffID == plain[1].DiffID {
			t.Error("the archive has no table of contents")
		}
		// Other blobs of the layer are made of its files, not of that archive.
		if zstd := w.blobs(top, Variant{Compression: "zstd"}); zstd[1].DiffID != plain[1].DiffID {
			t.Errorf("zstd of %s, want %s", zstd[1].DiffID, plain[1].DiffID)
		}
		if _, err := w.Blobs(t.Context(), top, Variant{Compression: "estargz", Level: 10}); err == nil {
			t.Error("level 10 was taken")
		}
	})
}

// checkSeekable tells whether a blob is what it says, and the digest of its table.
func (w *world) checkSeekable(t *testing.T, b Blob) string {
	t.Helper()
	ra, err := w.ReaderAt(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	defer ra.Close()
	z, err := gzip.NewReader(io.NewSectionReader(ra, 0, ra.Size()))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(z)
	if err != nil || digest.FromBytes(raw) != b.DiffID || b.Desc.Annotations[sizeAnnotation] != strconv.Itoa(len(raw)) {
		t.Errorf("it holds %s of %d bytes, %v, and says %s, %v", digest.FromBytes(raw), len(raw), err, b.DiffID, b.Desc.Annotations)
	}
	r, err := estargz.Open(io.NewSectionReader(ra, 0, ra.Size()))
	if err != nil {
		t.Fatal(err)
	}
	toc := b.Desc.Annotations[tocAnnotation]
	if r.TOCDigest().String() != toc {
		t.Errorf("table %s, it says %s", r.TOCDigest(), toc)
	}
	return toc
}

func TestWritingSeekableFails(t *testing.T) {
	broken := errors.New("cannot be read")
	if _, err := writeSeekable(&bytes.Buffer{}, 6, func(io.Writer) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := writeSeekable(&bytes.Buffer{}, 6, func(w io.Writer) error {
		_, err := w.Write(bytes.Repeat([]byte("no archive"), 1000))
		return err
	}); err == nil {
		t.Error("what is no archive was compressed")
	}
}

func TestPaths(t *testing.T) {
	onBoth(t, func(t *testing.T, w *world) {
		base := w.image(w.lazy(archive(t, folder("etc"), file("etc/conf", "1"), file("old", "1"))))
		top := w.step(base, files("etc/conf=2", "-old", "new/x=1"))
		for _, c := range []struct {
			r    *Ref
			want []string
		}{{base, []string{"etc", "etc/conf", "old"}}, {top, []string{"etc", "etc/conf", "new", "new/x"}}} {
			var got []string
			if err := w.Paths(t.Context(), c.r, func(p string) { got = append(got, p) }); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v, %v, want %v", got, err, c.want)
			}
		}
	})
}
