package fake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"mvdan.cc/sh/v3/interp"
)

// call turns away the builtins that would look at the machine's files.
func (s *shell) call(_ context.Context, args []string) ([]string, error) {
	switch args[0] {
	case "pwd":
		return []string{"pwd"}, nil
	case "type", "which", "hash":
		return append([]string{"which"}, args[1:]...), nil
	case "command":
		if len(args) > 1 && (args[1] == "-v" || args[1] == "-V") {
			return append([]string{"which"}, args[2:]...), nil
		}
	case "source", ".":
		if len(args) > 1 && !strings.Contains(args[1], "/") {
			return append([]string{args[0], "./" + args[1]}, args[2:]...), nil
		}
	}
	return args, nil
}

// exec runs one of the programs, or a script of the root file system.
func (s *shell) exec(ctx context.Context, args []string) error {
	s.background.Add(1)
	defer s.background.Done()
	hc := interp.HandlerCtx(ctx)
	p := &program{
		ctx: ctx, shell: s, args: args, dir: hc.Dir,
		stdin: hc.Stdin, stdout: hc.Stdout, stderr: hc.Stderr,
		env: func(each func(name, value string)) { exported(hc, each) },
	}
	name := path.Base(args[0])
	if name == "busybox" && len(args) > 1 {
		p.args, name = args[1:], args[1]
	}
	if isShell(name) {
		return p.subshell(s.shellScript(p.args[1:]))
	}
	if strings.Contains(args[0], "/") {
		if text, ok := s.shebang(p.path(args[0])); ok {
			return p.subshell(parse(text, args[1:]))
		}
		if interp.IsBuiltin(name) {
			return hc.Builtin(ctx, append([]string{name}, args[1:]...))
		}
	}
	run, known := programs()[name]
	if !known {
		fmt.Fprintf(hc.Stderr, "sh: %s: not found\n", args[0])
		return interp.ExitStatus(127)
	}
	return run(p)
}

// file is an open file of the view, or a device.
type file struct {
	io.Reader
	io.Writer
	io.Closer
}

type nothing struct{}

func (nothing) Close() error { return nil }

// open opens a file for a redirection.
func (s *shell) open(ctx context.Context, name string, flag int, perm os.FileMode) (io.ReadWriteCloser, error) {
	hc := interp.HandlerCtx(ctx)
	if !path.IsAbs(name) {
		name = path.Join(hc.Dir, name)
	}
	switch path.Clean(name) {
	case "/dev/null":
		return file{bytes.NewReader(nil), io.Discard, nothing{}}, nil
	case "/dev/stdout":
		return file{bytes.NewReader(nil), hc.Stdout, nothing{}}, nil
	case "/dev/stderr":
		return file{bytes.NewReader(nil), hc.Stderr, nothing{}}, nil
	}
	f, err := s.view.openFile(name, flag, perm)
	if err != nil {
		return nil, pathError("open", name, err)
	}
	return f, nil
}

func (s *shell) stat(ctx context.Context, name string, follow bool) (fs.FileInfo, error) {
	if !path.IsAbs(name) {
		name = path.Join(interp.HandlerCtx(ctx).Dir, name)
	}
	info, err := s.view.stat(name, follow)
	if err != nil {
		return nil, pathError("stat", name, err)
	}
	return info, nil
}

func (s *shell) readDir(ctx context.Context, name string) ([]fs.DirEntry, error) {
	if !path.IsAbs(name) {
		name = path.Join(interp.HandlerCtx(ctx).Dir, name)
	}
	return s.view.readDir(name)
}

// access knows one user, root: it may all but run what is not to be run.
func (s *shell) access(_ context.Context, name string, mode interp.AccessMode) error {
	info, err := s.view.stat(name, true)
	if err != nil {
		return pathError("access", name, err)
	}
	if mode&interp.AccessExec != 0 && !info.IsDir() && info.Mode().Perm()&0o111 == 0 {
		return pathError("access", name, syscall.EACCES)
	}
	return nil
}

// pathError names a file as the script did.
func pathError(op, name string, err error) error {
	var inner *os.PathError
	if errors.As(err, &inner) {
		err = inner.Err
	}
	return &os.PathError{Op: op, Path: name, Err: err}
}

// exported calls each with the variables that programs get, in order.
func exported(hc interp.HandlerContext, each func(name, value string)) {
	var lines []string
	for name, v := range hc.Env.Each {
		if v.Exported && v.IsSet() {
			lines = append(lines, name+"="+v.String())
		}
	}
	slices.Sort(lines)
	last := ""
	for _, line := range slices.Backward(lines) {
		name, value, _ := strings.Cut(line, "=")
		if name != last {
			each(name, value)
		}
		last = name
	}
}
