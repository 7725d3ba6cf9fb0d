package local_test

import (
	"encoding/binary"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/session/files"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
)

// listed are the paths in the list of a transfer without content.
func listed(t *testing.T, list string) (paths []string) {
	t.Helper()
	for b := []byte(list); len(b) > 0; {
		n := binary.LittleEndian.Uint32(b)
		var st files.Stat
		if err := proto.Unmarshal(b[4:4+n], &st); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, st.GetPath())
		b = b[4+n:]
	}
	return paths
}

// TestMetadataOnly takes a list of a directory, and the content of few files.
func TestMetadataOnly(t *testing.T) {
	r := newRig(t, 3)
	for name, data := range map[string]string{
		"data": "contents", "dir/file1": "file1", "dir/file2": "file2", "dir/subdir/bar1": "bar1",
		"dir/subdir/bar2": "bar2", "dir/subdir2/bar3": "bar3", "foo": "foo", ".fsutil-metadata": "forged",
	} {
		r.write(t, name, data)
	}
	o := op("local.metadatatransfer", "true", "local.metadatatransferexclude", `["dir/**/*1","foo"]`)
	check := func(ref string, got map[string]string, want map[string]string, all ...string) {
		t.Helper()
		paths := listed(t, got[".fsutil-metadata"])
		delete(got, ".fsutil-metadata")
		if !maps.Equal(got, want) {
			t.Errorf("%s: got files %v, expected %v", ref, got, want)
		}
		if !slices.Equal(paths, all) {
			t.Errorf("%s: listed are %q, expected %q", ref, paths, all)
		}
	}
	all := []string{
		"data", "dir", "dir/file1", "dir/file2", "dir/subdir", "dir/subdir/bar1", "dir/subdir/bar2",
		"dir/subdir2", "dir/subdir2/bar3", "foo",
	}
	first, _ := r.fetch(t, o)
	want := map[string]string{"dir/file1": "file1", "dir/subdir/bar1": "bar1", "foo": "foo"}
	checkTree(t, r, first)
	check("first", sourcetest.Files(t, r.layers, first), want, all...)

	for i := range 2 {
		again, sent := r.fetch(t, o)
		if again.ID() != first.ID() || sent != 0 {
			t.Errorf("unchanged: another layer, %d bytes sent", sent)
		}
		if i == 0 {
			r.restart(3)
		}
	}

	// A file whose content is not wanted changes the list alone.
	r.write(t, "data", "more contents")
	changed, sent := r.fetch(t, o)
	if changed.ID() == first.ID() || sent != 0 {
		t.Errorf("after a change of the list: the same layer, or %d bytes sent", sent)
	}
	checkTree(t, r, changed)
	check("changed", sourcetest.Files(t, r.layers, changed), want, all...)

	if err := os.RemoveAll(filepath.Join(r.dir, "dir/subdir")); err != nil {
		t.Fatal(err)
	}
	r.write(t, "dir/file1", "updated")
	r.write(t, "dir/bar1", "new")
	for range 4 { // past the depth at which layers become one
		last, _ := r.fetch(t, o)
		checkTree(t, r, last)
		check("last", sourcetest.Files(t, r.layers, last),
			map[string]string{"dir/file1": "updated", "dir/bar1": "new", "foo": "foo"},
			"data", "dir", "dir/bar1", "dir/file1", "dir/file2", "dir/subdir2", "dir/subdir2/bar3", "foo")
		r.write(t, "data", strings.Repeat("x", 20+int(last.Record().Size)%7))
	}

	// Without exceptions there is the list and nothing else.
	bare, _ := r.fetch(t, op("local.metadatatransfer", "true"))
	if got := sourcetest.Files(t, r.layers, bare); len(got) != 1 {
		t.Errorf("only a list was wanted, got %v", slices.Sorted(maps.Keys(got)))
	}
	// The usual transfer does not see any of it.
	usual, _ := r.fetch(t, op())
	if got := sourcetest.Files(t, r.layers, usual); got["dir/file2"] != "file2" || got[".fsutil-metadata"] != "forged" {
		t.Errorf("the usual transfer got %v", got)
	}
}

// checkTree holds the digest that was made on the way against that of the files.
func checkTree(t *testing.T, r *rig, ref *layer.Ref) {
	t.Helper()
	dir, release, err := r.layers.Mount(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	read, err := contenthash.New().Checksum(t.Context(), dir, whole)
	if err != nil {
		t.Fatal(err)
	}
	told, err := r.trees[ref.ID()].Checksum(t.Context(), "/nowhere", whole)
	if err != nil {
		t.Fatal(err)
	}
	if read != told {
		t.Errorf("the files have digest %s, they are said to have %s", read, told)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
}
