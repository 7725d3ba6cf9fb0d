package ui

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func env(pairs ...string) func(string) string {
	return func(name string) string {
		for _, p := range pairs {
			if v, ok := strings.CutPrefix(p, name+"="); ok {
				return v
			}
		}
		return ""
	}
}

func TestSettings(t *testing.T) {
	blue, yellow, red := "\x1b[34m", "\x1b[33m", "\x1b[31m"
	usual := palette{done: blue, canceled: yellow, warning: yellow, failed: red}
	for _, tc := range []struct {
		env     []string
		want    settings
		remarks []string // a part of each
	}{
		{want: settings{colors: usual}},
		{
			env: []string{"BUILDKIT_COLORS=run=green:warning=Light-Cyan:error=255,0,0:cancel=255,165,0"},
			want: settings{colors: palette{
				done: "\x1b[32m", warning: "\x1b[96m", failed: "\x1b[38;5;196m", canceled: "\x1b[38;5;214m",
			}},
		},
		{env: []string{"BUILDKIT_COLORS=run=green", "NO_COLOR=1"}, want: settings{}},
		{env: []string{"BUILDKIT_COLORS=error=default"}, want: settings{colors: palette{blue, yellow, yellow, "\x1b[39m"}}},
		{
			env:     []string{"BUILDKIT_COLORS=run=mauve:tip=green:error:cancel=1,2:warning=1,2,256:cancel=-1,0,0:run=light-default"},
			want:    settings{colors: usual},
			remarks: []string{`"run=mauve"`, `"tip=green": want run, cancel`, `"error"`, `"cancel=1,2"`, "256", "-1", "light-default"},
		},
		{env: []string{"BUILDKIT_TTY_LOG_LINES=60"}, want: settings{colors: usual, logLines: 60}},
		{env: []string{"BUILDKIT_TTY_LOG_LINES=0"}, want: settings{colors: usual}, remarks: []string{"BUILDKIT_TTY_LOG_LINES"}},
		{env: []string{"TTY_DISPLAY_RATE=250"}, want: settings{colors: usual, interval: 250 * time.Millisecond}},
		{env: []string{"TTY_DISPLAY_RATE=fast"}, want: settings{colors: usual}, remarks: []string{`TTY_DISPLAY_RATE="fast": want a number of milliseconds`}},
		{env: []string{"PROGRESS_NO_TRUNC=0"}, want: settings{colors: usual, names: 72}},
		{env: []string{"PROGRESS_NO_TRUNC=1"}, want: settings{colors: usual}},
	} {
		if tc.want.logLines == 0 {
			tc.want.logLines = 6
		}
		if tc.want.interval == 0 {
			tc.want.interval = 100 * time.Millisecond
		}
		got := readSettings(env(tc.env...))
		remarks := got.remarks
		if got.remarks = nil; !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%q: %#v, want %#v", tc.env, got, tc.want)
		}
		if !slices.EqualFunc(remarks, tc.remarks, strings.Contains) {
			t.Errorf("%q: remarks %q, want %q", tc.env, remarks, tc.remarks)
		}
	}
}

func TestMoreLogLines(t *testing.T) {
	s := &script{}
	sc, d := newScreen(t, s)
	sc.height = 80
	d.logLines, d.model.tail = 60, 60
	s.start(0, "RUN make")
	for i := range 100 {
		s.log(1, "RUN make", fmt.Sprintf("line %d\n", i))
	}
	d.draw()
	got := sc.String()
	if n := strings.Count(got, " => => # line "); n != 60 || !strings.Contains(got, "# line 40\n") || !strings.Contains(got, "# line 99\n") {
		t.Errorf("%d lines of the log, want the last 60:\n%s", n, got)
	}
}

func TestShortNames(t *testing.T) {
	var out strings.Builder
	p := newPlain(&out, time.Now)
	p.names = shortName
	s := &script{sink: p}
	s.start(0, "RUN "+strings.Repeat("x", 100))
	if err := p.Finish(nil); err != nil {
		t.Fatal(err)
	}
	if want := "#1 RUN " + strings.Repeat("x", 65) + "...\n"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("%q, want %q first", out.String(), want)
	}
}

func TestRemarksAreTold(t *testing.T) {
	var out strings.Builder
	d, err := New(Options{Mode: Plain, Out: &out, Getenv: env("TTY_DISPLAY_RATE=fast")})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Finish(nil); err != nil {
		t.Fatal(err)
	}
	if want := "warning: TTY_DISPLAY_RATE=\"fast\": want a number of milliseconds above 0\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}
