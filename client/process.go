package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb/pb"
)

// ProcessRequest describes a process. The first one of a container is its init: when
// it ends, all others do.
type ProcessRequest struct {
	Args, Env []string
	SecretEnv []*pb.SecretEnv
	User, Cwd string
	TTY       bool
	// Stdin is read until it ends, or the process does; nil is empty.
	Stdin io.Reader
	// Stdout and Stderr take what it writes; nil drops it.
	Stdout, Stderr io.Writer
	Security       pb.SecurityMode
	// RemoveMountStubsRecursive removes what was made for mounts to stand on.
	RemoveMountStubsRecursive bool
}

// Process is a process of a container.
type Process struct {
	id     string
	mu     sync.Mutex // sends of stream
	stream grpc.BidiStreamingClient[gateway.ExecMessage, gateway.ExecMessage]
	cancel context.CancelFunc
	req    ProcessRequest
	done   chan struct{}
	err    error // once done
}

// unknownExit is the exit code of a process that could not be started, or whose end
// is not known.
const unknownExit = 255

// Start starts a process. It must be waited for; canceling ctx ends it.
func (c *Container) Start(ctx context.Context, r ProcessRequest) (*Process, error) {
	if len(r.SecretEnv) > 0 {
		if err := c.gateway.opts.Caps.need("gateway.exec.secretenv", "give secrets to processes as variables"); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.gateway.api.ExecProcess(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	p := &Process{id: c.id + ":" + randomID(), stream: stream, cancel: cancel, req: r, done: make(chan struct{})}
	if err := p.init(c.id); err != nil {
		cancel()
		return nil, err
	}
	if r.Stdin != nil {
		go p.feed()
	}
	go func() {
		p.err = p.follow()
		cancel()
		close(p.done)
	}()
	return p, nil
}

// init sends what the process is, and waits until it runs.
func (p *Process) init(container string) error {
	r := p.req
	init := &gateway.InitMessage{
		ContainerID: container, Tty: r.TTY, Security: r.Security, Secretenv: r.SecretEnv,
		Meta: &pb.Meta{Args: r.Args, Env: r.Env, Cwd: r.Cwd, User: r.User, RemoveMountStubsRecursive: r.RemoveMountStubsRecursive},
	}
	for fd, used := range []bool{r.Stdin != nil, r.Stdout != nil, r.Stderr != nil} {
		if used {
			init.Fds = append(init.Fds, uint32(fd))
		}
	}
	if err := p.send(&gateway.ExecMessage{Input: &gateway.ExecMessage_Init{Init: init}}); err != nil && !errors.Is(err, errEnded) {
		return err
	}
	m, err := p.stream.Recv()
	switch {
	case err != nil:
		return fmt.Errorf("start process: %w", streamError(err))
	case m.GetStarted() == nil:
		return fmt.Errorf("start process: the daemon answers with %T before it says that it runs", m.GetInput())
	}
	return nil
}

// streamError is an error of a stream as one of this package.
func streamError(err error) error {
	if st, ok := status.FromError(err); ok && st.Code() != codes.OK {
		return decodeError(st)
	}
	return err
}

// errEnded says that a process takes nothing any more.
var errEnded = errors.New("the process has ended")

func (p *Process) send(m *gateway.ExecMessage) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done: // the stream may not know yet
		return errEnded
	default:
	}
	m.ProcessID = p.id
	err := p.stream.Send(m)
	if errors.Is(err, io.EOF) {
		return errEnded // receiving tells why
	}
	return err
}

// feed sends standard input. It may outlive the process, as long as a read takes.
func (p *Process) feed() {
	buf := make([]byte, 32<<10)
	for {
		n, err := p.req.Stdin.Read(buf)
		if n > 0 && p.send(&gateway.ExecMessage{Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Data: buf[:n]}}}) != nil {
			return // the process has ended
		}
		if err != nil {
			// That nobody takes the end any more is no error.
			_ = p.send(&gateway.ExecMessage{Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{EOF: true}}})
			return
		}
	}
}

// follow takes what the process writes, and its end.
func (p *Process) follow() (exit error) {
	for {
		m, err := p.stream.Recv()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the daemon does not say how it ended")
			}
			return fmt.Errorf("wait for process: %w", streamError(err))
		}
		switch in := m.GetInput().(type) {
		case *gateway.ExecMessage_File:
			if err := p.output(in.File); err != nil {
				return err
			}
		case *gateway.ExecMessage_Exit:
			exit = exitError(in.Exit)
		case *gateway.ExecMessage_Done:
			return exit
		default:
			return fmt.Errorf("wait for process: unexpected message %T", in)
		}
	}
}

func (p *Process) output(m *gateway.FdMessage) error {
	w := p.req.Stdout
	if m.GetFd() == 2 {
		w = p.req.Stderr
	}
	if w == nil || len(m.GetData()) == 0 {
		return nil
	}
	_, err := w.Write(m.GetData())
	return err
}

func exitError(m *gateway.ExitMessage) error {
	if m.GetCode() == 0 {
		return nil
	}
	var err error
	if m.GetError() != nil {
		err = decodeError(status.FromProto(m.GetError()))
	}
	if m.GetCode() == unknownExit && err != nil {
		return err
	}
	return &ExitError{Code: int(m.GetCode()), Err: err}
}

// Wait waits for the end; the error is an [*ExitError] if the code is not 0.
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Resize sets the size of the terminal.
func (p *Process) Resize(rows, cols uint32) error {
	return p.send(&gateway.ExecMessage{Input: &gateway.ExecMessage_Resize{Resize: &gateway.ResizeMessage{Rows: rows, Cols: cols}}})
}

// Signal sends a signal.
func (p *Process) Signal(sig syscall.Signal) error {
	name := strings.TrimPrefix(unix.SignalName(sig), "SIG")
	if name == "" {
		return fmt.Errorf("unknown signal %v", sig)
	}
	return p.send(&gateway.ExecMessage{Input: &gateway.ExecMessage_Signal{Signal: &gateway.SignalMessage{Name: name}}})
}
