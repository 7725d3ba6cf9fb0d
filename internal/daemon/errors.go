package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/errdefs"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/gateway"
	"github.com/kiln-build/kiln/llb/pb"
)

// typePrefix and typeSuffix frame the name of a detail's message: its value is
// JSON, not protobuf (BuildKit's solver/errdefs).
const (
	typePrefix = "github.com/moby/buildkit/"
	typeSuffix = "+json"
)

// maxSourceDetails is how much of build files an error carries, bytes. Each place
// comes with its whole file, encoded as base64 twice, in a header; clients take
// headers of 16 MiB (grpc-go's limit) and drop the connection at more.
const maxSourceDetails = 4 << 20

// Limits of what an error says, bytes. It is sent in headers: the message twice, where
// what is no ASCII takes three times as much, and the details as base64.
const (
	maxErrorText    = 1 << 20
	maxErrorDetails = 8 << 20
)

// wireError makes err a status whose details clients understand.
func wireError(err error) error {
	if err == nil {
		return nil
	}
	if own, ok := err.(interface{ GRPCStatus() *grpcstatus.Status }); ok {
		if st := own.GRPCStatus().Proto(); fit(st) {
			return grpcstatus.FromProto(st).Err()
		}
		return err
	}
	return grpcstatus.FromProto(errorStatus(err)).Err()
}

// fit makes a status fit into headers, and tells whether it did not: what a build
// fails with may be anybody's words. A text that is no UTF-8 would cost the details,
// and clients can not read a code below zero.
func fit(st *status.Status) (changed bool) {
	if st.GetCode() < 0 {
		st.Code, changed = int32(codes.Unknown), true
	}
	if text := st.GetMessage(); len(text) > maxErrorText || !utf8.ValidString(text) {
		changed = true
		st.Message = strings.ToValidUTF8(text[:min(len(text), maxErrorText)], "\uFFFD")
		if len(text) > maxErrorText {
			st.Message += fmt.Sprintf("… (of %d bytes)", len(text))
		}
	}
	room, all := maxErrorDetails, len(st.GetDetails())
	if all == 0 {
		return changed
	}
	st.Details = slices.DeleteFunc(st.Details, func(d *anypb.Any) bool {
		size := proto.Size(d)
		if size <= room {
			room -= size
			return false
		}
		return true
	})
	return changed || len(st.Details) < all
}

func errorStatus(err error) *status.Status {
	st := statusOf(err)
	fit(st)
	return st
}

func statusOf(err error) *status.Status {
	st := &status.Status{Code: int32(errorCode(err)), Message: err.Error()}
	var foreign interface{ GRPCStatus() *grpcstatus.Status }
	if errors.As(err, &foreign) { // another side's error, with its own details
		other := foreign.GRPCStatus()
		st.Message = strings.Replace(st.Message, other.Err().Error(), other.Message(), 1)
		st.Details = append(st.Details, other.Proto().GetDetails()...)
	}
	var exit *executor.ExitError
	if errors.As(err, &exit) {
		st.Details = appendDetail(st.Details, "gatewayapi.ExitMessage", struct{ Code uint32 }{uint32(exit.Code)})
	}
	var lack *frontend.UnsupportedError
	if errors.As(err, &lack) {
		detail := map[string]string{"capability": "errdefs.FrontendCap", "subrequest": "errdefs.Subrequest"}[lack.Kind]
		if detail != "" {
			st.Details = appendDetail(st.Details, detail, struct {
				Name string `json:"name"`
			}{lack.Name})
		}
	}
	var denied *build.DeniedError
	if errors.As(err, &denied) && len(denied.Messages) > 0 {
		st.Details = appendDetail(st.Details, "policysession.DecisionResponse", denial(denied))
	}
	var failed *gateway.StepError
	if errors.As(err, &failed) {
		st.Details = appendDetail(st.Details, "errdefs.Solve", failed.Detail())
	}
	attestDetails(st, err)
	st.Details = append(st.Details, frontendDetails(err)...)
	var be *build.Error
	if errors.As(err, &be) {
		if len(be.Stack) > 0 {
			st.Details = appendDetail(st.Details, "stack.Stack", wireStack(be.Stack))
		}
		if be.Vertex != "" {
			st.Details = appendDetail(st.Details, "errdefs.Vertex", &errdefs.Vertex{Digest: string(be.Vertex)})
		}
		room := maxSourceDetails
		for _, s := range slices.Backward(be.Sources) { // clients wrap the error in each, and list the outermost last
			if room -= len(s.File.Data); room < 0 {
				break // the message names the place
			}
			st.Details = appendDetail(st.Details, "errdefs.Source", wireSource(s))
		}
	}
	return st
}

// frontendDetails names the frontends that err went through, the innermost first:
// clients list them the other way round.
func frontendDetails(err error) []*anypb.Any {
	var failed *build.FrontendError
	if !errors.As(err, &failed) {
		return nil
	}
	return appendDetail(frontendDetails(failed.Err), "errdefs.Frontend", &errdefs.Frontend{Name: failed.Name, Source: failed.Image})
}

func errorCode(err error) codes.Code {
	var st interface{ GRPCStatus() *grpcstatus.Status }
	var lack *frontend.UnsupportedError
	switch {
	case errors.As(err, &lack):
		return codes.Unimplemented
	case errors.Is(err, context.Canceled):
		return codes.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return codes.DeadlineExceeded
	case errors.As(err, &st) && st.GRPCStatus().Code() != codes.OK:
		return st.GRPCStatus().Code()
	}
	// A missing file, too: clients show every other code before the message, and go by
	// the text (BuildKit's solver/errdefs).
	return codes.Unknown
}

func appendDetail(ds []*anypb.Any, name string, v any) []*anypb.Any {
	b, err := json.Marshal(v)
	if err != nil {
		return ds // the message says it all without the detail
	}
	d := &anypb.Any{TypeUrl: typePrefix + name + typeSuffix, Value: b}
	if slices.ContainsFunc(ds, func(have *anypb.Any) bool { return proto.Equal(have, d) }) {
		return ds
	}
	return append(ds, d)
}

func wireSource(s build.Source) *errdefs.Source {
	out := &errdefs.Source{Info: &pb.SourceInfo{Filename: s.File.Name, Data: s.File.Data, Language: s.File.Language}}
	if s.File.From != nil {
		if def, err := s.File.From.Marshal(); err == nil { // else the source is shown without it
			out.Info.Definition = def
		}
	}
	for _, r := range s.Ranges {
		out.Ranges = append(out.Ranges, wireRange(r.Start.Line, r.Start.Character, r.End.Line, r.End.Character))
	}
	return out
}
