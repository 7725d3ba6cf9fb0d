package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb/pb"
)

var calls = flag.Int("calls", 2_000, "how often TestEachCallWithoutEnd makes each call of the gateway that has no limit")

// tireless is a frontend that makes a call again and again, and what it needs for it.
type tireless struct {
	*inContainer
	ref, wrong string // results: of one file, and of a step that fails
	stream     grpc.BidiStreamingClient[gateway.ExecMessage, gateway.ExecMessage]
	process    string // that runs, and reads nothing
}

// endlessCalls are the calls that a frontend can make.
func endlessCalls() map[string]struct {
	call func(ctx context.Context, f *tireless, i int) error
	most int    // how many are taken; 0 if the call leaves nothing behind
	want string // what the rest is refused with
	dear bool   // it takes a while: fewer will do
} {
	type row = struct {
		call func(ctx context.Context, f *tireless, i int) error
		most int
		want string
		dear bool
	}
	return map[string]row{
		"Ping": {call: func(ctx context.Context, f *tireless, _ int) error {
			_, err := f.Ping(ctx, &gateway.PingRequest{})
			return err
		}},
		"Inputs": {call: func(ctx context.Context, f *tireless, _ int) error {
			_, err := f.Inputs(ctx, &gateway.InputsRequest{})
			return err
		}},
		"ReadFile": {call: func(ctx context.Context, f *tireless, _ int) error {
			_, err := f.ReadFile(ctx, &gateway.ReadFileRequest{Ref: f.ref, FilePath: "/file"})
			return err
		}},
		"ReadDir": {call: func(ctx context.Context, f *tireless, _ int) error {
			_, err := f.ReadDir(ctx, &gateway.ReadDirRequest{Ref: f.ref, DirPath: "/"})
			return err
		}},
		"StatFile": {call: func(ctx context.Context, f *tireless, _ int) error {
			_, err := f.StatFile(ctx, &gateway.StatFileRequest{Ref: f.ref, Path: "/file"})
			return err
		}},
		"Evaluate": {call: func(ctx context.Context, f *tireless, _ int) error {
			_, err := f.Evaluate(ctx, &gateway.EvaluateRequest{Ref: f.ref})
			return err
		}},
		"Evaluate what fails": {call: func(ctx context.Context, f *tireless, _ int) error {
			return refused(f.Evaluate(ctx, &gateway.EvaluateRequest{Ref: f.wrong}))
		}},
		"Return nothing": {call: func(ctx context.Context, f *tireless, _ int) error {
			return refused(f.Return(ctx, &gateway.ReturnRequest{}))
		}},
		"NewContainer and ReleaseContainer": {dear: true, call: func(ctx context.Context, f *tireless, i int) error {
			id := fmt.Sprint(i)
			_, err := f.NewContainer(ctx, &gateway.NewContainerRequest{ContainerID: id, Mounts: []*pb.Mount{{Dest: "/", ResultID: f.ref}}})
			if err == nil {
				_, err = f.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: id})
			}
			return err
		}},
		"NewContainer of many mounts": {call: func(ctx context.Context, f *tireless, _ int) error {
			mounts := make([]*pb.Mount, 201)
			for i := range mounts {
				mounts[i] = &pb.Mount{Dest: fmt.Sprint("/", i), ResultID: f.ref}
			}
			return refused(f.NewContainer(ctx, &gateway.NewContainerRequest{Mounts: mounts}))
		}},
		"ReleaseContainer of none": {call: func(ctx context.Context, f *tireless, i int) error {
			return refused(f.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: fmt.Sprint(i)}))
		}},
		"ExecProcess without a message": {call: func(ctx context.Context, f *tireless, _ int) error {
			stream, err := f.ExecProcess(ctx)
			if err == nil {
				err = stream.CloseSend()
			}
			if err == nil {
				if _, err = stream.Recv(); errors.Is(err, io.EOF) {
					err = nil
				}
			}
			return err
		}},
		"ExecProcess, resize": {call: func(_ context.Context, f *tireless, i int) error {
			return f.send(&gateway.ExecMessage{Input: &gateway.ExecMessage_Resize{Resize: &gateway.ResizeMessage{Rows: uint32(i), Cols: 1}}})
		}},
		"ExecProcess, init": {most: 10_000, want: "may start 10000 processes", call: func(ctx context.Context, f *tireless, i int) error {
			return f.run(ctx, fmt.Sprint("process ", i), "true")
		}},
		"ResolveImageConfig": {most: 10_000, want: "may ask about 10000 sources", call: func(ctx context.Context, f *tireless, i int) error {
			_, err := f.ResolveImageConfig(ctx, &gateway.ResolveImageConfigRequest{Ref: fmt.Sprint("not a name ", i)})
			return err
		}},
		"ResolveSourceMeta": {most: 10_000, want: "may ask about 10000 sources", call: func(ctx context.Context, f *tireless, i int) error {
			_, err := f.ResolveSourceMeta(ctx, &gateway.ResolveSourceMetaRequest{Source: &pb.SourceOp{Identifier: fmt.Sprint("nowhere://", i)}})
			return err
		}},
		"ResolveSourceMeta, large": {most: 5, want: "in 64 MiB together", call: func(ctx context.Context, f *tireless, _ int) error {
			_, err := f.ResolveSourceMeta(ctx, &gateway.ResolveSourceMetaRequest{
				Source: &pb.SourceOp{Identifier: "nowhere://"}, LogName: strings.Repeat("x", 12<<20),
			})
			return err
		}},
	}
}

// refused is an error where a call that is to be refused is not.
func refused[R any](_ R, err error) error {
	if code := status.Code(err); code == codes.OK || code == codes.Unavailable || code == codes.Canceled {
		return fmt.Errorf("got %w, expected a refusal", err)
	}
	return nil
}

// send sends a message to the process.
func (f *tireless) send(m *gateway.ExecMessage) error {
	m.ProcessID = f.process
	return f.stream.Send(m)
}

// run runs a process to its end in a container of its own stream.
func (f *tireless) run(ctx context.Context, id string, args ...string) error {
	if err := f.stream.Send(&gateway.ExecMessage{ProcessID: id, Input: &gateway.ExecMessage_Init{Init: &gateway.InitMessage{
		ContainerID: "own", Meta: &pb.Meta{Args: args, Cwd: "/"},
	}}}); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for ctx.Err() == nil {
		m, err := f.stream.Recv()
		if err != nil {
			return err
		}
		if m.GetDone() != nil {
			return nil
		}
	}
	return ctx.Err()
}

// ready makes what calls need.
func (f *tireless) ready(ctx context.Context, text, wrong *pb.Definition) error {
	for id, def := range map[*string]*pb.Definition{&f.ref: text, &f.wrong: wrong} {
		res, err := f.solve(ctx, def)
		if err != nil {
			return err
		}
		*id = res.GetRef().GetId()
	}
	if _, err := f.NewContainer(ctx, &gateway.NewContainerRequest{ContainerID: "own", Mounts: []*pb.Mount{{Dest: "/", ResultID: f.ref}}}); err != nil {
		return err
	}
	var err error
	f.stream, err = f.ExecProcess(ctx)
	if err != nil {
		return err
	}
	f.process = "first"
	return f.run(ctx, f.process, "true")
}

// TestEachCallWithoutEnd has frontends make each call of the gateway again and again.
// What leaves something behind is refused at some point, and all else leaves nothing.
func TestEachCallWithoutEnd(t *testing.T) {
	text := textGraph(t, "result")
	wrong := hostileGraph(t, text, &pb.Op{Op: &pb.Op_File{File: &pb.FileOp{Actions: []*pb.FileAction{{
		Input: 0, SecondaryInput: -1, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/nothing"}},
	}}}}}, 0)
	programs := map[string]program{}
	for name, row := range endlessCalls() {
		programs[name] = func(ctx context.Context, c *inContainer) error {
			f := &tireless{inContainer: c}
			if err := f.ready(ctx, text, wrong); err != nil {
				return fmt.Errorf("prepare: %w", err)
			}
			n := *calls
			if row.dear {
				n /= 20
			}
			if row.most > 0 {
				n = row.most + 1 // those before count, too
			}
			before := heap()
			var err error
			for i := range n {
				if err = row.call(ctx, f, i); err != nil && (row.most == 0 || strings.Contains(err.Error(), row.want)) {
					break
				}
			}
			if row.most == 0 {
				eventually(t, name, func() string {
					if grown := heap() - before; grown > 32<<20 {
						return fmt.Sprintf("%d MiB are left of %d calls", grown>>20, n)
					}
					return ""
				})
			}
			switch {
			case row.want == "" && err != nil:
				return err
			case row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)):
				return fmt.Errorf("the last call got %w, expected %q", err, row.want)
			}
			return f.give(ctx, text)
		}
	}
	g := serveFrontends(t, programs)
	for name := range programs {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
			defer cancel()
			if err := g.runFrontend(ctx, t, name); err != nil {
				t.Error(err)
			}
		})
	}
	eventually(t, "mounts are left", func() string { return mountsBelow(t, g.root) })
}

// heap is how many bytes are in use.
func heap() int64 {
	runtime.GC() // twice, for what pools have kept
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestFrontendsShareLimits has a frontend call others, each of which solves less than
// one may: all together they may not solve more.
func TestFrontendsShareLimits(t *testing.T) {
	text := textGraph(t, "result")
	g := serveFrontends(t, map[string]program{
		"outer": func(ctx context.Context, f *inContainer) error {
			for range 4 {
				if _, err := f.Solve(ctx, &gateway.SolveRequest{
					Frontend: "gateway.v0", FrontendOpt: imageOpts("inner"), AllowResultReturn: true, AllowResultArrayRef: true,
					FrontendInputs: map[string]*pb.Definition{"image": text},
				}); err != nil {
					return err
				}
			}
			return errors.New("there was no end")
		},
		"inner": func(ctx context.Context, f *inContainer) error {
			var err error
			for range 3_000 {
				if _, err = f.solve(ctx, text); err != nil {
					return err
				}
			}
			return f.give(ctx, text)
		},
		"crowd": func(ctx context.Context, f *inContainer) error { // more calls than are taken at a time
			var all sync.WaitGroup
			errs := make(chan error, 1_000)
			for range cap(errs) {
				all.Go(func() {
					_, err := f.Ping(ctx, &gateway.PingRequest{})
					errs <- err
				})
			}
			all.Wait()
			for range cap(errs) {
				if err := <-errs; err != nil {
					return err
				}
			}
			return f.give(ctx, text)
		},
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	if err := g.runFrontend(ctx, t, "outer"); err == nil || !strings.Contains(err.Error(), "may solve 10000 graphs") {
		t.Errorf("frontends that each solve 3000 graphs: got %v", err)
	}
	if err := g.runFrontend(ctx, t, "crowd"); err != nil {
		t.Errorf("a thousand calls at a time: %v", err)
	}
}
