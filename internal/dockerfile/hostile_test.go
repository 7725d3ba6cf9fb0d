package dockerfile

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/frontend"
)

// hostileBuilds are files whose lowering is to cost as much as it can, by how
// many parts they have.
func hostileBuilds() map[string]func(n int) (file, ignore string) {
	list := func(n int, format string) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	return map[string]func(n int) (string, string){
		"unset variables beside set ones": func(n int) (string, string) {
			return "FROM alpine\nENV a=b" + list(n, " VARIABLE_%d=x") + "\nWORKDIR /" + list(n, "$VARIABL_%d") + "\n", ""
		},
		"unset variables beside arguments": func(n int) (string, string) {
			return "FROM alpine\nARG a" + list(n, " VARIABLE_%d") + "\nWORKDIR /" + list(n, "$VARIABL_%d") + "\n", ""
		},
		"sources beside ignored ones": func(n int) (string, string) {
			return "FROM alpine\nCOPY " + list(n, "source%d ") + "/\n", list(n, "ignored%d/**/x*\n")
		},
		"stages beside stages": func(n int) (string, string) {
			return list(n, "FROM alpine AS stage%d\n") + "FROM alpine\n" + list(n, "COPY --from=stage%d /a /\n"), ""
		},
		"mounts": func(n int) (string, string) {
			return "FROM alpine\nRUN " + list(n, "--mount=type=tmpfs,target=/t%d ") + "true\n", ""
		},
		"labels set again": func(n int) (string, string) { return "FROM alpine\n" + strings.Repeat("LABEL a=b\n", n), "" },
		"variables set again": func(n int) (string, string) {
			return "FROM alpine\n" + strings.Repeat("ENV a=$a b=$b\n", n), ""
		},
		"patterns": func(n int) (string, string) {
			return "FROM alpine\nENV A=" + strings.Repeat("a", n) + "\nWORKDIR /${A##" + strings.Repeat("*a", 40) + "b}\n", ""
		},
		"paths with ..": func(n int) (string, string) {
			return "FROM alpine\nCOPY " + strings.Repeat("../", n) + "etc/passwd " + strings.Repeat("../", n) + "x\n", ""
		},
	}
}

// TestHostileLowering checks that lowering takes time in proportion to the file.
func TestHostileLowering(t *testing.T) {
	const small, factor = 400, 12
	for name, file := range hostileBuilds() {
		quick, slow, limit := time.Duration(0), time.Hour, time.Duration(0)
		for range 6 {
			quick, slow = max(quick, lowerTime(t, file, small)), min(slow, lowerTime(t, file, small*factor))
			if limit = 2*factor*quick + 150*time.Millisecond; slow <= limit {
				break
			}
		}
		if slow > limit {
			t.Errorf("%s: %d took %v, %d took %v: want at most %v", name, small, quick, small*factor, slow, limit)
		}
	}
}

// lowerTime is the processor time that a build's lowering takes.
func lowerTime(t *testing.T, file func(int) (string, string), n int) time.Duration {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	text, ignore := file(n)
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": text, "context/.dockerignore": ignore})
	clock := func() time.Duration {
		var used unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &used); err != nil {
			t.Fatal(err)
		}
		return time.Duration(used.Utime.Nano() + used.Stime.Nano())
	}
	runtime.GC() // collecting what others have left is not this build's time
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	start := clock()
	_, err := build(t, gw, nil)
	took := clock() - start
	if err != nil && len(frontend.SourceErrorsIn(err)) == 0 {
		t.Fatalf("error without a place: %v", err)
	}
	return took
}

// TestMultiplied checks that what a few lines multiply ends in an error, soon.
func TestMultiplied(t *testing.T) {
	var triggers strings.Builder
	triggers.WriteString("FROM alpine AS s\n" + strings.Repeat("ONBUILD LABEL a=b\n", 3000))
	for i := range 3000 {
		fmt.Fprintf(&triggers, "FROM s AS t%d\n", i)
	}
	triggers.WriteString("FROM alpine\n")
	for i := range 3000 {
		fmt.Fprintf(&triggers, "COPY --from=t%d /a /\n", i)
	}
	for name, text := range map[string]string{
		"ports":    "FROM alpine\n" + strings.Repeat("EXPOSE 1-65535\n", 5000),
		"triggers": triggers.String(),
	} {
		start := time.Now()
		_, err := build(t, newFakeGateway(map[string]string{"dockerfile/Dockerfile": text}), nil)
		var at *frontend.SourceError
		if !errors.As(err, &at) || !strings.Contains(err.Error(), "grows to more than") {
			t.Errorf("%s: error %.300v", name, err)
		}
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("%s took %v", name, took)
		}
	}
}

// TestPathsStayInside checks that ".." leads nowhere above the context, nor above
// the root of the image.
func TestPathsStayInside(t *testing.T) {
	gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": "FROM alpine\nWORKDIR ../../w\nCOPY ../../etc/passwd ../../../x/../../y\n" +
		"COPY --parents ./../a/./../../b /\nRUN --mount=source=../../c,target=../../m true\n"})
	res, err := build(t, gw, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := res.Platforms[0].Graph.Text()
	for _, want := range []string{"mkdir /w ", "copy %2:/etc/passwd /y ", `follow="etc/passwd"`, "mount %2:/c /m"} {
		if !strings.Contains(text, want) {
			t.Errorf("the graph lacks %q", want)
		}
	}
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 0 && strings.Contains(line, "..") && !strings.Contains(line, "name=") && !strings.HasPrefix(line, "source-file") {
			t.Errorf("there is a path with .. in %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}
