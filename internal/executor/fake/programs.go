package fake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mvdan.cc/sh/v3/interp"
	"mvdan.cc/sh/v3/syntax"

	"github.com/kiln-build/kiln/internal/executor"
)

// program is a running program.
type program struct {
	ctx            context.Context
	shell          *shell
	args           []string
	dir            string
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(each func(name, value string))
}

// programs are all that there are, by name.
func programs() map[string]func(*program) error {
	return map[string]func(*program) error{
		"basename": (*program).basename,
		"cat":      (*program).cat,
		"chmod":    (*program).chmod,
		"chown":    (*program).chown,
		"cp":       (*program).cp,
		"date":     (*program).date,
		"dirname":  (*program).dirname,
		"env":      (*program).printEnv,
		"grep":     (*program).grep,
		"head":     (*program).head,
		"hostname": (*program).hostname,
		"id":       (*program).id,
		"ln":       (*program).ln,
		"ls":       (*program).ls,
		"mkdir":    (*program).mkdir,
		"mv":       (*program).mv,
		"readlink": (*program).readlink,
		"rm":       (*program).rm,
		"rmdir":    (*program).rmdir,
		"seq":      (*program).seq,
		"sleep":    (*program).sleep,
		"sort":     (*program).sort,
		"tail":     (*program).tail,
		"tee":      (*program).tee,
		"touch":    (*program).touch,
		"true":     func(*program) error { return nil },
		"false":    func(*program) error { return interp.ExitStatus(1) },
		"uname":    (*program).uname,
		"wc":       (*program).wc,
		"which":    (*program).which,
	}
}

func (p *program) path(name string) string {
	if path.IsAbs(name) {
		return name
	}
	return p.dir + "/" + name // not cleaned: "link/.." is not "."
}

// fail prints why the program failed and gives its code.
func (p *program) fail(format string, args ...any) error {
	fmt.Fprintf(p.stderr, "%s: %s\n", path.Base(p.args[0]), fmt.Sprintf(format, args...))
	return interp.ExitStatus(1)
}

// failFile is fail for a file, with the name that the script used.
func (p *program) failFile(name string, err error) error {
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	return p.fail("%s: %v", name, err)
}

// flags takes the options that a program has; each is one letter. Those
// followed by ":" have a value.
func (p *program) flags(known string) (set map[byte]string, rest []string, err error) {
	set, rest = map[byte]string{}, p.args[1:]
	for len(rest) > 0 && len(rest[0]) > 1 && rest[0][0] == '-' {
		word := rest[0][1:]
		rest = rest[1:]
		if word == "-" {
			break
		}
		for i := 0; i < len(word); i++ {
			at := strings.IndexByte(known, word[i])
			if at < 0 || word[i] == ':' {
				return nil, nil, p.fail("no option -%c here", word[i])
			}
			if at+1 == len(known) || known[at+1] != ':' {
				set[word[i]] = ""
				continue
			}
			value := word[i+1:]
			if value == "" && len(rest) > 0 {
				value, rest = rest[0], rest[1:]
			}
			set[word[i]] = value
			break
		}
	}
	return set, rest, nil
}

// subshell runs a script as a process of its own.
func (p *program) subshell(script *syntax.File, args []string, err error) error {
	if err != nil {
		return p.fail("%v", err)
	}
	var env []string
	p.env(func(name, value string) { env = append(env, name+"="+value) })
	s := &shell{view: p.shell.view, process: executor.Process{Env: env, Cwd: p.dir}}
	stdin, ok := p.stdin.(*os.File)
	if !ok {
		var stop func()
		if stdin, stop, err = inputFile(p.stdin); err != nil {
			return p.fail("%v", err)
		}
		defer stop()
	}
	runner, err := s.runner(stdin, executor.IO{Stdout: p.stdout, Stderr: p.stderr}, args)
	if err != nil {
		return p.fail("%v", err)
	}
	err = runner.Run(p.ctx, script)
	s.background.Wait()
	return err
}

func (p *program) sleep() error {
	_, args, err := p.flags("")
	if err != nil {
		return err
	}
	var total time.Duration
	for _, a := range args {
		if strings.Trim(a, "0123456789.") == "" {
			a += "s"
		}
		d, err := time.ParseDuration(a)
		if err != nil {
			return p.fail("%q: want a number of seconds", a)
		}
		total += d
	}
	timer := time.NewTimer(total)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

func (p *program) seq() error {
	_, args, err := p.flags("")
	if err != nil {
		return err
	}
	first, last := 1, 0
	switch len(args) {
	case 1:
		last, err = strconv.Atoi(args[0])
	case 2:
		if first, err = strconv.Atoi(args[0]); err == nil {
			last, err = strconv.Atoi(args[1])
		}
	default:
		return p.fail("want one number or two")
	}
	if err != nil {
		return p.fail("%v", err)
	}
	for n := first; n <= last && p.ctx.Err() == nil; n++ {
		fmt.Fprintln(p.stdout, n)
	}
	return nil
}

func (p *program) id() error {
	set, _, err := p.flags("ugGn")
	if err != nil {
		return err
	}
	who := p.shell.process
	switch {
	case has(set, 'u'):
		fmt.Fprintln(p.stdout, who.UID)
	case has(set, 'g'):
		fmt.Fprintln(p.stdout, who.GID)
	case has(set, 'G'):
		fmt.Fprintln(p.stdout, strings.Trim(fmt.Sprint(append([]uint32{who.GID}, who.Groups...)), "[]"))
	default:
		fmt.Fprintf(p.stdout, "uid=%d gid=%d\n", who.UID, who.GID)
	}
	return nil
}

func has(set map[byte]string, flag byte) bool {
	_, ok := set[flag]
	return ok
}

func (p *program) printEnv() error {
	if len(p.args) > 1 {
		return p.fail("want no arguments here")
	}
	var lines []string
	p.env(func(name, value string) { lines = append(lines, name+"="+value) })
	slices.Sort(lines)
	for _, line := range lines {
		fmt.Fprintln(p.stdout, line)
	}
	return nil
}

func (p *program) uname() error {
	set, _, err := p.flags("asmrn")
	if err != nil {
		return err
	}
	var name syscall.Utsname
	if err := syscall.Uname(&name); err != nil {
		return p.fail("%v", err)
	}
	var out []string
	for _, part := range []struct {
		flag byte
		text string
	}{{'s', "Linux"}, {'n', "fake"}, {'r', text(name.Release[:])}, {'m', text(name.Machine[:])}} {
		if has(set, part.flag) || has(set, 'a') || len(set) == 0 && part.flag == 's' {
			out = append(out, part.text)
		}
	}
	fmt.Fprintln(p.stdout, strings.Join(out, " "))
	return nil
}

// text reads a C string, whose characters are signed on some machines.
func text[C int8 | uint8](chars []C) string {
	var out []byte
	for _, c := range chars {
		if c == 0 {
			break
		}
		out = append(out, byte(c))
	}
	return string(out)
}

func (p *program) hostname() error {
	fmt.Fprintln(p.stdout, "fake")
	return nil
}

func (p *program) date() error {
	set, args, err := p.flags("u")
	if err != nil {
		return err
	}
	now := time.Now()
	if has(set, 'u') {
		now = now.UTC()
	}
	switch {
	case len(args) == 0:
		fmt.Fprintln(p.stdout, now.Format(time.UnixDate))
	case args[0] == "+%s":
		fmt.Fprintln(p.stdout, now.Unix())
	case args[0] == "+%s%N":
		fmt.Fprintln(p.stdout, now.UnixNano())
	default:
		return p.fail("%q: want +%%s or +%%s%%N here", args[0])
	}
	return nil
}

func (p *program) basename() error {
	if len(p.args) < 2 {
		return p.fail("want a path")
	}
	name := path.Base(p.args[1])
	if len(p.args) > 2 {
		name = strings.TrimSuffix(name, p.args[2])
	}
	fmt.Fprintln(p.stdout, name)
	return nil
}

func (p *program) dirname() error {
	if len(p.args) < 2 {
		return p.fail("want a path")
	}
	fmt.Fprintln(p.stdout, path.Dir(p.args[1]))
	return nil
}

// which stands for type and command -v too.
func (p *program) which() error {
	for _, name := range p.args[1:] {
		_, known := programs()[path.Base(name)]
		if _, err := p.shell.view.stat(p.path(name), true); strings.Contains(name, "/") && err == nil {
			known = true
		}
		if !known && !interp.IsBuiltin(name) && !isShell(name) {
			return interp.ExitStatus(127)
		}
		fmt.Fprintln(p.stdout, name)
	}
	return nil
}
