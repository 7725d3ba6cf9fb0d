package ui

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/kiln-build/kiln/internal/progress"
)

// logWindow is how many lines of a running step's log are in view, unless the
// environment says otherwise.
const logWindow = 6

// tty draws a picture of the build and draws it again in its place.
type tty struct {
	mu    sync.Mutex
	out   io.Writer
	title string
	now   func() time.Time
	size  func() (width, height int)
	model *model

	colors   palette
	logLines int

	begun time.Time
	drawn []int // widths of the lines on the screen
	err   error
}

func newTTY(out io.Writer, title string, now func() time.Time, size func() (int, int)) *tty {
	if title == "" {
		title = "Building"
	}
	return &tty{out: out, title: title, now: now, size: size, model: newModel(), begun: now(), logLines: logWindow}
}

// Emit takes an event; it is drawn with the next picture.
func (t *tty) Emit(e progress.Event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.model.apply(e)
}

// row is one line of the picture.
type row struct {
	text, right string
	color       string
}

// draw draws the picture as far as it fits on the screen.
func (t *tty) draw() {
	t.mu.Lock()
	defer t.mu.Unlock()
	width, height := t.size()
	t.paint(t.rows(max(height-2, 1)), width, height)
}

// Finish draws all of it once more, and the failure.
func (t *tty) Finish(failure *Failure) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	width, height := t.size()
	t.paint(t.rows(0), width, height)
	t.warnings()
	if t.err != nil {
		return t.err
	}
	return failure.show(t.out, t.model, t.colors)
}

// warnings lists the build's warnings below the last picture.
func (t *tty) warnings() {
	var b bytes.Buffer
	for _, w := range t.model.warnings {
		text := " ! " + clean(string(w.Short))
		if w.Source != nil && len(w.Source.Ranges) > 0 {
			text += fmt.Sprintf(" (%s:%d)", clean(w.Source.Filename), w.Source.Ranges[0].StartLine)
		}
		b.WriteString(t.colors.paint(t.colors.warning, text) + "\n")
	}
	if _, err := t.out.Write(b.Bytes()); err != nil && t.err == nil {
		t.err = err
	}
}

// rows makes the picture: at most most rows, or all if most is 0.
func (t *tty) rows(most int) []row {
	now, done := t.now(), 0
	for _, s := range t.model.order {
		if s.done() {
			done++
		}
	}
	head := fmt.Sprintf("[+] %s %.1fs (%d/%d)", t.title, now.Sub(t.begun).Seconds(), done, t.model.known)
	if done == t.model.known && done > 0 && most == 0 {
		head += " FINISHED"
	}
	rows := []row{{text: head}}
	blocks := make([][]row, len(t.model.order))
	total := 1
	for i, s := range t.model.order {
		blocks[i] = t.stepRows(s, now, most == 0)
		total += len(blocks[i])
	}
	// What is over gives way first, from the oldest on; then details.
	for i := 0; i < len(blocks) && most > 0 && total > most; i++ {
		if t.model.order[i].done() {
			total -= len(blocks[i])
			blocks[i] = nil
		}
	}
	for i := 0; i < len(blocks) && most > 0 && total > most; i++ {
		if len(blocks[i]) > 1 {
			total -= len(blocks[i]) - 1
			blocks[i] = blocks[i][:1]
		}
	}
	for _, b := range blocks {
		rows = append(rows, b...)
	}
	if most > 0 && len(rows) > most {
		rows = append(rows[:1], rows[len(rows)-most+1:]...)
	}
	return rows
}

// stepRows is what is shown of a step: its name, the parts of it that are under
// way (all of them in the final picture) and the end of its log.
func (t *tty) stepRows(s *step, now time.Time, final bool) []row {
	c := t.colors
	head := row{text: " => " + s.name, right: fmt.Sprintf("%.1fs", s.duration(now).Seconds())}
	switch {
	case s.canceled():
		head.text, head.color = " => CANCELED "+s.name, c.canceled
	case s.failure != "":
		head.text, head.color = " => ERROR "+s.name, c.failed
	case s.cached:
		head.text, head.color = " => CACHED "+s.name, c.done
	case s.done():
		head.color = c.done
	}
	rows := []row{head}
	for _, task := range s.tasks {
		r := row{text: " => => " + task.text(), right: fmt.Sprintf("%.1fs", task.duration(now).Seconds())}
		if task.Completed != nil {
			r.color = c.done
		}
		rows = append(rows, r)
	}
	if !s.done() && !final {
		tail := s.tail[max(0, len(s.tail)-t.logLines):]
		for _, l := range tail {
			rows = append(rows, row{text: " => => # " + l.text})
		}
	}
	return rows
}

// paint puts rows where the last picture was, as far as it is still on the screen.
func (t *tty) paint(rows []row, width, height int) {
	var b bytes.Buffer
	b.WriteString("\x1b[?25l") // no cursor while it jumps
	if up := min(t.height(width), height-1); up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", up)
	}
	b.WriteString("\r\x1b[0J")
	t.drawn = t.drawn[:0]
	for _, r := range rows {
		text, n := layout(r, width)
		if r.color != "" {
			text = r.color + text + "\x1b[0m"
		}
		b.WriteString(text + "\r\n")
		t.drawn = append(t.drawn, n)
	}
	b.WriteString("\x1b[?25h")
	if _, err := t.out.Write(b.Bytes()); err != nil && t.err == nil {
		t.err = err
	}
}

// height is how many lines of the screen the last picture takes, which is more
// than it has rows if the terminal has become narrower.
func (t *tty) height(width int) int {
	n := 0
	for _, w := range t.drawn {
		n += max(1, (w+width-1)/max(width, 1))
	}
	return n
}

// layout cuts a row to a width, with the right part at the right edge. It
// returns the text and its width.
func layout(r row, width int) (string, int) {
	room := width - 1
	if r.right != "" {
		room -= utf8.RuneCountInString(r.right) + 1
	}
	text := cut(r.text, max(room, 1))
	n := utf8.RuneCountInString(text)
	if r.right == "" || room < 1 {
		return text, n
	}
	pad := room - n + 1
	out := fmt.Sprintf("%s%*s%s", text, pad, "", r.right)
	return out, utf8.RuneCountInString(out)
}

// cut shortens text to n characters.
func cut(text string, n int) string {
	if utf8.RuneCountInString(text) <= n {
		return text
	}
	runes := []rune(text)
	if n < 4 {
		return string(runes[:n])
	}
	return string(runes[:n-3]) + "..."
}
