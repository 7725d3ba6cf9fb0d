package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kiln-build/kiln/internal/session"
)

// commandConn is a connection to what a program connects to: its standard input
// and output. Deadlines have no effect.
type commandConn struct {
	name   string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout io.ReadCloser
	stderr *tailBuffer
	once   sync.Once
	ended  chan struct{} // closed when the program has ended
}

// leaveTime is how long a program may take to end when its connection is closed.
const leaveTime = 3 * time.Second

// dialCommand starts a program that connects. It lives as long as the connection.
func dialCommand(argv []string) (net.Conn, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	c := &commandConn{name: argv[0], cmd: cmd, stderr: &tailBuffer{}, ended: make(chan struct{})}
	cmd.Stderr = c.stderr
	// An interrupt at the terminal is for the client, which ends it in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	var err error
	if c.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if c.stdout, err = cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("connect through %s: %w", argv[0], err)
	}
	return c, nil
}

func (c *commandConn) Read(p []byte) (int, error) {
	n, err := c.stdout.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	return 0, c.explain(err)
}

func (c *commandConn) Write(p []byte) (int, error) {
	n, err := c.stdin.Write(p)
	if err != nil {
		err = c.explain(err)
	}
	return n, err
}

// explain says why the program has ended, if it told.
func (c *commandConn) explain(err error) error {
	if text := c.stderr.text(); text != "" {
		return fmt.Errorf("connect through %s: %w: %s", c.name, err, text)
	}
	return err
}

// Close ends the program: at first by the end of its input.
func (c *commandConn) Close() error {
	c.once.Do(func() {
		_ = c.stdin.Close() // that it has ended already is no error
		go func() {
			_ = c.cmd.Wait()
			close(c.ended)
		}()
		select {
		case <-c.ended:
			return
		case <-time.After(leaveTime):
		}
		// Whatever it waits for, nobody else does.
		_ = c.cmd.Process.Kill()
		<-c.ended
	})
	return nil
}

func (c *commandConn) LocalAddr() net.Addr              { return commandAddr(c.name) }
func (c *commandConn) RemoteAddr() net.Addr             { return commandAddr(c.name) }
func (c *commandConn) SetDeadline(time.Time) error      { return nil }
func (c *commandConn) SetReadDeadline(time.Time) error  { return nil }
func (c *commandConn) SetWriteDeadline(time.Time) error { return nil }

// commandAddr is the address of both ends: the program's name.
type commandAddr string

func (commandAddr) Network() string  { return "command" }
func (a commandAddr) String() string { return string(a) }

// tailBuffer keeps the end of what is written.
type tailBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// tailSize is how much it keeps, bytes.
const tailSize = 4 << 10

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(p)
	if over := t.buf.Len() - tailSize; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

func (t *tailBuffer) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(t.buf.String())
}

// DialStdio connects in and out to the daemon at a unix socket, until either side
// ends; it is what the addresses of containers run on the other end.
func DialStdio(socket string, timeout time.Duration, in io.Reader, out io.Writer) (err error) {
	ctx := context.Background()
	if timeout > 0 {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	conn, err := session.DialUnix(ctx, socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	unix := conn.(*net.UnixConn)
	sent, received := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(unix, in)
		sent <- errors.Join(err, unix.CloseWrite())
	}()
	go func() {
		_, err := io.Copy(out, unix)
		received <- err
	}()
	select {
	case err = <-sent:
		if err != nil {
			return fmt.Errorf("copy standard input to the daemon: %w", err)
		}
		err = <-received
	case err = <-received:
		// A terminal's input never ends: it is not waited for.
	}
	if err != nil {
		return fmt.Errorf("copy the daemon's answers to standard output: %w", err)
	}
	return nil
}
