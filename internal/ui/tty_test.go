package ui

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// screen is a terminal, as far as the tty mode needs one.
type screen struct {
	t             testing.TB
	width, height int
	lines         [][]rune // all that scrolled, and the screen
	row, col      int
	colored       bool
}

func (s *screen) Write(p []byte) (int, error) {
	text := string(p)
	for len(text) > 0 {
		if rest, ok := strings.CutPrefix(text, "\x1b["); ok {
			i := strings.IndexFunc(rest, func(r rune) bool { return r >= '@' && r <= '~' })
			s.control(rest[:i], rest[i])
			text = rest[i+1:]
			continue
		}
		r := []rune(text)[0]
		text = text[len(string(r)):]
		switch r {
		case '\r':
			s.col = 0
		case '\n':
			s.row++
			s.col = 0
		default:
			s.put(r)
		}
	}
	return len(p), nil
}

func (s *screen) put(r rune) {
	if r < ' ' {
		s.t.Errorf("control character %q", r)
	}
	if s.col == s.width {
		s.row, s.col = s.row+1, 0
	}
	for len(s.lines) <= s.row {
		s.lines = append(s.lines, nil)
	}
	line := s.lines[s.row]
	for len(line) <= s.col {
		line = append(line, ' ')
	}
	line[s.col] = r
	s.lines[s.row] = line
	s.col++
}

func (s *screen) control(arg string, code byte) {
	switch code {
	case 'A':
		n, err := strconv.Atoi(arg)
		if err != nil {
			s.t.Errorf("cursor up by %q", arg)
		}
		if s.row -= n; s.row < 0 || s.row < len(s.lines)-s.height {
			s.t.Errorf("the cursor goes up to line %d of %d: that is off the screen", s.row, len(s.lines))
		}
	case 'J':
		s.lines = s.lines[:min(s.row, len(s.lines))]
	case 'm':
		s.colored = s.colored || arg != "0"
	case 'l', 'h':
	default:
		s.t.Errorf("unknown control %q%c", arg, code)
	}
}

func (s *screen) String() string {
	var b strings.Builder
	for _, l := range s.lines {
		fmt.Fprintln(&b, strings.TrimRight(string(l), " "))
	}
	return b.String()
}

func newScreen(t testing.TB, s *script) (*screen, *tty) {
	s.clock = t0
	sc := &screen{t: t, width: 60, height: 12}
	d := newTTY(sc, "", s.now, func() (int, int) { return sc.width, sc.height })
	s.sink = d
	return sc, d
}

func TestTTY(t *testing.T) {
	s := &script{}
	sc, d := newScreen(t, s)
	d.colors = terminalColors()
	s.start(0, "load context")
	d.draw()
	s.end(0, 2, "load context", nil)
	s.start(2, "RUN a command whose name is much longer than the screen is wide")
	for i := range 9 {
		s.log(3, "RUN a command whose name is much longer than the screen is wide", fmt.Sprintf("line %d\n", i))
	}
	s.task(4, "RUN a command whose name is much longer than the screen is wide", "sha256:abc", 1050000, 3640000, false)
	s.clock = *at(5)
	d.draw()
	d.draw()
	const want = `[+] Building 5.0s (1/2)
 => load context                                       2.0s
 => RUN a command whose name is much longer than th... 3.0s
 => => sha256:abc 1.05MB / 3.64MB                      4.0s
 => => # line 3
 => => # line 4
 => => # line 5
 => => # line 6
 => => # line 7
 => => # line 8
`
	if got := sc.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if !sc.colored {
		t.Error("no colours")
	}
}

func TestTTYEnd(t *testing.T) {
	s := &script{}
	sc, d := newScreen(t, s)
	build(s)
	d.draw()
	if err := d.Finish(failure()); err != nil {
		t.Fatal(err)
	}
	const want = `[+] Building 5.0s (4/4) FINISHED
 => load context                                       2.0s
 => => transferring context: 1.50kB                    0.5s
 => CACHED FROM base                                   0.0s
 => ERROR RUN make                                     2.0s
 => CANCELED RUN sleep                                 1.6s
 => => sha256:abc 1.05MB / 3.64MB                      4.0s
 ! do not make
`
	if got := strings.ReplaceAll(sc.String(), "\r", ""); got != want+failureText {
		t.Errorf("got:\n%s\nwant:\n%s", got, want+failureText)
	}
	if sc.colored {
		t.Error("colours although there should be none")
	}
}

// More steps than lines, and a screen that shrinks: the picture stays in place.
func TestTTYSmall(t *testing.T) {
	s := &script{}
	sc, d := newScreen(t, s)
	for i := range 30 {
		s.start(float64(i), fmt.Sprintf("step %d", i))
		if i%3 > 0 {
			s.end(float64(i), float64(i)+0.5, fmt.Sprintf("step %d", i), nil)
		}
		d.draw()
		if n := len(sc.lines); n > sc.height {
			t.Fatalf("%d lines on a screen of %d", n, sc.height)
		}
	}
	if got := sc.String(); !strings.Contains(got, "step 27") || strings.Contains(got, "step 28 ") {
		t.Errorf("the picture should have running steps before others:\n%s", got)
	}
	sc.height = 7
	d.draw()
	sc.lines, sc.row = sc.lines[len(sc.lines)-5:], 5
	d.draw()
	if n := len(sc.lines); n > 7 {
		t.Errorf("%d lines on a screen of 7", n)
	}
}
