package earthfile

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// Where a probe writes what it found out, and how much it may be, in bytes. Its
// folder is for every user.
const (
	probeDir  = "/run/earthfile"
	probeFile = "/found/out"
	maxOutput = 1 << 20
)

// probe runs a script in the frame's container, and returns what it writes to the
// file $1. Nothing else of what it does stays.
func (f *frame) probe(ctx context.Context, c *command, script, title string) (string, error) {
	if !f.out.begun {
		return "", fmt.Errorf("%s has no files to run a command in: expected FROM above it, or above all targets", c.verb)
	}
	opts, err := f.process(ctx, c)
	if err != nil {
		return "", err
	}
	place := llb.Scratch().File(llb.Mkdir("/found", 0o777), llb.WithCustomName("[internal] make a place for what commands find out"))
	opts = append(opts, llb.Args([]string{"/bin/sh", "-c", script, "sh", probeDir + probeFile}), f.Step(c.at, "[+%s] %s", f.at, strings.Join(strings.Fields(title), " ")))
	found := f.out.image.State.Run(opts...).AddMount(probeDir, place)
	g, err := found.Graph(ctx, llb.Platform(f.platform))
	if err != nil {
		return "", err
	}
	ref, err := f.gw.Solve(ctx, g)
	if err != nil {
		return "", err
	}
	data, err := ref.ReadFile(ctx, strings.TrimPrefix(probeFile, "/"))
	switch {
	case err != nil:
		return "", fmt.Errorf("read what %s gave: %w", title, err)
	case len(data) > maxOutput:
		return "", fmt.Errorf("%s gave %d bytes, expected at most %d", title, len(data), maxOutput)
	}
	return string(data), nil
}

// output is what a command writes to its standard output, without the lines' last
// ends.
func (f *frame) output(ctx context.Context, c *command, script string) (string, error) {
	text, err := f.probe(ctx, c, "(\n"+script+"\n) > \"$1\"", "$("+script+")")
	return strings.TrimRight(text, "\n"), err
}

// holds tells whether a condition is true: by itself, or by running it.
func (f *frame) holds(ctx context.Context, c *command) (bool, error) {
	if value, ok := f.constant(c.raw); ok {
		return value, nil
	}
	text, err := f.probe(ctx, c, "(\n"+c.raw+"\n)\necho $? > \"$1\"", strings.TrimPrefix(c.verb, "ELSE ")+" "+c.raw)
	if err != nil {
		return false, err
	}
	code, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return false, fmt.Errorf("read how the condition ended: %q is no exit code", text)
	}
	return code == 0, nil
}

// constant tells whether a condition is true that depends on nothing but variables
// that are known here: true, false, and comparisons in brackets.
func (f *frame) constant(raw string) (value, ok bool) {
	switch raw {
	case "true":
		return true, true
	case "false":
		return false, true
	}
	// Whatever else has a meaning in a shell is left to one.
	if strings.ContainsAny(raw, "`\\|&;<>()*?~{}\n") && !plainBraces(raw) {
		return false, false
	}
	words, err := line{text: raw}.words(0)
	if err != nil || strings.ContainsRune(raw, '#') {
		return false, false
	}
	var texts []string
	for _, w := range words {
		x, err := syntax.Expander{Escape: '\\'}.Expand(w.text, f)
		if err != nil || len(x.Unset) > 0 {
			return false, false
		}
		if !strings.ContainsAny(w.text, `"'`) && (x.Text == "" || strings.ContainsAny(x.Text, " \t\n*?[") && x.Text != "[") {
			return false, false // a shell makes several words of it, or none
		}
		texts = append(texts, x.Text)
	}
	return compare(texts)
}

// plainBraces tells whether braces are all that has a meaning in a text, and only in
// ${NAME}.
func plainBraces(raw string) bool {
	if strings.ContainsAny(raw, "`\\|&;<>()*?~\n") {
		return false
	}
	for rest := raw; ; {
		i := strings.IndexAny(rest, "{}")
		if i < 0 {
			return true
		}
		end := strings.IndexByte(rest[i:], '}')
		if rest[i] != '{' || i == 0 || rest[i-1] != '$' || end < 0 || strings.ContainsAny(rest[i+1:i+end], "{:-+#%/$\"' ") {
			return false
		}
		rest = rest[i+end+1:]
	}
}

// compare is what "[ A = B ]" says.
func compare(words []string) (value, ok bool) {
	switch n := len(words); {
	case n > 2 && words[0] == "[" && words[n-1] == "]":
		words = words[1 : n-1]
	case n > 1 && words[0] == "test":
		words = words[1:]
	default:
		return false, false
	}
	if len(words) > 2 && words[0] == "!" {
		value, ok = compare(append([]string{"test"}, words[1:]...))
		return !value, ok
	}
	switch {
	case len(words) == 2 && words[0] == "-n":
		return words[1] != "", true
	case len(words) == 2 && words[0] == "-z":
		return words[1] == "", true
	case len(words) != 3:
		return false, false
	}
	a, errA := strconv.Atoi(words[0])
	b, errB := strconv.Atoi(words[2])
	numbers := errA == nil && errB == nil
	switch words[1] {
	case "=", "==":
		return words[0] == words[2], true
	case "!=":
		return words[0] != words[2], true
	case "-eq":
		return a == b, numbers
	case "-ne":
		return a != b, numbers
	case "-lt":
		return a < b, numbers
	case "-le":
		return a <= b, numbers
	case "-gt":
		return a > b, numbers
	case "-ge":
		return a >= b, numbers
	}
	return false, false
}
