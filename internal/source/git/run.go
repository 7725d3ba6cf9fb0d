package git

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/source"
)

// Limits of what git may say. A list of references has about 70 bytes for each.
const (
	maxOutput = 64 << 20
	maxErrors = 64 << 10 // kept for messages; the log gets all
)

// killDelay is how long git may take to clean up when it is told to end.
const killDelay = 5 * time.Second

// remoteProtocols are the transports that a remote may be reached by.
const remoteProtocols = "http:https:ssh:git"

// runner runs git. Its directory is removed with it.
type runner struct {
	program string
	scratch string
	advice  bool
	// config is passed by the environment, which only its owner can read, and
	// not by arguments, which everybody can.
	config []setting
	header string // Authorization, or ""
	ssh    string // GIT_SSH_COMMAND
	env    []string
	closes []func()
}

// setting is a value of git's configuration.
type setting struct{ key, value string }

// baseConfig keeps what a repository says about itself from being done. Later
// settings win over earlier ones, and these over a repository's own.
func baseConfig(advice bool) []setting {
	return []setting{
		{"core.hooksPath", os.DevNull},
		{"core.fsmonitor", "false"},
		{"core.askPass", ""},
		{"core.attributesFile", os.DevNull},
		{"core.excludesFile", os.DevNull},
		{"core.autocrlf", "false"},
		{"credential.helper", ""},
		{"gc.auto", "0"}, // nothing goes on in the background
		{"maintenance.auto", "false"},
		{"init.defaultBranch", "master"},
		{"fetch.recurseSubmodules", "false"},
		{"submodule.fetchJobs", "1"},
		{"protocol.version", "2"},
		{"advice.detachedHead", strconv.FormatBool(advice)},
		// A server that sends less than a byte a second for so long is given up.
		{"http.lowSpeedLimit", "1"},
		{"http.lowSpeedTime", "120"},
	}
}

// command is one run of git.
type command struct {
	gitDir, workTree string
	protocols        string // "" for those of remotes
	stdin            []byte
	env              []string
	args             []string
}

// gitError is a run of git that failed.
type gitError struct {
	err    error
	stderr string
}

func (e *gitError) Error() string {
	return fmt.Sprintf("%v: git stderr:\n%s", e.err, source.WithoutLogins(e.stderr))
}
func (e *gitError) Unwrap() error { return e.err }

// says tells whether git's complaint has one of these in it.
func says(err error, texts ...string) bool {
	var e *gitError
	if !errors.As(err, &e) {
		return false
	}
	for _, text := range texts {
		if strings.Contains(e.stderr, text) {
			return true
		}
	}
	return false
}

func (r *runner) close() {
	for _, f := range r.closes {
		f()
	}
	_ = os.RemoveAll(r.scratch) // what stays is removed at the next start
}

// run runs git and returns its output. It ends, with all that it started, when
// ctx does.
func (r *runner) run(ctx context.Context, c command) ([]byte, error) {
	program := r.program
	if program == "" {
		program = "git"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("the daemon's machine has no program %q, which git sources need: install git there: %w", program, err)
	}
	var args []string
	if c.gitDir != "" {
		args = append(args, "--git-dir="+c.gitDir)
	}
	if c.workTree != "" {
		args = append(args, "--work-tree="+c.workTree)
	}
	log := &logFilter{to: progress.StepFrom(ctx).Log(2)}
	out, complaints := &capped{most: maxOutput}, &capped{most: maxErrors, cut: true}
	cmd := exec.Command(path, append(args, c.args...)...) //nolint:gosec // a program from the PATH; arguments from outside are checked
	cmd.Dir = r.scratch
	if c.workTree != "" {
		cmd.Dir = c.workTree
	}
	cmd.Env = r.environment(c)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(c.stdin), out, io.MultiWriter(complaints, log)
	// Whoever holds the pipes after git itself has ended is killed, not waited for.
	cmd.WaitDelay = killDelay
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	out.full = func() { cancel(fmt.Errorf("git said more than %d bytes", maxOutput)) }
	err = runGroup(ctx, cmd)
	log.flush()
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if err != nil {
		return nil, &gitError{err, complaints.kept.String()}
	}
	return out.kept.Bytes(), nil
}

func (r *runner) environment(c command) []string {
	protocols := c.protocols
	if protocols == "" {
		protocols = remoteProtocols
	}
	env := []string{
		"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=" + os.DevNull, "XDG_CONFIG_HOME=" + os.DevNull, "TMPDIR=" + r.scratch,
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_ATTR_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_ALLOW_PROTOCOL=" + protocols, "GIT_SSH_COMMAND=" + r.ssh, "GIT_NO_REPLACE_OBJECTS=1",
	}
	if r.advice {
		env = append(env, "GIT_ADVICE=1")
	} else {
		env = append(env, "GIT_ADVICE=0")
	}
	for _, name := range []string{
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
	} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	config := append(baseConfig(r.advice), r.config...)
	env = append(env, "GIT_CONFIG_COUNT="+strconv.Itoa(len(config)))
	for i, s := range config {
		n := strconv.Itoa(i)
		env = append(env, "GIT_CONFIG_KEY_"+n+"="+s.key, "GIT_CONFIG_VALUE_"+n+"="+s.value)
	}
	return append(append(env, r.env...), c.env...)
}

// text runs git and returns its output without the white space around it.
func (r *runner) text(ctx context.Context, c command) (string, error) {
	b, err := r.run(ctx, c)
	return strings.TrimSpace(string(b)), err
}

// runGroup runs a command, with a umask of 022, in a process group that is killed
// when ctx ends. The umask belongs to a thread of its own, which ends with the
// command; the kernel ends the command should the daemon be killed.
func runGroup(ctx context.Context, cmd *exec.Cmd) error {
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread is not to be used by others
		result <- runHere(ctx, cmd)
	}()
	return <-result
}

func runHere(ctx context.Context, cmd *exec.Cmd) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("give git a umask of its own: %w", err)
	}
	unix.Umask(0o022)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	group := -cmd.Process.Pid
	ended := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		_ = unix.Kill(group, unix.SIGTERM) // so that git removes its lock files
		select {
		case <-ended:
		case <-time.After(killDelay):
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-watched
	_ = unix.Kill(group, unix.SIGKILL) // what git left behind, if anything
	return err
}

// capped keeps the first bytes that are written to it.
type capped struct {
	kept bytes.Buffer // no embedding: its ReadFrom knows no limit
	most int
	cut  bool   // drop what is too much, silently
	full func() // called when there is too much, unless cut
}

func (c *capped) Write(p []byte) (int, error) {
	if room := c.most - c.kept.Len(); len(p) > room {
		if !c.cut {
			c.full()
			return 0, errors.New("too much output")
		}
		c.kept.Write(p[:room])
		return len(p), nil
	}
	return c.kept.Write(p)
}

// logFilter passes on whole lines, without passwords.
type logFilter struct {
	to   io.Writer
	line []byte
}

func (f *logFilter) Write(p []byte) (int, error) {
	f.line = append(f.line, p...)
	end := bytes.LastIndexAny(f.line, "\n\r") + 1
	if end == 0 && len(f.line) < maxErrors {
		return len(p), nil
	}
	if end == 0 {
		end = len(f.line)
	}
	_, err := io.WriteString(f.to, source.WithoutLogins(string(f.line[:end])))
	f.line = append(f.line[:0], f.line[end:]...)
	return len(p), err
}

func (f *logFilter) flush() {
	if len(f.line) > 0 {
		_, _ = io.WriteString(f.to, source.WithoutLogins(string(f.line))+"\n") // a log is worth no failure
	}
	f.line = nil
}
