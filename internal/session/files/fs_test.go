package files_test

import (
	"io"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session/files"
)

// A file system of a program is told of as a directory is.
func TestFromFS(t *testing.T) {
	at := time.Unix(7, 0)
	tree := fstest.MapFS{
		"a":       {Data: []byte("A"), Mode: 0o600, ModTime: at},
		"d/b":     {Data: []byte("BB"), Mode: 0o644},
		"d/e/c":   {Data: []byte("C"), Mode: 0o755},
		"d/skip":  {Data: []byte("no")},
		"link":    {Data: []byte("a"), Mode: fs.ModeSymlink | 0o777},
		"pipe":    {Mode: fs.ModeNamedPipe},
		"x/y/out": {Data: []byte("no")},
	}
	for _, tt := range []struct {
		filter files.Filter
		want   string
	}{
		{files.Filter{}, "a d/ d/b d/e/ d/e/c d/skip link x/ x/y/ x/y/out"},
		{files.Filter{Exclude: []string{"x", "**/skip"}}, "a d/ d/b d/e/ d/e/c link"},
		{files.Filter{Include: []string{"d/e/c"}}, "d/ d/e/ d/e/c"},
		{files.Filter{FollowPaths: []string{"a"}}, "a"},
	} {
		got, err := files.FromFS(tree)(tt.filter)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		stats := map[string]*fsutil.Stat{}
		if err := got.Walk(t.Context(), func(st *fsutil.Stat) error {
			name := st.GetPath()
			stats[name] = st
			if fs.FileMode(st.GetMode()).IsDir() {
				name += "/"
			}
			names = append(names, name)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(names, strings.Fields(tt.want)) {
			t.Errorf("%+v: %q, want %s", tt.filter, names, tt.want)
		}
		if st := stats["a"]; st != nil && (st.GetSize() != 1 || fs.FileMode(st.GetMode()) != 0o600 || st.GetModTime() != at.UnixNano()) {
			t.Errorf("a is %v", st)
		}
		if st := stats["link"]; st != nil && st.GetLinkname() != "a" {
			t.Errorf("link is %v", st)
		}
		if st := stats["d/b"]; st != nil && st.GetModTime() != 0 {
			t.Errorf("a file without a time is of %d", st.GetModTime())
		}
	}
	whole, err := files.FromFS(tree)(files.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := whole.Open("d/b")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(r); err != nil || string(text) != "BB" || r.Close() != nil {
		t.Errorf("read %q, %v", text, err)
	}
	if _, err := files.FromFS(tree)(files.Filter{Exclude: []string{"["}}); err == nil {
		t.Error("a broken pattern was taken")
	}
}
