package ui

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
)

// Failure is why a build failed.
type Failure struct {
	Message string
	// Vertex is the step that failed, if one did. Without it the first step with
	// an error is taken.
	Vertex digest.Digest
	// Sources are the places in build files, the innermost first.
	Sources []progress.Source
	// ExitCode is that of the process that failed, or 0.
	ExitCode int
	// Canceled says that nobody wants the build any more.
	Canceled bool
}

// contextLines is how many lines are shown before and after a marked one.
const contextLines = 3

// show writes the end of the failed step's log, the lines of the build file and
// the error. The message itself is left to the caller's last line.
func (f *Failure) show(out io.Writer, m *model, c palette) error {
	if f == nil {
		return nil
	}
	var b bytes.Buffer
	if m == nil {
		// rawjson: its readers want no text between the lines of JSON.
		return nil
	}
	if s := f.step(m); s != nil && !f.Canceled {
		fmt.Fprintf(&b, "------\n%s\n", c.paint(c.failed, " > "+s.name+":"))
		for _, l := range s.tail {
			fmt.Fprintf(&b, "%.3f %s\n", l.at.Seconds(), l.text)
		}
		fmt.Fprintf(&b, "------\n")
	}
	for _, s := range f.Sources {
		writeSource(&b, s, c)
	}
	if f.ExitCode != 0 && !strings.Contains(f.Message, "exit code") {
		fmt.Fprintf(&b, "exit code: %d\n", f.ExitCode)
	}
	_, err := out.Write(b.Bytes())
	return err
}

// step is the one to show: it has a log, or at least a name.
func (f *Failure) step(m *model) *step {
	if s := m.steps[f.Vertex]; s != nil && s.number > 0 {
		return s
	}
	for _, s := range m.order {
		if s.failure != "" && !s.canceled() {
			return s
		}
	}
	return nil
}

// writeSource shows the lines of a build file around the marked ones.
func writeSource(b *bytes.Buffer, s progress.Source, c palette) {
	lines := strings.Split(strings.TrimSuffix(string(s.Data), "\n"), "\n")
	marked := map[int]bool{}
	first, last := 0, 0
	for _, r := range s.Ranges {
		if r.StartLine < 1 || r.EndLine < r.StartLine || r.EndLine > len(lines) {
			continue
		}
		for i := r.StartLine; i <= r.EndLine; i++ {
			marked[i] = true
		}
		if first == 0 || r.StartLine < first {
			first = r.StartLine
		}
		last = max(last, r.EndLine)
	}
	if first == 0 {
		return
	}
	fmt.Fprintf(b, "%s:%d\n--------------------\n", clean(s.Filename), first)
	for i := max(1, first-contextLines); i <= min(len(lines), last+contextLines); i++ {
		text := clean(strings.ReplaceAll(strings.TrimSuffix(lines[i-1], "\r"), "\t", "    "))
		if marked[i] {
			fmt.Fprintln(b, c.paint(c.failed, strings.TrimRight(fmt.Sprintf("%4d | >>> %s", i, text), " ")))
		} else {
			fmt.Fprintln(b, strings.TrimRight(fmt.Sprintf("%4d |     %s", i, text), " "))
		}
	}
	fmt.Fprintln(b, "--------------------")
}

// palette is the colours of a terminal; the zero value has none.
type palette struct{ done, canceled, warning, failed string }

func terminalColors() palette {
	return palette{done: "\x1b[34m", canceled: "\x1b[33m", warning: "\x1b[33m", failed: "\x1b[31m"}
}

// paint colours text, if there are colours.
func (palette) paint(color, text string) string {
	if color == "" {
		return text
	}
	return color + text + "\x1b[0m"
}
