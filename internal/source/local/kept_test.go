package local

import (
	"bytes"
	"io"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/flate"
	"github.com/opencontainers/go-digest"
)

func TestKeptState(t *testing.T) {
	entries := []entry{
		{Path: "a", Mode: 0o644, UID: 1, GID: 4294967295, Size: 5, ModTime: -1, Sum: "sha256:00"},
		{Path: "a\xff/ü", Mode: 1<<31 | 0o755, ModTime: 1 << 62, Major: 8, Minor: -1},
		{Path: "raw", Sum: digest.FromString("raw")},
		{Path: "upper case", Sum: "sha256:" + digest.Digest(strings.Repeat("AB", 32))},
		{Path: "other", Sum: digest.SHA512.FromString("other")},
		{Path: "l", Linkname: "a", Xattrs: map[string][]byte{"user.x": {0, 255}, "user.y": {1}}},
	}
	var writers sync.Pool
	for _, want := range []*state{
		{}, {id: "one", depth: 3, entries: entries}, {id: "two", entries: entries[:1], extra: &entries[len(entries)-1]}, {extra: &entries[0]},
	} {
		b, err := want.encode(&writers)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeState(b)
		if err != nil {
			t.Fatal(err)
		}
		if got.id != want.id || got.depth != want.depth || len(got.entries) != len(want.entries) || !reflect.DeepEqual(got.extra, want.extra) {
			t.Errorf("got %+v, want %+v", got, want)
		}
		for i := range want.entries {
			if !reflect.DeepEqual(got.entries[i], want.entries[i]) {
				t.Errorf("got %+v, want %+v", got.entries[i], want.entries[i])
			}
		}
		spoil(t, b)
	}
}

// spoil cuts a state off at each of its bytes and appends one: neither is read.
func spoil(t *testing.T, b []byte) {
	t.Helper()
	plain, err := io.ReadAll(flate.NewReader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	var spoilt [][]byte
	for n := range plain {
		spoilt = append(spoilt, plain[:n])
	}
	for _, p := range append(spoilt, append(plain, 0)) {
		var out bytes.Buffer
		w, err := flate.NewWriter(&out, flate.BestSpeed)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(p); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if s, err := decodeState(out.Bytes()); err == nil {
			t.Errorf("%d of %d bytes are read as %+v", len(p), len(plain), s)
		}
	}
}
