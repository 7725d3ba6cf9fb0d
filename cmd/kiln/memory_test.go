package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// TestSelfContained compiles a program in two ways.
func TestSelfContained(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\nfunc main() {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[string]bool{"exe": true, "pie": false} {
		program := filepath.Join(dir, mode)
		c := exec.Command("go", "build", "-buildmode="+mode, "-o", program, source)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := selfContained(program); got != want {
			t.Errorf("-buildmode=%s: got %v, want %v", mode, got, want)
		}
	}
	for name, text := range map[string]string{"empty": "", "short": "\x7fELF\x02", "script": "#!/bin/sh\n" + string(make([]byte, 100))} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if selfContained(filepath.Join(dir, name)) {
			t.Errorf("%s: is no program", name)
		}
	}
}

// TestEconomize checks that collections set the pace of the next ones, and that
// an environment which says something is left to it.
func TestEconomize(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	economize(func(string) string { return "70" }, clientHeap)
	if now := debug.SetGCPercent(100); now != 100 {
		t.Fatalf("GOGC=70: the program itself set %d percent", now)
	}
	economize(func(string) string { return "" }, 1) // less than is in use
	var now int
	for range 1000 { // cleanups run beside the program, after a collection
		runtime.GC()
		now = debug.SetGCPercent(1000)
		if now == garbage {
			return
		}
	}
	t.Errorf("after collections: %d percent, want %d", now, garbage)
}

func TestPatience(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		live, heap uint64
		want       int
	}{
		{0, 8 * mib, 200}, // goHeap in proportion: 8 MiB
		{mib, 12 * mib, 300},
		{3 * mib, 12 * mib, 300},
		{4 * mib, 12 * mib, 200}, // 4 and twice as much
		{6 * mib, 12 * mib, 100},
		{8 * mib, 12 * mib, 50},
		{10 * mib, 12 * mib, garbage},
		{500 * mib, 12 * mib, garbage},
	} {
		if got := patience(c.live, c.heap); got != c.want {
			t.Errorf("%d in use, heap of %d: %d percent, want %d", c.live, c.heap, got, c.want)
		}
	}
}

// buildTags are those that `make` builds with.
const buildTags = "grpcnotrace,urfave_cli_no_template"

// TestStartsLight lists packages that the program has a small piece of code in
// place of: each set itself up whenever any command was run, or has the linker
// keep all methods there are.
func TestStartsLight(t *testing.T) {
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil || !strings.Contains(string(makefile), "-tags="+buildTags+" ") {
		t.Fatalf("the Makefile does not build with the tags %s: %v", buildTags, err)
	}
	out, err := exec.Command("go", "list", "-tags="+buildTags, "-deps", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	linked := strings.Fields(string(out))
	if !slices.Contains(linked, "runtime/debug") {
		t.Fatalf("this is no list of the program's packages: %.200s", out)
	}
	for _, heavy := range []string{"encoding/gob", "expvar", "text/template"} {
		if slices.Contains(linked, heavy) {
			t.Errorf("%s is part of the program: write what is needed of it", heavy)
		}
	}
}

func TestReadOnlyFile(t *testing.T) {
	for _, c := range []struct {
		line        string
		first, size uintptr
	}{
		{"00400000-01000000 r-xp 00000000 fe:00 123    /usr/bin/kiln", 0x400000, 0xc00000},
		{"01000000-01002000 r--p 00c00000 fe:00 123    /usr/bin/kiln", 0x1000000, 0x2000},
		{"01002000-01003000 rw-p 00c02000 fe:00 123    /usr/bin/kiln", 0, 0},
		{"7f0000000000-7f0000001000 r--s 00000000 fe:00 9    /var/lib/a folder/kiln.db (deleted)", 0x7f0000000000, 0x1000},
		{"7f0000000000-7f0000001000 rw-s 00000000 fe:00 9    /var/lib/kiln.db", 0, 0},
		{"7ffd0f5f9000-7ffd0f5fb000 r-xp 00000000 00:00 0    [vdso]", 0, 0},
		{"7ffd0f5f9000-7ffd0f5fb000 r-xp 00000000 00:00 0", 0, 0},
		{"c000000000-c000400000 ---p 00000000 00:00 0", 0, 0},
		{"01000000-00400000 r-xp 00000000 fe:00 123    /usr/bin/kiln", 0, 0},
		{"junk", 0, 0},
	} {
		first, size, ok := readOnlyFile(c.line)
		if first != c.first || size != c.size || ok != (c.size > 0) {
			t.Errorf("%q: got %#x, %#x, %v; want %#x, %#x", c.line, first, size, ok, c.first, c.size)
		}
	}
}
