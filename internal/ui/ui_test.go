package ui

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// script feeds a display with events at set times.
type script struct {
	sink  progress.Sink
	clock time.Time
}

func (s *script) now() time.Time { return s.clock }

func at(seconds float64) *time.Time {
	t := t0.Add(time.Duration(seconds * float64(time.Second)))
	return &t
}

func id(name string) digest.Digest { return digest.FromString(name) }

func (s *script) emit(seconds float64, e progress.Event) {
	if p, ok := s.sink.(*plain); ok && at(seconds).After(s.clock) {
		p.tick()
	}
	s.clock = *at(seconds)
	s.sink.Emit(e)
}

func (s *script) start(seconds float64, name string) {
	s.emit(seconds, progress.Event{Vertex: &progress.Vertex{Digest: id(name), Name: name, Started: at(seconds)}})
}

func (s *script) end(from, to float64, name string, change func(*progress.Vertex)) {
	v := &progress.Vertex{Digest: id(name), Name: name, Started: at(from), Completed: at(to)}
	if change != nil {
		change(v)
	}
	s.emit(to, progress.Event{Vertex: v})
}

func (s *script) log(seconds float64, name, text string) {
	s.emit(seconds, progress.Event{Log: &progress.Log{Vertex: id(name), Stream: 1, Data: []byte(text), Timestamp: *at(seconds)}})
}

func (s *script) task(seconds float64, name, task string, current, total int64, done bool) {
	st := &progress.Status{ID: task, Vertex: id(name), Current: current, Total: total, Timestamp: *at(seconds), Started: at(1)}
	if done {
		st.Completed = at(seconds)
	}
	s.emit(seconds, progress.Event{Status: st})
}

const dockerfile = "FROM base\n\nRUN make \\\n\tall\n\n# end\nCMD x\n"

func failure() *Failure {
	return &Failure{
		Message: "process make failed", Vertex: id("RUN make"), ExitCode: 2,
		Sources: []progress.Source{{
			Filename: "Dockerfile", Data: []byte(dockerfile),
			Ranges: []progress.Range{{StartLine: 3, EndLine: 4}},
		}},
	}
}

const failureText = `------
 > RUN make:
1.000 compiling
1.900 error: no
------
Dockerfile:3
--------------------
   1 |     FROM base
   2 |
   3 | >>> RUN make \
   4 | >>>     all
   5 |
   6 |     # end
   7 |     CMD x
--------------------
exit code: 2
`

// build is a build that fails, with two steps at a time.
func build(s *script) {
	s.emit(0, progress.Event{Vertex: &progress.Vertex{Digest: id("RUN make"), Name: "RUN make"}})
	s.start(0, "load context")
	s.task(1, "load context", "transferring context:", 0, 0, false)
	s.task(1.5, "load context", "transferring context:", 1500, 0, true)
	s.end(0, 2, "load context", nil)
	s.end(2, 2, "FROM base", func(v *progress.Vertex) { v.Cached = true })
	s.start(2, "RUN make")
	s.log(3, "RUN make", "compil")
	s.log(3, "RUN make", "ing\n")
	s.start(3.4, "RUN sleep")
	s.log(3.5, "RUN sleep", "zz\x1b[31mz\x1b[0m\x07\n10%\r20%\rfull\n")
	s.log(3.9, "RUN make", "error: no")
	s.emit(3.9, progress.Event{Warning: &progress.Warning{Vertex: id("RUN make"), Short: []byte("do not make")}})
	s.task(3.95, "RUN sleep", "sha256:abc", 1050000, 3640000, false)
	s.end(2, 3.98, "RUN make", func(v *progress.Vertex) { v.Error = "exit code: 2" })
	s.end(3.4, 5, "RUN sleep", func(v *progress.Vertex) { v.Error = "sleep: context canceled" })
}

func TestPlain(t *testing.T) {
	var out bytes.Buffer
	s := &script{}
	p := newPlain(&out, s.now)
	s.sink = p
	build(s)
	if err := p.Finish(failure()); err != nil {
		t.Fatal(err)
	}
	const want = `#1 load context
#1 transferring context: 1.50kB 0.5s done
#1 DONE 2.0s

#2 FROM base
#2 CACHED

#3 RUN make
#3 1.000 compiling
#3 WARN: do not make
#3 1.900 error: no
#3 ERROR: exit code: 2

#4 RUN sleep
#4 0.100 zzz 
#4 0.100 full
#4 CANCELED

`
	if got := out.String(); got != want+failureText {
		t.Errorf("got:\n%s\nwant:\n%s", got, want+failureText)
	}
}

// What comes late of a step that is over is still told, and its end once only
// where nothing is new.
func TestPlainLate(t *testing.T) {
	var out bytes.Buffer
	s := &script{}
	p := newPlain(&out, s.now)
	s.sink = p
	s.start(0, "a")
	s.end(0, 1, "a", nil)
	s.task(1, "a", "load", 10, 0, true) // at the same time: it belongs before the end
	s.end(0, 1, "a", nil)
	p.tick()
	s.end(0, 1, "a", nil)
	s.log(2, "a", "late\n")
	if err := p.Finish(nil); err != nil {
		t.Fatal(err)
	}
	const want = `#1 a
#1 load 10B 0.0s done
#1 DONE 1.0s

#1 a
#1 2.000 late
#1 DONE 1.0s

`
	if got := out.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// A step that goes on for long does not hide the others.
func TestPlainSwitches(t *testing.T) {
	var out bytes.Buffer
	s := &script{}
	p := newPlain(&out, s.now)
	s.sink = p
	s.start(0, "a")
	s.log(1, "a", "a1\n")
	s.start(1, "b")
	s.log(2.5, "b", "b1\n")
	s.log(4, "a", "a2\n")
	s.task(4, "a", "pull", 0, 100, false)
	s.task(5, "a", "pull", 20, 100, false)
	s.task(10, "a", "pull", 80, 100, false)
	s.clock = *at(13)
	p.tick()
	s.end(1, 14, "b", nil)
	s.end(0, 15, "a", nil)
	if err := p.Finish(nil); err != nil {
		t.Fatal(err)
	}
	const want = `#1 a
#1 1.000 a1
#1 ...

#2 b
#2 1.500 b1
#2 ...

#1 a
#1 4.000 a2
#1 pull 80B / 100B 9.0s
#1 ...

#2 b
#2 DONE 13.0s

#1 a
#1 DONE 15.0s

`
	if got := out.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// A warning of a step that the display does not know is shown all the same, and
// makes no step.
func TestWarningOfNoStep(t *testing.T) {
	warned := func(s *script) {
		s.start(0, "a")
		s.emit(1, progress.Event{Warning: &progress.Warning{Vertex: id("unknown"), Short: []byte("beware")}})
		s.end(0, 2, "a", nil)
	}
	var out bytes.Buffer
	s := &script{}
	p := newPlain(&out, s.now)
	s.sink = p
	warned(s)
	if err := p.Finish(nil); err != nil {
		t.Fatal(err)
	}
	if want := "#1 a\n#1 DONE 2.0s\n\nWARN: beware\n"; out.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", out.String(), want)
	}
	m := newModel()
	s.sink = progress.SinkFunc(func(e progress.Event) { m.apply(e) })
	warned(s)
	if m.known != 1 || len(m.warnings) != 1 {
		t.Errorf("%d steps and %d warnings are known, want one each", m.known, len(m.warnings))
	}
}

func TestRawJSON(t *testing.T) {
	var out bytes.Buffer
	d, err := New(Options{Mode: RawJSON, Out: &out})
	if err != nil {
		t.Fatal(err)
	}
	s := &script{sink: d}
	s.start(0, "a")
	s.task(1, "a", "pull", 1, 2, false)
	s.log(1, "a", "hello\n")
	s.emit(2, progress.Event{Warning: &progress.Warning{
		Vertex: id("a"), Level: 1, Short: []byte("short"), Detail: [][]byte{[]byte("d")}, URL: "u",
		Source: &progress.Source{Filename: "Dockerfile", Data: []byte("x"), Ranges: []progress.Range{{StartLine: 1, EndLine: 1, EndChar: 1}}},
	}})
	if err := d.Finish(failure()); err != nil {
		t.Fatal(err)
	}
	a := string(id("a"))
	want := strings.ReplaceAll(`{"vertexes":[{"digest":"ID","name":"a","started":"2026-01-02T03:04:05Z"}]}
{"statuses":[{"id":"pull","vertex":"ID","total":2,"current":1,"timestamp":"2026-01-02T03:04:06Z","started":"2026-01-02T03:04:06Z"}]}
{"logs":[{"vertex":"ID","stream":1,"data":"aGVsbG8K","timestamp":"2026-01-02T03:04:06Z"}]}
{"warnings":[{"vertex":"ID","level":1,"short":"c2hvcnQ=","detail":["ZA=="],"url":"u","sourceInfo":{"filename":"Dockerfile","data":"eA=="},"range":[{"start":{"line":1,"character":0},"end":{"line":1,"character":1}}]}]}
`, "ID", a)
	if got := out.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	for line := range strings.Lines(out.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %s", line)
		}
	}
}

func TestQuiet(t *testing.T) {
	for _, tt := range []struct {
		failure *Failure
		want    string
	}{{nil, ""}, {failure(), failureText}} {
		var out bytes.Buffer
		d, err := New(Options{Mode: Quiet, Out: &out})
		if err != nil {
			t.Fatal(err)
		}
		build(&script{sink: d})
		if err := d.Finish(tt.failure); err != nil {
			t.Fatal(err)
		}
		if out.String() != tt.want {
			t.Errorf("got:\n%s\nwant:\n%s", out.String(), tt.want)
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain ä": "plain ä", "a\x1b[1;31mb\x1b[0m": "ab", "\x1b]0;title\x07x": "x", "a\nb\tc": "a b c",
		"\x9b31m": "\uFFFD31m", "\u009b2J": " 2J", "\xff": "\uFFFD", "\x1b": " ", "\x1b[": "", "x\x1b]0;a\x1b\\y": "xy",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 999: "999B", 1000: "1.00kB", 1500: "1.50kB", 999999: "1.00MB", 3640000: "3.64MB", 5e9: "5.00GB"} {
		if got := Bytes(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk is full") }

func TestModes(t *testing.T) {
	for in, want := range map[string]Mode{"": Auto, "auto": Auto, "plain": Plain, "tty": TTY, "rawjson": RawJSON, "quiet": Quiet, "none": Quiet} {
		if got, err := ParseMode(in); err != nil || got != want {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	if _, err := ParseMode("fancy"); err == nil {
		t.Error("fancy was taken")
	}
	if _, err := New(Options{Mode: TTY, Out: &bytes.Buffer{}}); err == nil {
		t.Error("tty without a terminal was taken")
	}
	d, err := New(Options{Mode: Auto, Out: &bytes.Buffer{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := d.(*ticking).Display.(*plain); !ok {
		t.Errorf("auto without a terminal is %T", d)
	}
	if err := d.Finish(nil); err != nil {
		t.Error(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, mode := range []Mode{Plain, RawJSON} {
		d, err := New(Options{Mode: mode, Out: full{}})
		if err != nil {
			t.Fatal(err)
		}
		build(&script{sink: d})
		if err := d.Finish(nil); err == nil {
			t.Errorf("%s: a full disk was not noticed", mode)
		}
	}
}
