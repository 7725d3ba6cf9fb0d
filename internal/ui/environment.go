package ui

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// The variables by which people fit the display to their terminals (BuildKit's
// README, "Configuring buildctl", and util/progress/progressui).
const (
	envNoColor  = "NO_COLOR"               // anything: no colours (no-color.org)
	envColors   = "BUILDKIT_COLORS"        // such as run=green:error=255,0,0
	envLogLines = "BUILDKIT_TTY_LOG_LINES" // lines of a running step's log in view
	envRate     = "TTY_DISPLAY_RATE"       // milliseconds between two pictures
	envNoTrunc  = "PROGRESS_NO_TRUNC"      // 0: plain shortens the names of steps
)

// settings are what the environment says of a display.
type settings struct {
	colors   palette       // of the tty mode
	logLines int           // of a running step in the tty mode
	interval time.Duration // between two pictures or writes
	names    int           // plain: the most characters of a step's name, 0 for all
	remarks  []string      // on values that mean nothing, and for which the default is used
}

// readSettings reads the environment. A wrong value is no reason not to build:
// there is a remark on it.
func readSettings(getenv func(string) string) settings {
	s := settings{colors: terminalColors(), logLines: logWindow, interval: time.Second / 10}
	s.setColors(getenv(envColors))
	if getenv(envNoColor) != "" {
		s.colors = palette{}
	}
	s.number(getenv, envLogLines, "lines", func(n int) { s.logLines = n })
	s.number(getenv, envRate, "milliseconds", func(n int) { s.interval = time.Duration(n) * time.Millisecond })
	if getenv(envNoTrunc) == "0" {
		s.names = shortName
	}
	return s
}

func (s *settings) remark(format string, args ...any) {
	s.remarks = append(s.remarks, fmt.Sprintf(format, args...))
}

// tell writes the remarks. That nobody can read them shows with the first step.
func (s *settings) tell(out io.Writer) {
	for _, r := range s.remarks {
		fmt.Fprintf(out, "warning: %s\n", r)
	}
}

// number takes a variable whose value counts something.
func (s *settings) number(getenv func(string) string, name, unit string, set func(int)) {
	v := getenv(name)
	if v == "" {
		return
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil || n == 0 {
		s.remark("%s=%q: want a number of %s above 0", name, v, unit)
		return
	}
	set(int(n))
}

// setColors reads a list such as run=green:warning=yellow:error=255,165,0.
func (s *settings) setColors(list string) {
	if list == "" {
		return
	}
	for entry := range strings.SplitSeq(list, ":") {
		role, value, _ := strings.Cut(entry, "=")
		color, ok := parseColor(value)
		if !ok {
			s.remark("%s: %q: want ROLE=NAME with a name such as light-blue, or ROLE=R,G,B with numbers up to 255", envColors, entry)
			continue
		}
		switch strings.ToLower(role) {
		case "run":
			s.colors.done = color
		case "cancel":
			s.colors.canceled = color
		case "warning":
			s.colors.warning = color
		case "error":
			s.colors.failed = color
		default:
			s.remark("%s: %q: want run, cancel, warning or error before the =", envColors, entry)
		}
	}
}

// parseColor makes the escape sequence of a name, or of amounts of red, green
// and blue, for which the nearest of a terminal's 216 colours is taken.
func parseColor(value string) (sequence string, ok bool) {
	name, light := strings.CutPrefix(strings.ToLower(value), "light-")
	for i, known := range []string{"black", "red", "green", "yellow", "blue", "magenta", "cyan", "white"} {
		switch {
		case name == known && light:
			return fmt.Sprintf("\x1b[%dm", 90+i), true
		case name == known:
			return fmt.Sprintf("\x1b[%dm", 30+i), true
		}
	}
	if name == "default" && !light {
		return "\x1b[39m", true
	}
	amounts := strings.Split(value, ",")
	if len(amounts) != 3 {
		return "", false
	}
	const shades = 6 // of each of the three, in the cube that begins at 16
	index := 0
	for _, a := range amounts {
		n, err := strconv.ParseUint(strings.TrimSpace(a), 10, 8)
		if err != nil {
			return "", false
		}
		index = index*shades + int(n)*shades/256
	}
	return fmt.Sprintf("\x1b[38;5;%dm", 16+index), true
}
