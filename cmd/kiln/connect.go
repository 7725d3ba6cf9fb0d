package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

const (
	// startTimeout is how long a daemon may take to answer after its start.
	startTimeout = 60 * time.Second
	// ownIdle is when a daemon that was started in the background leaves.
	ownIdle = 30 * time.Minute
	// answerTimeout is how long a daemon that is there may take to answer.
	answerTimeout = 20 * time.Second
	// logTail is how much of the log of a daemon that died is shown, bytes.
	logTail = 4 << 10
)

// connect returns a client of the daemon that the user means; if that is the own
// one and it does not answer, it is started.
func connect(ctx context.Context, e *env, cmd *cli.Command) (*client.Client, error) {
	address, err := daemonAddress(ctx, e, cmd)
	if err != nil {
		return nil, err
	}
	opt := client.Options{OnClose: nameSpan(ctx, cmd.FullName())}
	if cmd.Root().String("tlsdir") != "" {
		files, err := tlsFiles(cmd, address)
		if err == nil {
			opt.TLS, err = client.TLSConfig(files)
		}
		if err != nil {
			return nil, usagef(cmd.Root(), "--tlsdir %s: %v", cmd.Root().String("tlsdir"), err)
		}
	}
	return reach(ctx, address, opt)
}

// daemonAddress is the address of the daemon that the user means. If that is the own
// one, it runs.
func daemonAddress(ctx context.Context, e *env, cmd *cli.Command) (string, error) {
	address := cmd.Root().String("host")
	if address == "" {
		address = client.AddressFromEnv(e.getenv)
	}
	if address != "" {
		return address, nil
	}
	p, err := ownPlace(e.getenv, e.uid)
	if err != nil {
		return "", fmt.Errorf("%w: %w", client.ErrUnreachable, err)
	}
	s := starter{place: p, command: daemonProcess, notice: e.stderr, version: client.Version{Version: "v" + version, Revision: revision()}}
	if v, ok := s.answers(ctx); ok {
		return p.address(), s.renew(ctx, v)
	}
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	return p.address(), s.start(ctx)
}

// reach returns a client of a daemon that answers.
func reach(ctx context.Context, address string, opt client.Options) (*client.Client, error) {
	c, err := client.New(address, opt)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", client.ErrUnreachable, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout,
		fmt.Errorf("%w at %s within %v", client.ErrUnreachable, address, answerTimeout))
	defer cancel()
	if err := c.Ping(ctx); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// starter starts a user's own daemon.
type starter struct {
	place
	command func(place) (*exec.Cmd, error)
	notice  io.Writer
	version client.Version // of the daemons that it starts
}

// leaveTimeout is how long a daemon may take to leave for another one.
const leaveTimeout = 20 * time.Second

// renew starts a daemon of this program's version in place of one of another
// version. If that is at work, or was started to stay, it goes on.
func (s starter) renew(ctx context.Context, old client.Version) error {
	if old.Version == s.version.Version && old.Revision == s.version.Revision {
		return nil
	}
	if !s.dismiss(ctx, old) {
		fmt.Fprintf(s.notice, "kiln: warning: the daemon that answers is of another version (%s; this is %s) and stays, "+
			"since it is at work or was not started by kiln itself: if things are amiss, restart it\n", shownVersion(old), shownVersion(s.version))
		return nil
	}
	fmt.Fprintf(s.notice, "kiln: the daemon was idle and of another version (%s; this is %s), and has ended\n", shownVersion(old), shownVersion(s.version))
	return s.start(ctx)
}

// dismiss has a daemon leave, and tells whether it has.
func (s starter) dismiss(ctx context.Context, old client.Version) bool {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	c, err := client.New(s.address(), client.Options{})
	if err != nil {
		return false
	}
	leaving, err := c.Leave(ctx, old)
	if err = errors.Join(err, c.Close()); err != nil || !leaving {
		return false // or so old that it cannot be asked
	}
	for {
		v, ok := s.answers(ctx)
		if !ok || v != old {
			return ctx.Err() == nil
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// shownVersion is a version as people are told of it.
func shownVersion(v client.Version) string {
	return strings.TrimSpace(v.Version + " " + v.Revision)
}

// daemonProcess is the command of a daemon in the background.
func daemonProcess(p place) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the kiln program: %w", err)
	}
	// Steps may use the machine's network if their build says so (--network host):
	// who may ask this daemon is who started it, and has that network anyhow.
	return exec.Command(self, "daemon", "--root", p.root, "--addr", p.address(), "--idle-timeout", ownIdle.String(),
		"--allow-insecure-entitlement", "network.host"), nil
}

// start starts the daemon and waits until it answers. Of several that try at
// once, one does it.
func (s starter) start(ctx context.Context) (err error) {
	for _, dir := range []string{s.root, filepath.Dir(s.socket)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("%w: make folder for the daemon: %w: set KILN_ROOT to a folder that is yours", client.ErrUnreachable, err)
		}
	}
	unlock, err := lockFile(ctx, s.lock)
	if err != nil {
		return fmt.Errorf("%w: wait for another start of the daemon: %w", client.ErrUnreachable, err)
	}
	defer func() { err = errors.Join(err, unlock()) }()
	if _, ok := s.answers(ctx); ok {
		return nil // the other start did it
	}
	cmd, err := s.command(s.place)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(s.log, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("%w: make the daemon's log: %w", client.ErrUnreachable, err)
	}
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	err = errors.Join(err, log.Close())
	if err != nil {
		return fmt.Errorf("%w: start the daemon: %w", client.ErrUnreachable, err)
	}
	fmt.Fprintf(s.notice, "kiln: started a daemon (state in %s)\n", s.root)
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	return s.await(ctx, died)
}

// await waits for a daemon to answer, or to die.
func (s starter) await(ctx context.Context, died <-chan error) error {
	deadline := time.NewTimer(startTimeout)
	defer deadline.Stop()
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-died:
			return fmt.Errorf("%w: the daemon that was started has ended (%s)%s", client.ErrUnreachable, ending(err), s.logEnd())
		case <-deadline.C:
			return fmt.Errorf("%w: the daemon that was started does not answer after %v%s", client.ErrUnreachable, startTimeout, s.logEnd())
		case <-time.After(pause):
			if _, ok := s.answers(ctx); ok {
				return nil
			}
		}
	}
}

func ending(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

// answers tells whether the daemon answers, and what it is.
func (s starter) answers(ctx context.Context) (v client.Version, ok bool) {
	if _, err := os.Stat(s.socket); err != nil {
		return v, false
	}
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	c, err := reach(ctx, s.address(), client.Options{})
	if err != nil {
		return v, false
	}
	v, _ = c.Info(ctx) // a very old one cannot tell
	return v, c.Close() == nil
}

// logEnd is the end of the daemon's log, as a part of an error.
func (s starter) logEnd() string {
	f, err := os.Open(s.log)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > logTail {
		if _, err := f.Seek(-logTail, io.SeekEnd); err != nil {
			return ""
		}
	}
	tail, err := io.ReadAll(io.LimitReader(f, logTail))
	if tail = bytes.TrimSpace(tail); err != nil || len(tail) == 0 {
		return "; its log, " + s.log + ", is empty"
	}
	return "; the end of its log, " + s.log + ", is:\n   " + strings.ReplaceAll(string(tail), "\n", "\n   ")
}

// lockFile takes an exclusive lock on a file. The lock goes with the process, so
// that none is ever left behind.
func lockFile(ctx context.Context, name string) (unlock func() error, err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f.Close, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		case <-time.After(10 * time.Millisecond):
		}
	}
}
