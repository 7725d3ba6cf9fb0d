package syntax

import (
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hostileFiles are files of about n bytes that are to cost as much as they can.
func hostileFiles() map[string]func(n int) string {
	repeat := func(head, part, tail string) func(int) string {
		return func(n int) string {
			return head + strings.Repeat(part, max(0, n-len(head)-len(tail))/len(part)) + tail
		}
	}
	return map[string]func(n int) string{
		"stages":            repeat("", "FROM a\n", ""),
		"named stages":      repeat("", "FROM a AS b\n", ""),
		"continuations":     repeat("FROM a\nRUN x ", "\\\n", ""),
		"comments inside":   repeat("FROM a\nRUN x \\\n", "# c\n", "y\n"),
		"comments above":    repeat("FROM a\n", "# c\n", "RUN x\n"),
		"junk":              repeat("", "zzz \"' <<a [ \\\n\n", ""),
		"open heredocs":     repeat("FROM a\nRUN ", "<<a ", "\n"),
		"closed heredocs":   repeat("FROM a\n", "RUN <<a <<b <<c\na\nb\nc\n", ""),
		"nested heredocs":   repeat("FROM a\nRUN <<a\n", "RUN <<b\n", "a\n"),
		"heredoc names":     repeat("FROM a\nCOPY ", "<<'a' ", "/\n"),
		"long heredoc name": repeat("FROM a\nRUN <<", "a", "\nb\n"),
		"quotes":            repeat("FROM a\nENV ", `"`, "\n"),
		"quotes in RUN":     repeat("FROM a\nRUN << ", `'"`, "\n"),
		"escapes":           repeat("FROM a\nENV a=", `\\`, "\n"),
		"brackets":          repeat("FROM a\nRUN ", "[", "\n"),
		"JSON":              repeat("FROM a\nRUN [", `"a",`, "\"a\"]\n"),
		"broken JSON":       repeat("FROM a\nRUN [", `"a",`, "]\n"),
		"flags":             repeat("FROM a\nRUN ", "--mount=x ", "\n"),
		"unknown flags":     repeat("FROM a\nRUN ", "--muont=x ", "\n"),
		"pairs":             repeat("FROM a\nENV ", "a=b ", "\n"),
		"words without =":   repeat("FROM a\nENV a=b ", "c ", "\n"),
		"arguments":         repeat("FROM a\nARG ", "a=b ", "\n"),
		"instructions":      repeat("FROM a\n", "USER x\n", ""),
		"triggers":          repeat("FROM a\n", "ONBUILD RUN x\n", ""),
		"nested triggers":   repeat("FROM a\n", "ONBUILD ", "RUN x\n"),
		"CRLF":              repeat("FROM a\r\n", "RUN x \\\r\n\r\n y\r\n", ""),
		"byte order marks":  repeat("", "\xef\xbb\xbf", "FROM a\n"),
		"mixed encodings":   repeat("FROM a\n", "# \xe9\xff \xc3\xa9\nRUN caf\xe9\n", ""),
		"zero bytes":        repeat("", "\x00\x01\x02", ""),
		"directives":        repeat("", "# escape=`\n", "FROM a\n"),
		"long words":        repeat("FROM a\nRUNN", "N", "\n"),
	}
}

// TestHostileIsLinear checks that no file takes more than time in proportion to
// its length, by files of one kind in two lengths.
func TestHostileIsLinear(t *testing.T) {
	const small, factor = 64 << 10, 12 // the larger ones are just below the longest line
	for name, file := range hostileFiles() {
		quick, slow, limit := time.Duration(0), time.Hour, time.Duration(0)
		for range 6 { // the best counts: the machine may be busy
			quick = max(quick, parseTime(t, name, file(small)))
			slow = min(slow, parseTime(t, name, file(small*factor)))
			// Twice as much as in proportion. Quadratic time would be factor
			// times as much.
			if limit = 2*factor*quick + 50*time.Millisecond; slow <= limit {
				break
			}
		}
		if slow > limit {
			t.Errorf("%s: %d bytes took %v, %d bytes %v: want at most %v", name, small, quick, small*factor, slow, limit)
		}
	}
}

// parseTime is the processor time that it takes to parse a text: what else the
// machine does is not in it, nor is collecting what other tests have left.
func parseTime(t *testing.T, name, text string) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	src := NewSource("Dockerfile", []byte(text))
	start := threadTime(t)
	_, err := Parse(src, DockerfileWords())
	took := threadTime(t) - start
	checkErrors(t, name, src, err)
	return took
}

func threadTime(t *testing.T) time.Duration {
	t.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &used); err != nil {
		t.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// checkErrors checks that errors are few and short and inside the file.
func checkErrors(t *testing.T, name string, src *Source, err error) {
	t.Helper()
	if err == nil {
		return
	}
	list, ok := err.(Errors) //nolint:errorlint // Parse promises this type
	if !ok || len(list) == 0 || len(list) > maxErrors {
		t.Fatalf("%s: error of type %T, %d errors", name, err, len(list))
	}
	for _, e := range list {
		if e.Span.Start < 0 || e.Span.Start > e.Span.End || e.Span.End > len(src.Data) {
			t.Fatalf("%s: error %q is at %v of %d bytes", name, e.Message, e.Span, len(src.Data))
		}
		if len(e.Error()) > 1000 {
			t.Fatalf("%s: error is %d bytes long: %.100s", name, len(e.Error()), e.Error())
		}
	}
}

// TestManyLines checks a file that is merely long, which is read.
func TestManyLines(t *testing.T) {
	const lines = 100_000
	text := "FROM a\n" + strings.Repeat("RUN echo a line of a usual length, of which there are many\n", lines)
	start := time.Now()
	file := mustParse(t, text)
	if n := len(file.Stages[0].Instructions); n != lines {
		t.Errorf("%d instructions, want %d", n, lines)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("%d lines took %v", lines, took)
	}
}

// TestTooLong checks what is longer than anything that is read.
func TestTooLong(t *testing.T) {
	for text, want := range map[string]string{
		"FROM a\nRUN " + strings.Repeat("x", 10<<20): "line is longer than 1048576 bytes",
		strings.Repeat("# x\n", 5<<20):               "file is 20971520 bytes long",
	} {
		_, err := Parse(NewSource("Dockerfile", []byte(text)), DockerfileWords())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}
