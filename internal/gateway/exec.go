package gateway

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/llb"
)

// unknownExit is the exit code of a process that ended without one: it was
// never started, or was killed because nobody wanted it any more.
const unknownExit = 255

// execStream carries the processes of one client (BuildKit's
// frontend/gateway/pb/gateway.proto). What happens to a process is told in this
// order: Started, what it writes, the end of each file, Exit, Done.
type execStream struct {
	stream grpc.BidiStreamingServer[gateway.ExecMessage, gateway.ExecMessage]
	run    *Phase
	host   Host
	ctx    context.Context // ends with the stream and with the frontend's part
	procs  map[string]*execProcess
	work   sync.WaitGroup
	out    chan *gateway.ExecMessage // to the client
}

// ExecProcess runs processes in containers until the client closes the stream
// and they have ended. Where the stream breaks, its processes are killed.
func (s *Service) ExecProcess(stream grpc.BidiStreamingServer[gateway.ExecMessage, gateway.ExecMessage]) error {
	run, _, err := s.running(stream.Context())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	defer context.AfterFunc(run.ctx, func() { cancel(context.Cause(run.ctx)) })()
	x := &execStream{stream: stream, run: run, host: s.host, ctx: ctx, procs: map[string]*execProcess{}, out: make(chan *gateway.ExecMessage)}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		if err := x.sendAll(); err != nil {
			cancel(err)
		}
	}()
	if err = x.serve(); err != nil {
		cancel(err)
	}
	for _, p := range x.procs {
		p.stdin.end()
	}
	x.work.Wait()
	close(x.out)
	select {
	case <-sent:
	case <-ctx.Done(): // the client may not read; the end of the call frees the sender
	}
	return err
}

// sendAll sends what there is to tell. A client that does not read holds it
// up, and nothing but it.
func (x *execStream) sendAll() error {
	for m := range x.out {
		if err := x.stream.Send(m); err != nil {
			return err
		}
	}
	return nil
}

// serve takes messages until there are no more. Those who wait in Recv when it
// returns are freed by the end of the call.
func (x *execStream) serve() error {
	type received struct {
		m   *gateway.ExecMessage
		err error
	}
	msgs := make(chan received)
	go func() {
		for {
			m, err := x.stream.Recv()
			select {
			case msgs <- received{m, err}:
			case <-x.ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		select {
		case r := <-msgs:
			if errors.Is(r.err, io.EOF) {
				return nil
			}
			if r.err == nil {
				r.err = x.handle(r.m)
			}
			if r.err != nil {
				return r.err
			}
		case <-x.ctx.Done():
			return context.Cause(x.ctx)
		}
	}
}

// handle acts on one message. An error ends the stream.
func (x *execStream) handle(m *gateway.ExecMessage) error {
	if m.ProcessID == "" {
		return status.Error(codes.InvalidArgument, "ProcessID required")
	}
	p := x.procs[m.ProcessID]
	if init := m.GetInit(); init != nil {
		if p != nil {
			return status.Errorf(codes.AlreadyExists, "Process %s already exists", m.ProcessID)
		}
		return x.start(m.ProcessID, init)
	}
	if p == nil {
		return status.Errorf(codes.NotFound, "IO for process %q not found", m.ProcessID)
	}
	switch in := m.Input.(type) {
	case *gateway.ExecMessage_File:
		return p.write(x.ctx, in.File)
	case *gateway.ExecMessage_Resize:
		p.resize(x.ctx, in.Resize.GetRows(), in.Resize.GetCols())
	case *gateway.ExecMessage_Signal:
		number, ok := signalNumber(in.Signal.GetName())
		if !ok {
			return status.Errorf(codes.InvalidArgument, "Unknown signal %s", in.Signal.GetName())
		}
		p.signal(x.ctx, number)
	default:
		return status.Errorf(codes.InvalidArgument, "a client sends no %T for process %q", m.Input, m.ProcessID)
	}
	return nil
}

// start starts a process. That it could not be started is told as its exit.
func (x *execStream) start(id string, init *gateway.InitMessage) error {
	if init.Meta == nil {
		return status.Error(codes.InvalidArgument, "process meta is required")
	}
	c, err := x.run.container(init.ContainerID, false)
	if err != nil {
		return err
	}
	ended, err := x.run.admitProcess()
	if err != nil {
		return err
	}
	want := build.Process{
		Args: init.Meta.Args, Env: init.Meta.Env, Cwd: init.Meta.Cwd, User: init.Meta.User,
		Tty: init.Tty, Security: llb.SecurityMode(init.Security),
	}
	for _, s := range init.Secretenv {
		want.SecretEnv = append(want.SecretEnv, llb.SecretEnv{ID: s.GetID(), Name: s.GetName(), Optional: s.GetOptional()})
	}
	p := &execProcess{x: x, id: id, fds: slices.Compact(slices.Sorted(slices.Values(init.Fds))), told: make(chan struct{})}
	x.procs[id] = p
	stdio := executor.IO{}
	if slices.Contains(p.fds, 0) {
		p.stdin = newFeed()
		stdio.Stdin = p.stdin
	}
	if slices.Contains(p.fds, 1) {
		stdio.Stdout = &execOutput{p, 1}
	}
	if slices.Contains(p.fds, 2) {
		stdio.Stderr = &execOutput{p, 2}
	}
	p.task, err = c.Start(x.ctx, want, stdio)
	started := err
	serr := x.send(id, &gateway.ExecMessage{Input: &gateway.ExecMessage_Started{Started: &gateway.StartedMessage{}}})
	if serr == nil {
		close(p.told)
	}
	x.work.Go(func() {
		defer ended()
		p.finish(started)
	})
	return serr
}

// send has a message sent, unless the stream has ended.
func (x *execStream) send(id string, m *gateway.ExecMessage) error {
	m.ProcessID = id
	select {
	case x.out <- m:
		return nil
	case <-x.ctx.Done():
		return context.Cause(x.ctx)
	}
}

// execProcess is one process of a stream.
type execProcess struct {
	x     *execStream
	id    string
	fds   []uint32      // the files that the client wants to have to do with
	told  chan struct{} // closed once the client was told of the start
	stdin *feed         // nil without file 0
	task  executor.Task // nil if it did not start
}

// finish waits for the end of the process and tells the client.
func (p *execProcess) finish(err error) {
	if p.task != nil {
		err = p.task.Wait(context.WithoutCancel(p.x.ctx)) // which ends it, too
	}
	p.stdin.end()
	for _, fd := range p.fds {
		if fd != 0 {
			p.send(&gateway.ExecMessage{Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: fd, EOF: true}}})
		}
	}
	p.send(&gateway.ExecMessage{Input: &gateway.ExecMessage_Exit{Exit: p.x.exitMessage(err)}})
	p.send(&gateway.ExecMessage{Input: &gateway.ExecMessage_Done{Done: &gateway.DoneMessage{}}})
}

// send tells the client something, if it is still there.
func (p *execProcess) send(m *gateway.ExecMessage) { _ = p.x.send(p.id, m) }

func (x *execStream) exitMessage(err error) *gateway.ExitMessage {
	if err == nil {
		return &gateway.ExitMessage{}
	}
	m := &gateway.ExitMessage{Code: unknownExit, Error: x.host.Status(err)}
	var exit *executor.ExitError
	if errors.As(err, &exit) {
		m.Code = uint32(exit.Code)
	}
	if m.Error.Code == int32(codes.OK) {
		m.Error = &rpcstatus.Status{Code: int32(codes.Unknown), Message: err.Error()}
	}
	return m
}

// write hands on what the client typed. What comes after the process's end is
// dropped: the client could not know.
func (p *execProcess) write(ctx context.Context, f *gateway.FdMessage) error {
	if f.GetFd() != 0 || p.stdin == nil {
		return status.Errorf(codes.OutOfRange, "fd %d unavailable to write", f.GetFd())
	}
	p.stdin.put(ctx, f.Data)
	if f.EOF {
		p.stdin.finish()
	}
	return nil
}

// resize and signal are of no use to a process that has ended, and say nothing
// then.
func (p *execProcess) resize(ctx context.Context, rows, cols uint32) {
	if p.task != nil {
		_ = p.task.Resize(ctx, rows, cols)
	}
}

func (p *execProcess) signal(ctx context.Context, number int) {
	if p.task != nil {
		_ = p.task.Signal(ctx, number)
	}
}

// execOutput sends what a process writes, once its start was told.
type execOutput struct {
	p  *execProcess
	fd uint32
}

// Write sends b.
func (o *execOutput) Write(b []byte) (int, error) {
	select {
	case <-o.p.told:
	case <-o.p.x.ctx.Done():
		return 0, context.Cause(o.p.x.ctx)
	}
	m := &gateway.ExecMessage{Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: o.fd, Data: slices.Clone(b)}}}
	if err := o.p.x.send(o.p.id, m); err != nil {
		return 0, err
	}
	return len(b), nil
}
