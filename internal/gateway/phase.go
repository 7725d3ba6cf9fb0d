package gateway

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/errdefs"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// Phase is one client's part in a build, in which it acts as the frontend, and
// what it has in its hands meanwhile. All of it ends when it returns a result.
type Phase struct {
	ref    string          // the build's, for messages
	over   <-chan struct{} // closed at the end of the build
	begun  chan struct{}   // closed once bridge, ctx and inputs are set
	bridge *build.Bridge
	ctx    context.Context
	inputs map[string]*llb.Graph
	answer chan answer // what the client returned
	hangUp func()      // ends a frontend's connection; nil if it is shared

	choosing atomic.Bool // the client is asked how to export the result

	mu         sync.Mutex
	refs       map[string]*kept
	states     map[string]*build.Ref            // what failed steps had and left, by id
	containers map[string]*build.Container      // by the client's id; nil while one is made
	closed     bool                             // no container is taken any more
	details    map[*build.Failed]*errdefs.Solve // of failures that were told
	underWay   map[*sending]struct{}            // answers that take room
	quota      *quota
}

// kept is a result that a client may refer to by id.
type kept struct {
	graph *llb.Graph
	ref   frontend.Ref
}

type answer struct {
	result *frontend.Result
	err    error
}

// NewPhase returns the part of the build ref's client, which begins with
// [Phase.Serve], if at all. Closing over says that the build has ended.
func NewPhase(ref string, over <-chan struct{}) *Phase {
	return &Phase{ref: ref, over: over, begun: make(chan struct{}), answer: make(chan answer, 1), refs: map[string]*kept{}, quota: newQuota()}
}

// Serve lets the client act as frontend, until it returns a result.
func (r *Phase) Serve(ctx context.Context, br *build.Bridge) (*frontend.Result, error) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	r.begin(ctx, br, br.Inputs())
	select {
	case a := <-r.answer:
		return a.result, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// begin lets calls in.
func (r *Phase) begin(ctx context.Context, br *build.Bridge, inputs map[string]*llb.Graph) {
	r.bridge, r.ctx, r.inputs = br, ctx, inputs
	close(r.begun)
}

// Choose calls ask with ids by which the client can look into results once more,
// after its part has ended, until ask returns.
func (r *Phase) Choose(refs []frontend.Ref, ask func(ids []string) error) error {
	r.choosing.Store(true)
	defer r.choosing.Store(false)
	var ids []string
	for _, ref := range refs {
		ids = append(ids, r.keep(&kept{ref: ref}))
	}
	return ask(ids)
}

// waitBridge returns the bridge of a build whose client acts as frontend.
func (r *Phase) waitBridge(ctx context.Context) (*build.Bridge, error) {
	select {
	case <-r.begun:
		return r.bridge, nil
	case <-r.over:
		return nil, status.Errorf(codes.NotFound, "no such job %s: it has ended", r.ref)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// keep gives a result an id.
func (r *Phase) keep(g *kept) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	id := rand.Text()
	r.refs[id] = g
	return id
}

// lookup finds a result by its id; the empty id is the empty file system.
func (r *Phase) lookup(id string) (*kept, error) {
	if id == "" {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if g, ok := r.refs[id]; ok {
		return g, nil
	}
	return nil, fmt.Errorf("no such ref %q in build %s", id, r.ref)
}

// ended is the error of a call that comes after the client's result. A client
// that is asked how to export it may look into it once more.
func (r *Phase) ended() error {
	if r.ctx.Err() != nil && !r.choosing.Load() {
		return status.Errorf(codes.NotFound, "no such job %s: its result was returned", r.ref)
	}
	return nil
}

// StepError says of a failure what a debugger needs to look into the step
// (BuildKit's frontend/gateway/pb/gateway.proto).
type StepError struct {
	error
	detail *errdefs.Solve
}

// Detail is encoded in the way of protobuf's JSON, as BuildKit does it for this
// detail and no other.
func (e *StepError) Detail() json.Marshaler { return solveDetail{e.detail} }

// Unwrap returns the error without the detail.
func (e *StepError) Unwrap() error { return e.error }

type solveDetail struct{ *errdefs.Solve }

// MarshalJSON returns the JSON form.
func (d solveDetail) MarshalJSON() ([]byte, error) { return protojson.Marshal(d.Solve) }

// failed gives an error its place and, if a step failed, the ids by which the
// client can mount what the step left.
func (r *Phase) failed(br *build.Bridge, err error) error {
	if err == nil {
		return nil
	}
	f := br.Failed(err)
	err = br.Locate(err)
	if f == nil {
		return err
	}
	d := r.detail(f)
	if d == nil {
		return err // the detail helps, but is not what went wrong
	}
	return &StepError{err, d}
}

// detail tells of a failure, in the same way each time; nil if there is nothing to tell.
func (r *Phase) detail(f *build.Failed) *errdefs.Solve {
	r.mu.Lock()
	known := r.details[f]
	r.mu.Unlock()
	if known != nil {
		return known
	}
	bytes, err := f.Step.Bytes()
	step := &pb.Op{}
	if err != nil || proto.Unmarshal(bytes, step) != nil {
		return nil
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
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.details == nil {
		r.details = map[*build.Failed]*errdefs.Solve{}
	}
	r.details[f] = d
	return d
}

// keepStates gives file systems of a failed step ids; "" is an empty one.
func (r *Phase) keepStates(refs []*build.Ref) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]string, len(refs))
	for i, ref := range refs {
		if ref == nil {
			continue
		}
		ids[i] = rand.Text()
		if r.states == nil {
			r.states = map[string]*build.Ref{}
		}
		r.states[ids[i]] = ref
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

// sourceDetail is the type of the detail that says where an error is.
const sourceDetail = "github.com/moby/buildkit/errdefs.Source+json"

// Located tells whether the client said where in a build file the error is.
func (e *remoteError) Located() bool {
	return slices.ContainsFunc(e.st.GetDetails(), func(d *anypb.Any) bool {
		return d.GetTypeUrl() == sourceDetail
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
func (r *Phase) give(a answer) error {
	select {
	case r.answer <- a:
		return nil
	default:
		return status.Error(codes.FailedPrecondition, "gateway result is already set")
	}
}

// final ends the client's part with the result of a solve.
func (r *Phase) final(w *gateway.Result, attrs []byte, native ocispecs.Platform) error {
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
