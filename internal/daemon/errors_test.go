package daemon

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	gatewaypb "github.com/kiln-build/kiln/internal/api/gateway"
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

// Whatever a frontend says that a build fails with, the client is told of it, and its
// connection stays.
func TestErrorsOfAnySize(t *testing.T) {
	g := serveGateway(t)
	detail := func(size int) *anypb.Any {
		return &anypb.Any{TypeUrl: "example/detail", Value: bytes.Repeat([]byte("d"), size)}
	}
	for name, tt := range map[string]struct {
		said    *rpcstatus.Status
		details int // that arrive
	}{
		"usual":          {&rpcstatus.Status{Code: 9, Message: "wrong", Details: []*anypb.Any{detail(10)}}, 1},
		"long":           {&rpcstatus.Status{Code: 9, Message: "wrong" + strings.Repeat("x", 14<<20)}, 0},
		"long, no ASCII": {&rpcstatus.Status{Code: 9, Message: "wrong" + strings.Repeat("ß", 4<<20), Details: []*anypb.Any{detail(10)}}, 1},
		"large detail":   {&rpcstatus.Status{Code: 9, Message: "wrong", Details: []*anypb.Any{detail(13 << 20), detail(10)}}, 1},
		"odd code":       {&rpcstatus.Status{Code: -9, Message: "wrong", Details: []*anypb.Any{detail(10)}}, 1},
		"all at once":    {&rpcstatus.Status{Code: 9, Message: "wrong" + strings.Repeat("ß", 2<<20), Details: []*anypb.Any{detail(4 << 20), detail(3 << 20), detail(4 << 20)}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			b := begin(t, g.conn, name)
			if _, err := b.Return(b.ctx, &gatewaypb.ReturnRequest{Error: tt.said}); err != nil {
				t.Fatal(err)
			}
			got := status.Convert(<-b.done)
			want := codes.FailedPrecondition
			if tt.said.Code < 0 {
				want = codes.Unknown
			}
			if got.Code() != want || !strings.HasPrefix(got.Message(), "wrong") || len(got.Message()) > 2<<20 {
				t.Errorf("the client was told %s, %.200q, in %d bytes", got.Code(), got.Message(), len(got.Message()))
			}
			kept := 0
			for _, d := range got.Proto().GetDetails() {
				if d.GetTypeUrl() == "example/detail" {
					kept++
				}
			}
			if kept != tt.details {
				t.Errorf("%d details came along, want %d", kept, tt.details)
			}
		})
	}
}

// A message that is no UTF-8 keeps its details.
func TestErrorsOfOddBytes(t *testing.T) {
	for _, err := range []error{
		&build.Error{Err: errors.New("copy a\xffb"), Vertex: "sha256:0"},
		status.FromProto(&rpcstatus.Status{Code: 2, Message: "copy a\xffb", Details: []*anypb.Any{{TypeUrl: "x"}}}).Err(),
	} {
		st := status.Convert(wireError(err))
		if st.Message() != "copy a\uFFFDb" || len(st.Proto().GetDetails()) != 1 {
			t.Errorf("%T: message %q, %d details", err, st.Message(), len(st.Proto().GetDetails()))
		}
	}
}
