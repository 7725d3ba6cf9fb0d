package daemon

import (
	"bytes"
	"errors"
	"testing"

	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/llb"
)

// An error carries as much of the files that it is about as clients take.
func TestErrorsFitAHeader(t *testing.T) {
	for _, tt := range []struct{ size, places, want int }{
		{1 << 10, 3, 3},
		{1 << 20, 60, 4},
		{11 << 20, 1, 0},
	} {
		e := &build.Error{Err: errors.New("Dockerfile:7: wrong")}
		for i := range tt.places {
			at := llb.Range{Start: llb.Position{Line: i + 1}, End: llb.Position{Line: i + 1}}
			file := llb.SourceFile{Name: "Dockerfile", Data: bytes.Repeat([]byte("#"), tt.size)}
			e.Sources = append(e.Sources, build.Source{File: file, Ranges: []llb.Range{at}})
		}
		st := errorStatus(e)
		sources, size := 0, 0
		for _, d := range st.GetDetails() {
			size += len(d.GetValue())
			if d.GetTypeUrl() == typePrefix+"errdefs.Source"+typeSuffix {
				sources++
			}
		}
		if sources != tt.want || size > 8<<20 || st.GetMessage() != "Dockerfile:7: wrong" {
			t.Errorf("%d files of %d bytes: %d came along, in %d bytes, want %d; message %q", tt.places, tt.size, sources, size, tt.want, st.GetMessage())
		}
	}
}
