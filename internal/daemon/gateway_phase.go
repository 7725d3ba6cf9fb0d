package daemon

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kiln-build/kiln/internal/api/errdefs"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// gatewayPhase is what a client has in its hands while it acts as the frontend
// of a build. All of it ends when the client returns a result.
type gatewayPhase struct {
	ctx        context.Context
	states     map[string]*build.Ref       // what failed steps had and left, by id
	containers map[string]*build.Container // by the client's id; nil while one is made
	closed     bool                        // no container is taken any more
	inputs     map[string]*llb.Graph
	quota      quota
	hangUp     func() // ends a frontend's connection; nil if it is shared
}

// ended is the error of a call that comes after the client's result. A client
// that is asked how to export it may look into it once more.
func (r *running) ended() error {
	if r.phase.ctx.Err() != nil && !r.choosing.Load() {
		return status.Errorf(codes.NotFound, "no such job %s: its result was returned", r.ref)
	}
	return nil
}

// solveError says of a failure what a debugger needs to look into the step
// (WIRE.md section 6).
type solveError struct {
	error
	detail *errdefs.Solve
}

// Unwrap returns the error without the detail.
func (e *solveError) Unwrap() error { return e.error }

// solveDetail is encoded in the way of protobuf's JSON, as BuildKit does it
// for this detail and no other.
type solveDetail struct{ *errdefs.Solve }

// MarshalJSON returns the JSON form.
func (d solveDetail) MarshalJSON() ([]byte, error) { return protojson.Marshal(d.Solve) }

// failed gives an error its place and, if a step failed, the ids by which the
// client can mount what the step left.
func (r *running) failed(br *build.Bridge, err error) error {
	if err == nil {
		return nil
	}
	f := br.Failed(err)
	err = br.Locate(err)
	if f == nil {
		return err
	}
	bytes, berr := f.Step.Bytes()
	step := &pb.Op{}
	if berr != nil || proto.Unmarshal(bytes, step) != nil {
		return err // the detail helps, but is not what went wrong
	}
	d := &errdefs.Solve{
		Op: step, Description: f.Step.Meta.Description, InputIDs: r.keepStates(f.Inputs), MountIDs: r.keepStates(f.Mounts),
	}
	switch {
	case f.Action != llb.None:
		d.Subject = &errdefs.Solve_File{File: &errdefs.FileAction{Index: int64(f.Action)}}
	case f.Input != llb.None:
		d.Subject = &errdefs.Solve_Cache{Cache: &errdefs.ContentCache{Index: int64(f.Input)}}
	}
	return &solveError{err, d}
}

// keepStates gives file systems of a failed step ids; "" is an empty one.
func (r *running) keepStates(refs []*build.Ref) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]string, len(refs))
	for i, ref := range refs {
		if ref == nil {
			continue
		}
		ids[i] = rand.Text()
		if r.phase.states == nil {
			r.phase.states = map[string]*build.Ref{}
		}
		r.phase.states[ids[i]] = ref
	}
	return ids
}

// remoteError is why a client could not make a result. It reaches whoever
// waits for the build as the client said it, with its details.
type remoteError struct{ st *rpcstatus.Status }

// Error is the client's message.
func (e *remoteError) Error() string { return e.st.GetMessage() }

// GRPCStatus is what the client sent.
func (e *remoteError) GRPCStatus() *status.Status { return status.FromProto(e.st) }

// Located tells whether the client said where in a build file the error is.
func (e *remoteError) Located() bool {
	return slices.ContainsFunc(e.st.GetDetails(), func(d *anypb.Any) bool {
		return d.GetTypeUrl() == typePrefix+"errdefs.Source"+typeSuffix
	})
}

// readFinal reads the metadata of a result that an old frontend returns with
// its last solve.
func readFinal(attrs []byte) (map[string][]byte, error) {
	meta := map[string][]byte{}
	if len(attrs) == 0 {
		return meta, nil
	}
	if err := json.Unmarshal(attrs, &meta); err != nil {
		return nil, fmt.Errorf("decode exporter attributes: %w", err)
	}
	return meta, nil
}

// give ends the client's part of the build with what it returned.
func (r *running) give(a answer) error {
	select {
	case r.answer <- a:
		return nil
	default:
		return status.Error(codes.FailedPrecondition, "gateway result is already set")
	}
}

// final ends the client's part with the result of a solve.
func (r *running) final(w *gateway.Result, attrs []byte, native ocispecs.Platform) error {
	meta, err := readFinal(attrs)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	maps.Copy(meta, w.Metadata)
	res, err := r.result(&gateway.Result{Result: w.Result, Metadata: meta, Attestations: w.Attestations}, native)
	if err != nil {
		return err
	}
	return r.give(answer{result: res})
}
