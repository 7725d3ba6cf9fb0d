package clienttest

import (
	"context"
	"errors"
	"io"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/caps"
	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/gateway"
)

// Bridge is the gateway of the fake daemon. It answers the driver of a build by what a
// test sets; what is not set is not implemented.
type Bridge struct {
	gateway.UnimplementedLLBBridgeServer
	daemon *Daemon
	// Caps are the capabilities that it tells of.
	Caps, LLBCaps []string
	// OnSolve answers Solve.
	OnSolve func(*gateway.SolveRequest) (*gateway.SolveResponse, error)
	// OnResolve answers ResolveSourceMeta.
	OnResolve func(*gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error)
	// OnProcess is a process of a container.
	OnProcess func(*gateway.InitMessage, grpc.BidiStreamingServer[gateway.ExecMessage, gateway.ExecMessage]) error
	// Files are those of every result and container.
	Files map[string]string
}

// build waits until the build that a call is about has begun.
func (b *Bridge) build(ctx context.Context) (*news, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	ref := md.Get("buildkit-controlapi-buildid")
	if len(ref) != 1 {
		return nil, status.Errorf(codes.InvalidArgument, "the call names %d builds", len(ref))
	}
	for range 300 {
		n := b.daemon.news(ref[0])
		n.mu.Lock()
		begun := n.begun
		n.mu.Unlock()
		if begun {
			return n, nil
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
	return nil, status.Errorf(codes.NotFound, "no such job %s", ref[0])
}

// Ping tells what there is, once the build has begun.
func (b *Bridge) Ping(ctx context.Context, _ *gateway.PingRequest) (*gateway.PongResponse, error) {
	if _, err := b.build(ctx); err != nil {
		return nil, err
	}
	return &gateway.PongResponse{FrontendAPICaps: enabled(b.Caps), LLBCaps: enabled(b.LLBCaps)}, nil
}

func enabled(ids []string) (out []*caps.APICap) {
	for _, id := range ids {
		out = append(out, &caps.APICap{ID: id, Enabled: true})
	}
	return out
}

// Return hands the driver's result to the test's build.
func (b *Bridge) Return(ctx context.Context, req *gateway.ReturnRequest) (*gateway.ReturnResponse, error) {
	n, err := b.build(ctx)
	if err != nil {
		return nil, err
	}
	select {
	case n.returned <- req:
		return &gateway.ReturnResponse{}, nil
	default:
		return nil, status.Error(codes.FailedPrecondition, "the build has a result already")
	}
}

// Solve is OnSolve.
func (b *Bridge) Solve(_ context.Context, req *gateway.SolveRequest) (*gateway.SolveResponse, error) {
	return b.OnSolve(req)
}

// ResolveSourceMeta is OnResolve.
func (b *Bridge) ResolveSourceMeta(_ context.Context, req *gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error) {
	return b.OnResolve(req)
}

// Inputs are those of the request.
func (b *Bridge) Inputs(ctx context.Context, _ *gateway.InputsRequest) (*gateway.InputsResponse, error) {
	n, err := b.build(ctx)
	if err != nil {
		return nil, err
	}
	return &gateway.InputsResponse{Definitions: n.request.GetFrontendInputs()}, nil
}

// ReadFile reads one of Files.
func (b *Bridge) ReadFile(_ context.Context, req *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	text, ok := b.Files[req.GetFilePath()]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "open %s: no such file or directory", req.GetFilePath())
	}
	if r := req.GetRange(); r != nil {
		text = text[r.GetOffset() : r.GetOffset()+r.GetLength()]
	}
	return &gateway.ReadFileResponse{Data: []byte(text)}, nil
}

// NewContainer takes any.
func (b *Bridge) NewContainer(context.Context, *gateway.NewContainerRequest) (*gateway.NewContainerResponse, error) {
	return &gateway.NewContainerResponse{}, nil
}

// ReleaseContainer takes any.
func (b *Bridge) ReleaseContainer(context.Context, *gateway.ReleaseContainerRequest) (*gateway.ReleaseContainerResponse, error) {
	return &gateway.ReleaseContainerResponse{}, nil
}

// ExecProcess is OnProcess.
func (b *Bridge) ExecProcess(stream grpc.BidiStreamingServer[gateway.ExecMessage, gateway.ExecMessage]) error {
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if m.GetInit() == nil {
		return status.Error(codes.InvalidArgument, "the first message starts no process")
	}
	return b.OnProcess(m.GetInit(), stream)
}

// ListenBuildHistory tells of d.Events that a request means.
func (d *Daemon) ListenBuildHistory(req *control.BuildHistoryRequest, s grpc.ServerStreamingServer[control.BuildHistoryEvent]) error {
	for _, e := range d.Events {
		if ref := req.GetRef(); ref != "" && ref != e.GetRecord().GetRef() {
			continue
		}
		if err := s.Send(e); err != nil {
			return err
		}
	}
	if !req.GetEarlyExit() {
		<-s.Context().Done()
	}
	return nil
}

// UpdateBuildHistory notes the request.
func (d *Daemon) UpdateBuildHistory(_ context.Context, req *control.UpdateBuildHistoryRequest) (*control.UpdateBuildHistoryResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.HistoryUpdates = append(d.HistoryUpdates, req)
	return &control.UpdateBuildHistoryResponse{}, nil
}

// blobs serves d.Blobs.
type blobs struct {
	contentapi.UnimplementedContentServer
	daemon *Daemon
}

func (b blobs) Info(_ context.Context, req *contentapi.InfoRequest) (*contentapi.InfoResponse, error) {
	data, ok := b.daemon.Blobs[req.GetDigest()]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "content %s: not found", req.GetDigest())
	}
	return &contentapi.InfoResponse{Info: &contentapi.Info{Digest: req.GetDigest(), Size: int64(len(data))}}, nil
}

func (b blobs) Read(req *contentapi.ReadContentRequest, s contentapi.Content_ReadServer) error {
	data := b.daemon.Blobs[req.GetDigest()]
	if req.GetOffset() < 0 || req.GetOffset() > int64(len(data)) {
		return status.Error(codes.OutOfRange, "no such offset")
	}
	return s.Send(&contentapi.ReadContentResponse{Offset: req.GetOffset(), Data: data[req.GetOffset():]})
}

// Driven waits for what the driver of a build returns.
func (b *Build) Driven(ctx context.Context) (*gateway.ReturnRequest, error) {
	select {
	case r := <-b.returned:
		return r, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Follow is a build that its driver makes: it ends as the driver says.
func Follow(ctx context.Context, b *Build) (map[string]string, error) {
	r, err := b.Driven(ctx)
	if err != nil {
		return nil, err
	}
	if st := r.GetError(); st != nil {
		return nil, status.ErrorProto(st)
	}
	return map[string]string{"ref": r.GetResult().GetRef().GetId()}, nil
}

// Echo is a process that writes what it is fed, and ends with an exit code.
func Echo(code uint32) func(*gateway.InitMessage, grpc.BidiStreamingServer[gateway.ExecMessage, gateway.ExecMessage]) error {
	return func(_ *gateway.InitMessage, s grpc.BidiStreamingServer[gateway.ExecMessage, gateway.ExecMessage]) error {
		if err := s.Send(&gateway.ExecMessage{Input: &gateway.ExecMessage_Started{Started: &gateway.StartedMessage{}}}); err != nil {
			return err
		}
		for {
			m, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			switch in := m.GetInput().(type) {
			case *gateway.ExecMessage_File:
				if in.File.GetEOF() {
					return end(s, code, "")
				}
				out := &gateway.FdMessage{Fd: 1, Data: in.File.GetData()}
				if err := s.Send(&gateway.ExecMessage{Input: &gateway.ExecMessage_File{File: out}}); err != nil {
					return err
				}
			case *gateway.ExecMessage_Signal:
				return end(s, 255, "signal "+in.Signal.GetName())
			}
		}
	}
}

func end(s grpc.BidiStreamingServer[gateway.ExecMessage, gateway.ExecMessage], code uint32, text string) error {
	exit := &gateway.ExitMessage{Code: code}
	if code != 0 {
		if text == "" {
			text = "exit code"
		}
		exit.Error = status.New(codes.Unknown, text).Proto()
	}
	if err := s.Send(&gateway.ExecMessage{Input: &gateway.ExecMessage_Exit{Exit: exit}}); err != nil {
		return err
	}
	return s.Send(&gateway.ExecMessage{Input: &gateway.ExecMessage_Done{Done: &gateway.DoneMessage{}}})
}
