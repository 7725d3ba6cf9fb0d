package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
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

// largeFile is the size of the file that frontends here read, bytes.
const largeFile = 12 << 20

// mostUnread is how much memory a frontend that reads no answer may cost: what may be
// under way, and what its graph, its calls and the test's own side of the connection
// take. Without a bound it would be 60 files or more.
const mostUnread = 64<<20 + 96<<20

// deaf is a connection that nothing is read from any more once it is shut.
type deaf struct {
	net.Conn
	shut chan struct{}
	gone chan struct{}
	once sync.Once
}

func newDeaf(conn net.Conn) *deaf {
	return &deaf{Conn: conn, shut: make(chan struct{}), gone: make(chan struct{})}
}

func (d *deaf) Read(p []byte) (int, error) {
	select {
	case <-d.shut:
		<-d.gone
		return 0, net.ErrClosed
	default:
		return d.Conn.Read(p)
	}
}

func (d *deaf) Close() error {
	d.once.Do(func() { close(d.gone) })
	return d.Conn.Close()
}

// wanting is a frontend that reads a large file.
type wanting struct {
	*inContainer
	ref string
}

func newWanting(ctx context.Context, f *inContainer, def *pb.Definition) (*wanting, error) {
	resp, err := f.Solve(ctx, &gateway.SolveRequest{Definition: def, AllowResultReturn: true, AllowResultArrayRef: true}, grpc.MaxCallRecvMsgSize(16<<20))
	if err != nil {
		return nil, err
	}
	return &wanting{f, resp.Result.GetRef().GetId()}, nil
}

// ask begins to read the file, and takes no answer.
func (w *wanting) ask(ctx context.Context) (grpc.ClientStream, error) {
	call, err := w.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, gateway.LLBBridge_ReadFile_FullMethodName, grpc.MaxCallRecvMsgSize(16<<20))
	if err == nil {
		err = call.SendMsg(&gateway.ReadFileRequest{Ref: w.ref, FilePath: "/file"})
	}
	if err == nil {
		err = call.CloseSend()
	}
	return call, err
}

// take takes the answer to what was asked for.
func take(call grpc.ClientStream) error {
	resp := &gateway.ReadFileResponse{}
	if err := call.RecvMsg(resp); err != nil {
		return err
	}
	if len(resp.Data) != largeFile || bytes.Count(resp.Data, []byte("x")) != largeFile {
		return fmt.Errorf("%d bytes that are not the file", len(resp.Data))
	}
	return nil
}

// together reads the file in so many calls at a time.
func (w *wanting) together(ctx context.Context, n int) error {
	errs := make(chan error, n)
	for range n {
		go func() {
			call, err := w.ask(ctx)
			if err == nil {
				err = take(call)
			}
			errs <- err
		}()
	}
	var all []error
	for range n {
		all = append(all, <-errs)
	}
	return errors.Join(all...)
}

// bounded runs other beside what is asked for, and tells what is held before and after
// it. A daemon without a bound would have filled its memory by then.
func bounded(before int64, other func() error) error {
	for _, meanwhile := range []func() error{func() error { time.Sleep(time.Second); return nil }, other} {
		if err := meanwhile(); err != nil {
			return err
		}
		for try := 1; ; try++ { // garbage of calls that were cancelled is not held
			grown := heap() - before
			if grown <= mostUnread {
				break
			}
			if try == 100 {
				return fmt.Errorf("%d MiB of memory are held for a frontend that reads no answer, expected %d at most", grown>>20, mostUnread>>20)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// TestUnreadAnswers has frontends ask for large files and read no answer, or cancel
// what they asked for. The daemon holds a few answers, other builds go on, and who
// reads in the end gets all.
func TestUnreadAnswers(t *testing.T) {
	large, text := textGraph(t, strings.Repeat("x", largeFile)), textGraph(t, "result")
	var g *gatewayServer
	other := func(ctx context.Context) func() error { // another build, that reads large files
		return func() error {
			if err := g.runFrontend(ctx, t, "reader"); err != nil {
				return fmt.Errorf("another build: %w", err)
			}
			return nil
		}
	}
	programs := map[string]program{
		"reader": func(ctx context.Context, f *inContainer) error {
			w, err := newWanting(ctx, f, large)
			if err != nil {
				return err
			}
			if err := w.together(ctx, 10); err != nil {
				return err
			}
			return f.give(ctx, text)
		},
		"late": func(ctx context.Context, f *inContainer) error { // it reads what it has asked for, but not at once
			w, err := newWanting(ctx, f, large)
			if err != nil {
				return err
			}
			before := heap()
			var calls []grpc.ClientStream
			for range 60 {
				call, err := w.ask(ctx)
				if err != nil {
					return err
				}
				calls = append(calls, call)
			}
			if err := bounded(before, other(ctx)); err != nil {
				return err
			}
			if _, err := f.StatFile(ctx, &gateway.StatFileRequest{Ref: w.ref, Path: "/file"}); err != nil {
				return fmt.Errorf("a small answer: %w", err)
			}
			errs := make(chan error, len(calls))
			for _, call := range calls {
				go func() { errs <- take(call) }()
			}
			for range calls {
				if err := <-errs; err != nil {
					return err
				}
			}
			return f.give(ctx, text)
		},
		"deaf": func(ctx context.Context, f *inContainer) error {
			return hearNothing(ctx, f, large, other, false)
		},
		"deaf and fickle": func(ctx context.Context, f *inContainer) error {
			return hearNothing(ctx, f, large, other, true)
		},
		"fickle": func(ctx context.Context, f *inContainer) error {
			w, err := newWanting(ctx, f, large)
			if err != nil {
				return err
			}
			var all sync.WaitGroup
			for i := range 100 {
				all.Go(func() {
					ctx, cancel := context.WithTimeout(ctx, time.Duration(i)*time.Millisecond)
					defer cancel()
					if call, err := w.ask(ctx); err == nil {
						<-call.Context().Done()
					}
				})
			}
			all.Wait()
			if err := w.together(ctx, 10); err != nil {
				return err
			}
			return f.give(ctx, text)
		},
		"outer": func(ctx context.Context, f *inContainer) error {
			w, err := newWanting(ctx, f, large)
			if err != nil {
				return err
			}
			for range 3 {
				_, err := f.Solve(ctx, &gateway.SolveRequest{
					Frontend: "gateway.v0", FrontendOpt: imageOpts("quitter"), AllowResultReturn: true, AllowResultArrayRef: true,
					FrontendInputs: map[string]*pb.Definition{"image": text},
				})
				if status.Code(err) == codes.OK {
					return errors.New("the inner one had a result")
				}
			}
			if err := w.together(ctx, 10); err != nil {
				return err
			}
			return f.give(ctx, text)
		},
		"quitter": func(ctx context.Context, f *inContainer) error {
			w, err := newWanting(ctx, f, large)
			if err != nil {
				return err
			}
			for range 10 {
				if _, err := w.ask(ctx); err != nil {
					return err
				}
			}
			time.Sleep(100 * time.Millisecond) // for answers to be begun, mostly
			return errors.New("it quits")
		},
	}
	g = serveFrontends(t, programs)
	for mode, want := range map[string]string{"reader": "", "late": "", "deaf": "heard nothing", "deaf and fickle": "heard nothing", "fickle": "", "outer": ""} {
		t.Run(mode, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			if err := g.runFrontend(ctx, t, mode); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("got %v, want %q", err, want)
			}
		})
	}
}

// hearNothing is a frontend that asks for large files and does not even read from its
// connection; one that is fickle cancels each call.
func hearNothing(ctx context.Context, f *inContainer, large *pb.Definition, other func(context.Context) func() error, fickle bool) error {
	conn := newDeaf(f.raw)
	f.raw = conn // it is not connected yet
	w, err := newWanting(ctx, f, large)
	if err != nil {
		return err
	}
	before := heap()
	close(conn.shut)
	asking, end := context.WithCancel(ctx)
	defer end()
	for range 60 {
		go func() {
			for range 4 {
				one, cancel := context.WithCancel(asking)
				defer cancel()
				if _, err := w.ask(one); err != nil || !fickle {
					<-asking.Done()
					return
				}
				time.Sleep(10 * time.Millisecond) // for the answer to be made, mostly
				cancel()
			}
		}()
	}
	if err := bounded(before, other(ctx)); err != nil {
		return err
	}
	return errors.New("heard nothing")
}
