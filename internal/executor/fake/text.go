package fake

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/interp"
)

// The programs that read text.

// each calls do with the files named, or with stdin for none and "-".
func (p *program) each(names []string, do func(io.Reader) error) error {
	if len(names) == 0 {
		names = []string{"-"}
	}
	var failed error
	for _, name := range names {
		if name == "-" {
			if err := do(p.input()); err != nil {
				return p.failFile("stdin", err)
			}
			continue
		}
		switch path.Clean(p.path(name)) {
		case "/dev/null":
			continue
		case "/dev/zero":
			if err := do(zeros{p.ctx}); err != nil {
				failed = p.failFile(name, err)
			}
			continue
		}
		f, err := p.shell.view.openFile(p.path(name), os.O_RDONLY, 0)
		if err == nil {
			err = do(f)
			f.Close()
		}
		if err != nil {
			failed = p.failFile(name, err)
		}
	}
	return failed
}

func (p *program) input() io.Reader {
	if p.stdin == nil {
		return bytes.NewReader(nil)
	}
	return p.stdin
}

// zeros is /dev/zero, until the run ends.
type zeros struct{ ctx context.Context }

func (z zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), z.ctx.Err()
}

func (p *program) cat() error {
	_, names, err := p.flags("u")
	if err != nil {
		return err
	}
	return p.each(names, func(r io.Reader) error {
		_, err := io.Copy(p.stdout, r)
		return err
	})
}

func (p *program) grep() error {
	set, names, err := p.flags("qvF")
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return p.fail("want a text to look for")
	}
	text, found := names[0], false
	_, quiet := set['q']
	_, invert := set['v']
	err = p.each(names[1:], func(r io.Reader) error {
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			if strings.Contains(lines.Text(), text) == invert {
				continue
			}
			found = true
			if !quiet {
				fmt.Fprintln(p.stdout, lines.Text())
			}
		}
		return lines.Err()
	})
	if err == nil && !found {
		err = interp.ExitStatus(1)
	}
	return err
}

// count reads -n or -c of head and tail, 10 lines by default.
func (p *program) count() (n int64, isBytes bool, names []string, err error) {
	set, names, err := p.flags("n:c:q")
	if err != nil {
		return 0, false, nil, err
	}
	text := "10"
	if v, ok := set['n']; ok {
		text = v
	}
	if v, ok := set['c']; ok {
		text, isBytes = v, true
	}
	if n, err = strconv.ParseInt(text, 10, 64); err != nil || n < 0 {
		return 0, false, nil, p.fail("%q: want a number", text)
	}
	return n, isBytes, names, nil
}

func (p *program) head() error {
	n, isBytes, names, err := p.count()
	if err != nil {
		return err
	}
	return p.each(names, func(r io.Reader) error {
		if isBytes {
			_, err := io.CopyN(p.stdout, r, n)
			return ignoreEOF(err)
		}
		lines := bufio.NewReader(r)
		for range n {
			line, err := lines.ReadString('\n')
			if _, werr := io.WriteString(p.stdout, line); werr != nil {
				return werr
			}
			if err != nil {
				return ignoreEOF(err)
			}
		}
		return nil
	})
}

func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (p *program) tail() error {
	n, isBytes, names, err := p.count()
	if err != nil {
		return err
	}
	return p.each(names, func(r io.Reader) error {
		text, err := io.ReadAll(io.LimitReader(r, maxScript))
		if err != nil {
			return err
		}
		from := max(int64(len(text))-n, 0)
		if !isBytes {
			lines := slices.Collect(strings.Lines(string(text)))
			keep := lines[max(int64(len(lines))-n, 0):]
			from = int64(len(text) - len(strings.Join(keep, "")))
		}
		_, err = p.stdout.Write(text[from:])
		return err
	})
}

func (p *program) sort() error {
	set, names, err := p.flags("ru")
	if err != nil {
		return err
	}
	var lines []string
	err = p.each(names, func(r io.Reader) error {
		text, err := io.ReadAll(io.LimitReader(r, maxScript))
		for line := range strings.Lines(string(text)) {
			lines = append(lines, strings.TrimSuffix(line, "\n"))
		}
		return err
	})
	slices.Sort(lines)
	if _, unique := set['u']; unique {
		lines = slices.Compact(lines)
	}
	if _, reverse := set['r']; reverse {
		slices.Reverse(lines)
	}
	for _, line := range lines {
		fmt.Fprintln(p.stdout, line)
	}
	return err
}

func (p *program) wc() error {
	set, names, err := p.flags("lwc")
	if err != nil {
		return err
	}
	return p.each(names, func(r io.Reader) error {
		var lines, words, size int64
		in := bufio.NewReader(r)
		for inWord := false; ; {
			b, err := in.ReadByte()
			if err != nil {
				return p.printCounts(set, lines, words, size, ignoreEOF(err))
			}
			size++
			if b == '\n' {
				lines++
			}
			blank := b == ' ' || b >= '\t' && b <= '\r'
			if !blank && !inWord {
				words++
			}
			inWord = !blank
		}
	})
}

func (p *program) printCounts(set map[byte]string, lines, words, size int64, err error) error {
	var out []string
	for _, c := range []struct {
		flag byte
		n    int64
	}{{'l', lines}, {'w', words}, {'c', size}} {
		if _, asked := set[c.flag]; asked || len(set) == 0 {
			out = append(out, strconv.FormatInt(c.n, 10))
		}
	}
	fmt.Fprintln(p.stdout, strings.Join(out, " "))
	return err
}

func (p *program) tee() error {
	set, names, err := p.flags("a")
	if err != nil {
		return err
	}
	out := []io.Writer{p.stdout}
	how := os.O_TRUNC
	if _, more := set['a']; more {
		how = os.O_APPEND
	}
	for _, name := range names {
		f, err := p.shell.view.openFile(p.path(name), os.O_WRONLY|os.O_CREATE|how, 0o644)
		if err != nil {
			return p.failFile(name, err)
		}
		defer f.Close()
		out = append(out, f)
	}
	if _, err := io.Copy(io.MultiWriter(out...), p.input()); err != nil {
		return p.fail("%v", err)
	}
	return nil
}
