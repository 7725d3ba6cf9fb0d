package oci

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/executor"
)

// stdio connects a runtime process to an [executor.IO]. It serves go-runc as
// its IO: Set is the only method that it calls on a run.
type stdio struct {
	io       executor.IO
	stdin    *os.File // the runtime's end
	feed     *os.File // our end of stdin
	terminal *os.File // our end of the terminal, nil without one
	theirs   *os.File // the runtime's end of the terminal
	copies   sync.WaitGroup
}

// newStdio makes the pipes, or with tty a terminal. The runtime's own handling
// of a terminal then runs between ours and the container's.
func newStdio(io executor.IO, tty bool) (*stdio, error) {
	s := &stdio{io: io}
	if tty {
		return s, s.openTerminal()
	}
	if io.Stdin == nil {
		return s, nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make stdin: %w", err)
	}
	s.stdin, s.feed = r, w
	return s, nil
}

func (s *stdio) openTerminal() error {
	ours, err := os.OpenFile("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make terminal: %w", err)
	}
	if err := unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		ours.Close()
		return fmt.Errorf("unlock terminal: %w", err)
	}
	// By handle: the path in /dev/pts is another terminal's in another mount of it.
	theirs, _, errno := unix.Syscall(unix.SYS_IOCTL, ours.Fd(), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		ours.Close()
		return fmt.Errorf("open terminal: %w", errno)
	}
	s.terminal, s.theirs = ours, os.NewFile(theirs, "terminal")
	return nil
}

// Set gives a command its files.
func (s *stdio) Set(cmd *exec.Cmd) {
	if s.terminal != nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = s.theirs, s.theirs, s.theirs
		return
	}
	if s.stdin != nil {
		cmd.Stdin = s.stdin
	}
	cmd.Stdout = io.Discard // with none, go-runc would gather the output itself
	if s.io.Stdout != nil {
		cmd.Stdout = s.io.Stdout
	}
	if s.io.Stderr != nil {
		cmd.Stderr = s.io.Stderr
	}
}

// started closes what is the runtime's now and copies what is ours.
func (s *stdio) started() {
	if s.terminal != nil {
		s.theirs.Close()
		s.copies.Go(func() {
			out := s.io.Stdout
			if out == nil {
				out = io.Discard
			}
			_, _ = io.Copy(out, s.terminal) // ends with EIO once nobody has the other end
		})
		if s.io.Stdin != nil {
			go func() { _, _ = io.Copy(s.terminal, s.io.Stdin) }()
		}
		return
	}
	if s.stdin != nil {
		s.stdin.Close()
		go func() {
			_, _ = io.Copy(s.feed, s.io.Stdin) // ends with EPIPE once nobody reads
			s.feed.Close()
		}()
	}
}

// ended waits for the rest of the output and ends the input, whose reader may
// still wait for a client.
func (s *stdio) ended() {
	if s.theirs != nil {
		s.theirs.Close()
	}
	s.copies.Wait()
	for _, f := range []*os.File{s.terminal, s.stdin, s.feed} {
		if f != nil {
			f.Close()
		}
	}
	if s.io.Stdin != nil {
		s.io.Stdin.Close()
	}
}

// resize sets the terminal's size.
func (s *stdio) resize(rows, cols uint32) error {
	if s.terminal == nil {
		return nil
	}
	size := &unix.Winsize{Row: uint16(min(rows, 0xffff)), Col: uint16(min(cols, 0xffff))}
	if err := unix.IoctlSetWinsize(int(s.terminal.Fd()), unix.TIOCSWINSZ, size); err != nil {
		return fmt.Errorf("resize terminal: %w", err)
	}
	return nil
}

// Close, Stdin, Stdout and Stderr are unused parts of go-runc's interface.
func (s *stdio) Close() error          { return nil }
func (s *stdio) Stdin() io.WriteCloser { return nil }
func (s *stdio) Stdout() io.ReadCloser { return nil }
func (s *stdio) Stderr() io.ReadCloser { return nil }
