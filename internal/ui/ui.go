// Package ui shows a build's progress to a person, or to a program.
//
// It is the end of the one-way path of package progress: it takes events, keeps
// what is needed to show them, and never slows a build down by more than a write
// to its output. Everything that it shows of a build (names, logs, messages) is
// foreign text and is freed of control characters first.
package ui

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/kiln-build/kiln/internal/progress"
)

// Mode is a way to show progress.
type Mode string

// The modes. Auto is TTY on a terminal and Plain elsewhere.
const (
	Auto    Mode = "auto"
	TTY     Mode = "tty"
	Plain   Mode = "plain"
	RawJSON Mode = "rawjson"
	Quiet   Mode = "quiet"
)

// ParseMode reads a mode as a user writes it; "none" is another word for quiet.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case "":
		return Auto, nil
	case "none":
		return Quiet, nil
	case Auto, TTY, Plain, RawJSON, Quiet:
		return m, nil
	}
	return "", fmt.Errorf("progress %q: want auto, tty, plain, rawjson or quiet", s)
}

// Display shows one build. Emit may be called concurrently; Finish is called
// once, after the last Emit.
type Display interface {
	progress.Sink
	// Finish shows the end; failure is nil if the build succeeded.
	Finish(failure *Failure) error
}

// Options say how to show a build.
type Options struct {
	Mode Mode
	Out  io.Writer // usually standard error
	// Title is the first line of the tty mode, such as "Building".
	Title string
	// Getenv looks into the environment: TERM, NO_COLOR, BUILDKIT_COLORS,
	// BUILDKIT_TTY_LOG_LINES, TTY_DISPLAY_RATE and PROGRESS_NO_TRUNC.
	Getenv func(string) string
}

// New returns the display of a build. It fails for mode TTY without a terminal.
func New(o Options) (Display, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	f, isFile := o.Out.(*os.File)
	terminal := isFile && term.IsTerminal(int(f.Fd()))
	mode := o.Mode
	if mode == Auto || mode == "" {
		mode = Plain
		if terminal && o.Getenv("TERM") != "dumb" {
			mode = TTY
		}
	}
	set := readSettings(o.Getenv)
	switch mode {
	case Plain:
		p := newPlain(o.Out, time.Now)
		p.names = set.names
		set.tell(o.Out)
		return newTicking(p, set.interval, p.tick), nil
	case RawJSON:
		return &rawJSON{out: o.Out}, nil
	case Quiet:
		return &quiet{out: o.Out, model: newModel()}, nil
	case TTY:
		if !terminal {
			return nil, errors.New("progress tty needs a terminal: use plain")
		}
		t := newTTY(o.Out, o.Title, time.Now, func() (int, int) { return size(f) })
		t.colors, t.logLines = set.colors, set.logLines
		t.model.tail = max(tailLines, set.logLines)
		set.tell(o.Out)
		return newTicking(t, set.interval, t.draw), nil
	}
	return nil, fmt.Errorf("progress mode %q is not known", mode)
}

// size is a terminal's, in characters.
func size(f *os.File) (width, height int) {
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil || width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// ticking calls a display at intervals, so that times go on while nothing
// happens.
type ticking struct {
	Display
	stop chan struct{}
	done sync.WaitGroup
}

func newTicking(d Display, every time.Duration, f func()) *ticking {
	t := &ticking{Display: d, stop: make(chan struct{})}
	t.done.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-t.stop:
				return
			case <-tick.C:
				f()
			}
		}
	})
	return t
}

func (t *ticking) Finish(failure *Failure) error {
	close(t.stop)
	t.done.Wait()
	return t.Display.Finish(failure)
}

// quiet shows nothing but a failure.
type quiet struct {
	mu    sync.Mutex
	out   io.Writer
	model *model
}

func (q *quiet) Emit(e progress.Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.model.apply(e)
}

func (q *quiet) Finish(failure *Failure) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return failure.show(q.out, q.model, palette{})
}

// clean makes foreign text safe for one line of a terminal: control characters
// become spaces, escape sequences go.
func clean(s string) string {
	if !strings.ContainsFunc(s, isControl) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if n := escapeLen(s[i:]); n > 0 {
			i += n
			continue
		}
		r := rune(s[i])
		n := 1
		if r >= 0x80 {
			for n = 1; i+n < len(s) && s[i+n]&0xc0 == 0x80; n++ {
			}
			b.WriteString(strings.ToValidUTF8(strings.Map(noControl, s[i:i+n]), "\uFFFD"))
		} else {
			b.WriteRune(noControl(r))
		}
		i += n
	}
	return b.String()
}

func isControl(r rune) bool { return r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\uFFFD' }

func noControl(r rune) rune {
	if r < 0x20 || r >= 0x7f && r < 0xa0 {
		return ' '
	}
	return r
}

// escapeLen is the length of the escape sequence that s begins with, or 0.
func escapeLen(s string) int {
	if len(s) < 2 || s[0] != 0x1b {
		return 0
	}
	switch s[1] {
	case '[': // CSI: parameters, then a letter
		for i := 2; i < len(s); i++ {
			if s[i] >= 0x40 && s[i] <= 0x7e {
				return i + 1
			}
		}
		return len(s)
	case ']': // OSC: up to BEL or ESC \
		for i := 2; i < len(s); i++ {
			if s[i] == 7 {
				return i + 1
			}
			if s[i] == 0x1b && i+1 < len(s) {
				return i + 2
			}
		}
		return len(s)
	}
	return 2
}

// Bytes is a number of bytes for people, in decimal units: "1.05MB".
func Bytes(n int64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	v, unit := float64(n)/1000, 0
	for v >= 999.995 && unit < len(units)-1 {
		v, unit = v/1000, unit+1
	}
	return fmt.Sprintf("%.2f%cB", v, units[unit])
}
