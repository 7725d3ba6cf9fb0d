package cachemount

import (
	"reflect"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestMemoIsReadAsWritten(t *testing.T) {
	want := &memo{
		At: 1 << 60,
		Entries: []entry{
			{Path: ".", Stat: stat{Mode: 1<<31 | 0o755, UID: 4294967295}},
			{Path: "a\xff", LinkTo: "b", Length: 1536, Stat: stat{Ino: 7, Size: 5, Mtime: -1, Ctime: 1 << 62, GID: 3}},
		},
		Cuts:  []cut{{From: position{1, 2}, To: position{3, 4}, Final: true, Chunk: Chunk{Digest: "sha256:00", Size: 9}}},
		Known: []Chunk{{Blob: ocispecs.Descriptor{MediaType: "x", Annotations: map[string]string{"a": "b"}}}},
	}
	b, err := want.encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeMemo(b)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for n := range b {
		if m, err := decodeMemo(b[:n]); err == nil {
			t.Errorf("%d of %d bytes are read as %+v", n, len(b), m)
		}
	}
}
