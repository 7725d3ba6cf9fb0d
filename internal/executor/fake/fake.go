// Package fake runs shell scripts without a container: an executor for tests
// and machines where none can be had.
//
// It interprets sh itself, within this process, and has a handful of small
// programs, see programs.go. "/" is the root file system of the run, with its
// bind mounts; nothing outside is read or written, and no program of the
// machine is ever run. A program that exists only as a file in the root file
// system can not be run unless it is a script for sh.
//
// It passes the common part of the executors' suite. It is no sandbox against
// a hostile script's use of memory or time, has no users, networks, limits or
// terminals, and does not write /etc/hosts.
package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"

	"github.com/kiln-build/kiln/internal/executor"
)

// Executor interprets scripts. Its zero value is ready.
type Executor struct {
	mu      sync.Mutex
	running map[string]bool
}

var _ executor.Executor = (*Executor)(nil)

// New gives an executor.
func New() *Executor { return &Executor{} }

// container is a script that runs in goroutines of this process.
type container struct {
	view *view
	kill context.CancelCauseFunc
	life context.Context // ends when the first process ends or is killed
	done chan struct{}   // closed when nothing of it runs any more
	err  error           // read after done

	mu     sync.Mutex
	execs  sync.WaitGroup
	closed bool
}

// errSignal says that a signal ended a process.
type errSignal int

func (s errSignal) Error() string { return fmt.Sprintf("killed by signal %d", int(s)) }

// Start starts a script.
func (e *Executor) Start(ctx context.Context, spec executor.Spec, stdio executor.IO) (executor.Container, error) {
	if err := check(spec); err != nil {
		return nil, fmt.Errorf("start container: %w", err)
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("start container: %w", context.Cause(ctx))
	}
	if err := e.add(spec.ID); err != nil {
		return nil, err
	}
	v, err := openView(spec)
	if err == nil {
		err = v.mkdirAll(spec.Process.Cwd)
	}
	if err != nil {
		e.remove(spec.ID)
		return nil, fmt.Errorf("start container: %w", err)
	}
	own, kill := context.WithCancelCause(ctx)
	c := &container{view: v, kill: kill, life: own, done: make(chan struct{})}
	go func() {
		defer close(c.done)
		c.err = run(own, v, spec.Process, stdio)
		kill(errors.New("the container has ended")) // ends what it left running
		c.mu.Lock()
		c.closed = true
		c.mu.Unlock()
		c.execs.Wait()
		v.close()
		e.remove(spec.ID)
	}()
	return c, nil
}

func (e *Executor) add(id string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running[id] {
		return fmt.Errorf("start container: identifier %q is in use", id)
	}
	if e.running == nil {
		e.running = map[string]bool{}
	}
	e.running[id] = true
	return nil
}

func (e *Executor) remove(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, id)
}

func check(s executor.Spec) error {
	if s.ID == "" || strings.Trim(s.ID, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return fmt.Errorf("identifier %q: want a-z and 0-9", s.ID)
	}
	if s.Network < executor.NetworkSandbox || s.Network > executor.NetworkNone {
		return fmt.Errorf("network mode %d: want 0 (sandbox), 1 (host) or 2 (none)", s.Network)
	}
	return checkProcess(s.Process)
}

func checkProcess(p executor.Process) error {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return errors.New("process without a program to run")
	}
	if !path.IsAbs(p.Cwd) {
		return fmt.Errorf("working directory %q: want an absolute path", p.Cwd)
	}
	return nil
}

// Wait waits for the script to end.
func (c *container) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// task is a further script.
type task struct {
	kill context.CancelCauseFunc
	done chan struct{}
	err  error // read after done
}

// Exec runs a further script on the same files.
func (c *container) Exec(ctx context.Context, p executor.Process, stdio executor.IO) (executor.Task, error) {
	if err := checkProcess(p); err != nil {
		return nil, fmt.Errorf("run in container: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("run in container: it has ended")
	}
	own, kill := context.WithCancelCause(ctx)
	t := &task{kill: kill, done: make(chan struct{})}
	forget := context.AfterFunc(c.life, func() { kill(errSignal(syscall.SIGKILL)) })
	c.execs.Go(func() {
		defer close(t.done)
		t.err = run(own, c.view, p, stdio)
		forget()
		kill(nil)
	})
	return t, nil
}

// Wait waits for the script to end.
func (t *task) Wait(ctx context.Context) error {
	select {
	case <-t.done:
		return t.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Signal ends the script, as a signal without a handler does.
func (t *task) Signal(_ context.Context, sig int) error {
	if sig > 0 {
		t.kill(errSignal(sig))
	}
	return nil
}

// Resize does nothing: there is no terminal.
func (t *task) Resize(context.Context, uint32, uint32) error { return nil }

// Signal ends the script, as a signal without a handler does.
func (c *container) Signal(_ context.Context, sig int) error {
	if sig > 0 {
		c.kill(errSignal(sig))
	}
	return nil
}

// Resize does nothing: there is no terminal.
func (c *container) Resize(context.Context, uint32, uint32) error { return nil }

// Close ends the script and waits for it.
func (c *container) Close() error {
	c.kill(errors.New("closed before its end"))
	<-c.done
	return nil
}

// run interprets one process to its end.
func run(ctx context.Context, v *view, p executor.Process, stdio executor.IO) error {
	if stdio.Stdin != nil {
		defer stdio.Stdin.Close()
	}
	s := &shell{view: v, process: p}
	script, args, err := s.script(p.Args)
	if err != nil {
		return &executor.StartError{Exit: &executor.ExitError{Code: 1}, Reason: err.Error()}
	}
	stdin, stopInput, err := inputFile(stdio.Stdin)
	if err != nil {
		return fmt.Errorf("run container: %w", err)
	}
	defer stopInput()
	runner, err := s.runner(stdin, stdio, args)
	if err != nil {
		return fmt.Errorf("run container: %w", err)
	}
	inner, stop := context.WithCancelCause(ctx)
	go func() { // a read from a client that is silent ends with the run
		<-inner.Done()
		stopInput()
	}()
	err = runner.Run(inner, script)
	stop(nil)
	s.background.Wait()
	return outcome(ctx, err)
}

func outcome(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		var sig errSignal
		if errors.As(context.Cause(ctx), &sig) {
			return &executor.ExitError{Code: 128 + int(sig)}
		}
		return fmt.Errorf("run container: %w", context.Cause(ctx))
	}
	if err == nil {
		return nil
	}
	var code interp.ExitStatus
	if errors.As(err, &code) {
		if code == 0 {
			return nil
		}
		return &executor.ExitError{Code: int(code)}
	}
	return fmt.Errorf("run container: %w", err)
}

// inputFile gives the interpreter a file to read: it can not give up reading
// anything else. stop ends the reading.
func inputFile(stdin io.Reader) (file *os.File, stop func(), err error) {
	if stdin == nil {
		file, err = os.Open(os.DevNull)
		if err != nil {
			return nil, nil, err
		}
		return file, sync.OnceFunc(func() { file.Close() }), nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	go func() {
		_, _ = io.Copy(w, stdin) // ends when nobody reads any more
		w.Close()
	}()
	return r, sync.OnceFunc(func() { r.Close() }), nil
}

// shell interprets the scripts of one process.
type shell struct {
	view       *view
	process    executor.Process
	background sync.WaitGroup // programs that run
}

// runner makes an interpreter that sees only the view.
func (s *shell) runner(stdin *os.File, stdio executor.IO, args []string) (*interp.Runner, error) {
	env := s.process.Env
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		env = append(slices.Clone(env), "HOME=/root")
	}
	stdout, stderr := stdio.Stdout, stdio.Stderr
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	return interp.New(
		interp.Env(expand.ListEnviron(env...)),
		func(r *interp.Runner) error { // interp.Dir would look for it on the machine
			r.Dir = path.Clean(s.process.Cwd)
			return nil
		},
		interp.Params(append([]string{"--"}, args...)...),
		interp.StdIO(stdin, &lockedWriter{w: stdout}, &lockedWriter{w: stderr}),
		interp.CallHandler(s.call),
		interp.ExecHandlers(func(interp.ExecHandlerFunc) interp.ExecHandlerFunc { return s.exec }),
		interp.OpenHandler(s.open),
		interp.StatHandler(s.stat),
		interp.ReadDirHandler2(s.readDir),
		interp.AccessHandler(s.access),
	)
}

// script gives what a command line means: sh's own arguments, or a command.
func (s *shell) script(args []string) (*syntax.File, []string, error) {
	name := path.Base(args[0])
	if name == "busybox" && len(args) > 1 {
		args, name = args[1:], path.Base(args[1])
	}
	if isShell(name) {
		return s.shellScript(args[1:])
	}
	if strings.Contains(args[0], "/") {
		if text, ok := s.shebang(path.Join(s.process.Cwd, args[0])); ok {
			return parse(text, args[1:])
		}
	}
	if _, known := programs()[name]; !known && !interp.IsBuiltin(name) {
		return nil, nil, fmt.Errorf("%q: no such program here", args[0])
	}
	words := []string{name}
	for _, a := range args[1:] {
		quoted, err := syntax.Quote(a, syntax.LangPOSIX)
		if err != nil {
			return nil, nil, fmt.Errorf("argument %q: %w", a, err)
		}
		words = append(words, quoted)
	}
	return parse(strings.Join(words, " "), nil)
}

func isShell(name string) bool {
	return name == "sh" || name == "ash" || name == "bash" || name == "dash"
}

// shellScript reads sh's arguments: options, then -c and a script, or a file.
func (s *shell) shellScript(args []string) (*syntax.File, []string, error) {
	set, command := "", false
	for len(args) > 0 && len(args[0]) > 1 && args[0][0] == '-' {
		for _, flag := range args[0][1:] {
			switch flag {
			case 'c':
				command = true
			case 'e', 'u', 'x', 'f':
				set += string(flag)
			case 'o':
				if len(args) < 2 || args[1] != "pipefail" {
					return nil, nil, errors.New("sh: -o: want pipefail")
				}
				args = args[1:]
				set += "o pipefail"
			default:
				return nil, nil, fmt.Errorf("sh: no option -%c here", flag)
			}
		}
		args = args[1:]
	}
	prefix := ""
	if set != "" {
		prefix = "set -" + set + "; "
	}
	switch {
	case len(args) == 0:
		return nil, nil, errors.New("sh: want -c and a script, or a file")
	case command:
		return parse(prefix+args[0], args[min(len(args), 2):])
	}
	text, err := s.view.readFile(path.Join(s.process.Cwd, args[0]))
	if err != nil {
		return nil, nil, err
	}
	return parse(prefix+string(text), args[1:])
}

// shebang reads a file that says that sh runs it.
func (s *shell) shebang(name string) (string, bool) {
	text, err := s.view.readFile(name)
	if err != nil {
		return "", false
	}
	first, _, _ := strings.Cut(string(text), "\n")
	line, ok := strings.CutPrefix(first, "#!")
	fields := strings.Fields(line)
	return string(text), ok && len(fields) > 0 && isShell(path.Base(fields[len(fields)-1]))
}

func parse(text string, args []string) (*syntax.File, []string, error) {
	file, err := syntax.NewParser(syntax.Variant(syntax.LangPOSIX)).Parse(strings.NewReader(text), "sh")
	if err != nil {
		return nil, nil, fmt.Errorf("read script: %w", err)
	}
	return file, args, nil
}

// lockedWriter lets background commands write too.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
