package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb/pb"
)

// flood calls without looking at what is answered, until the connection ends, and
// returns the last answer.
func flood(n int, call func() error) (err error) {
	for range n {
		if err = call(); status.Code(err) == codes.Unavailable {
			break
		}
	}
	return err
}

// repeated is a codec that makes any message the same bytes so many times, all of
// them in the same memory: only who reads it needs as much.
type repeated struct {
	part  []byte
	times int
}

func (repeated) Name() string { return "proto" }

func (r repeated) Marshal(any) (mem.BufferSlice, error) {
	return slices.Repeat(mem.BufferSlice{mem.SliceBuffer(r.part)}, r.times), nil
}

func (repeated) Unmarshal(mem.BufferSlice, any) error { return errors.New("no answer is read") }

// TestHostileFrontend has frontends take what they can get. Each is stopped by an
// error that says why, and the next build is as good as ever.
func TestHostileFrontend(t *testing.T) {
	text := textGraph(t, "result")
	g := serveFrontends(t, map[string]program{
		"flood": func(ctx context.Context, f *inContainer) error {
			return flood(100_000, func() error {
				_, err := f.Solve(ctx, &gateway.SolveRequest{Definition: text, AllowResultReturn: true, AllowResultArrayRef: true})
				return err
			})
		},
		"warnings": func(ctx context.Context, f *inContainer) error {
			return flood(100_000, func() error {
				_, err := f.Warn(ctx, &gateway.WarnRequest{Digest: "sha256:x", Short: []byte("look")})
				return err
			})
		},
		"large warnings": func(ctx context.Context, f *inContainer) error {
			return flood(64/15+2, func() error {
				_, err := f.Warn(ctx, &gateway.WarnRequest{Short: make([]byte, 15<<20)})
				return err
			})
		},
		"containers": func(ctx context.Context, f *inContainer) error {
			res, err := f.solve(ctx, text)
			if err != nil {
				return err
			}
			for i := range 128 + 1 {
				if _, err = f.NewContainer(ctx, &gateway.NewContainerRequest{
					ContainerID: fmt.Sprint(i), Mounts: []*pb.Mount{{Dest: "/", ResultID: res.GetRef().GetId()}},
				}); err != nil {
					return fmt.Errorf("container %d: %w", i, err)
				}
			}
			return errors.New("there was no end")
		},
		"large": func(ctx context.Context, f *inContainer) error {
			_, err := f.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{Metadata: map[string][]byte{"k": make([]byte, 64<<20)}}})
			if status.Code(err) != codes.ResourceExhausted {
				return fmt.Errorf("a large result: %w", err)
			}
			return errors.New("large refused")
		},
		"huge": func(ctx context.Context, f *inContainer) error {
			huge := repeated{make([]byte, 1<<20), 1 << 10}
			for _, method := range []string{gateway.LLBBridge_Return_FullMethodName, gateway.LLBBridge_Solve_FullMethodName} {
				err := f.conn.Invoke(ctx, method, &gateway.PingRequest{}, &gateway.PongResponse{}, grpc.ForceCodecV2(huge), grpc.MaxCallSendMsgSize(2<<30))
				if status.Code(err) != codes.ResourceExhausted {
					return fmt.Errorf("%s of 1 GB: %w", method, err)
				}
			}
			return errors.New("huge refused")
		},
		"owner": func(ctx context.Context, f *inContainer) error {
			res, err := f.solve(ctx, text)
			if err != nil {
				return err
			}
			if _, err := f.NewContainer(ctx, &gateway.NewContainerRequest{
				ContainerID: "mine", Mounts: []*pb.Mount{{Dest: "/", ResultID: res.GetRef().GetId()}},
			}); err != nil {
				return err
			}
			if _, err := f.Solve(ctx, &gateway.SolveRequest{
				Frontend: "gateway.v0", FrontendOpt: imageOpts("forger"), AllowResultReturn: true, AllowResultArrayRef: true,
				FrontendInputs: map[string]*pb.Definition{"image": text},
			}); err != nil {
				return err
			}
			_, err = f.Return(ctx, &gateway.ReturnRequest{Result: res})
			return err
		},
		"forger": func(ctx context.Context, f *inContainer) error {
			for what, call := range map[string]func() error{
				"read": func() error {
					_, err := f.ReadFileContainer(ctx, &gateway.ReadFileRequest{Ref: "mine", FilePath: "file"})
					return err
				},
				"release": func() error {
					_, err := f.ReleaseContainer(ctx, &gateway.ReleaseContainerRequest{ContainerID: "mine"})
					return err
				},
				"return": func() error {
					_, err := f.Return(ctx, &gateway.ReturnRequest{Result: &gateway.Result{Result: &gateway.Result_Ref{Ref: &gateway.Ref{Id: "forged"}}}})
					return err
				},
			} {
				if err := call(); status.Code(err) == codes.OK {
					return fmt.Errorf("it may %s what is another's", what)
				}
			}
			return f.give(ctx, text)
		},
		"endless": func(ctx context.Context, f *inContainer) error {
			_, err := f.Solve(ctx, &gateway.SolveRequest{
				Frontend: "gateway.v0", FrontendOpt: imageOpts("endless"), AllowResultReturn: true,
				FrontendInputs: map[string]*pb.Definition{"image": text},
			})
			return errors.Join(errors.New("the inner one failed"), returnError(ctx, f, err))
		},
		"silent": func(ctx context.Context, _ *inContainer) error {
			<-ctx.Done()
			return ctx.Err()
		},
		"loud": func(ctx context.Context, f *inContainer) error {
			if err := babble(f.log); err != nil {
				return err
			}
			return f.give(ctx, text)
		},
		"garbage": func(ctx context.Context, f *inContainer) error {
			go func() { _, _ = io.Copy(io.Discard, f.raw) }() // as the system's pipe takes what nobody reads
			if babble(f.raw) == nil {
				return errors.New("all of it was read")
			}
			<-ctx.Done() // it does not give up by itself
			return ctx.Err()
		},
		"good": func(ctx context.Context, f *inContainer) error { return f.give(ctx, text) },
	})
	g.images.Silence = 3 * time.Second
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for mode, want := range map[string]string{
		"flood": "may solve 10000 graphs of 512 MiB", "warnings": "2000 warnings of 64 MiB", "large warnings": "2000 warnings of 64 MiB",
		"containers": "128 containers at a time", "large": "large refused", "huge": "huge refused", "owner": "", "endless": "frontends call each other",
		"silent": "has said nothing for 3s", "loud": "", "garbage": "frontend grpc server closed unexpectedly", "good": "",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		var began, ended runtime.MemStats
		runtime.ReadMemStats(&began)
		err := g.runFrontend(ctx, t, mode)
		cancel()
		runtime.ReadMemStats(&ended)
		if used := ended.TotalAlloc - began.TotalAlloc; slices.Contains([]string{"huge", "loud", "garbage"}, mode) && used > 64<<20 {
			t.Errorf("%s: %d MiB of memory were used", mode, used>>20)
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: got %v, want %q", mode, err, want)
		}
	}
	runtime.GC() // twice, for what pools have kept
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("%d MiB of memory are left of frontends that have ended", grown>>20)
	}
	eventually(t, "mounts are left", func() string { return mountsBelow(t, g.root) })
}

// babble writes 1 GB of lines.
func babble(w io.Writer) error {
	line := bytes.Repeat([]byte("no call, but a line of a log\n"), 1<<20/29)
	for range 1 << 10 {
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return nil
}

// returnError returns another's error as the frontend's own.
func returnError(ctx context.Context, f *inContainer, err error) error {
	_, failed := f.Return(ctx, &gateway.ReturnRequest{Error: status.Convert(err).Proto()})
	return failed
}
