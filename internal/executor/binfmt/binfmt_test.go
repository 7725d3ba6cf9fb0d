package binfmt

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/platforms"
)

// Entries as qemu's packages register them.
const (
	aarch64 = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n" +
		"magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
	s390x = "enabled\ninterpreter /usr/bin/qemu-s390x-static\nflags: F\noffset 0\n" +
		"magic 7f454c4602020100000000000000000000020016\nmask ffffffffffffff00fffffffffffffffffffeffff\n"
	arm = "enabled\ninterpreter /usr/bin/qemu-arm-static\nflags: POCF\noffset 0\n" +
		"magic 7f454c4601010100000000000000000002002800\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
	riscv64 = "enabled\ninterpreter /usr/bin/qemu-riscv64-static\nflags: F\noffset 0\n" +
		"magic 7f454c460201010000000000000000000200f300\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
)

func register(t *testing.T, entries map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if entries["status"] == "" {
		entries["status"] = "enabled\n"
	}
	for name, text := range entries {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func emulated(dir string) (out []string) {
	list := (&Detector{Dir: dir}).Platforms()
	for _, p := range list {
		if p.Architecture != runtime.GOARCH && p.Architecture != "386" {
			out = append(out, platforms.Format(p))
		}
	}
	return out
}

func TestEmulators(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Fatalf("this test names the platforms that are foreign on amd64; on %s others are", runtime.GOARCH)
	}
	for name, tc := range map[string]struct {
		entries map[string]string
		want    []string
	}{
		"none": {map[string]string{}, nil},
		"in BuildKit's order": {
			map[string]string{"qemu-s390x": s390x, "qemu-arm": arm, "qemu-aarch64": aarch64, "qemu-riscv64": riscv64},
			[]string{"linux/arm64", "linux/riscv64", "linux/s390x", "linux/arm/v7", "linux/arm/v6"},
		},
		"all turned off": {map[string]string{"status": "disabled\n", "qemu-arm": arm}, nil},
		"one turned off": {map[string]string{"x": strings.Replace(aarch64, "enabled", "disabled", 1)}, nil},
		"not held open":  {map[string]string{"x": strings.Replace(aarch64, "OCF", "OC", 1)}, nil},
		"by name":        {map[string]string{"x": "enabled\ninterpreter /bin/x\nflags: F\nextension .py\n"}, nil},
		"a script's":     {map[string]string{"x": "enabled\ninterpreter /bin/x\nflags: F\noffset 0\nmagic 2321\n"}, nil},
		"bad digits":     {map[string]string{"x": strings.Replace(aarch64, "magic 7f", "magic zz", 1)}, nil},
		"bad offset":     {map[string]string{"x": strings.Replace(aarch64, "offset 0", "offset -1", 1)}, nil},
		"far offset":     {map[string]string{"x": strings.Replace(aarch64, "offset 0", "offset 99999999999999999999", 1)}, nil},
		"other endian":   {map[string]string{"x": strings.Replace(aarch64, "4602010100", "4602020100", 1)}, nil},
		"without a mask": {map[string]string{"x": strings.Split(aarch64, "mask")[0]}, []string{"linux/arm64"}},
	} {
		if got := emulated(register(t, tc.entries)); !slices.Equal(got, tc.want) {
			t.Errorf("%s: found %v, want %v", name, got, tc.want)
		}
	}
	if got := emulated(filepath.Join(t.TempDir(), "none")); got != nil {
		t.Errorf("without a register %v is found", got)
	}
}

func TestOwn(t *testing.T) {
	list := (&Detector{Dir: t.TempDir()}).Platforms()
	if own := list[0]; own.OS != "linux" || own.Architecture != runtime.GOARCH || own.OSVersion != "" {
		t.Errorf("the first platform is %+v", own)
	}
}

func TestVariants(t *testing.T) {
	const two, three = "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3", " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
	for flags, want := range map[string][]string{
		"fpu":       nil,
		two:         {"v2"},
		three:       nil,
		two + three: {"v2", "v3"},
		two + three + " avx512f avx512bw avx512cd avx512dq avx512vl": {"v2", "v3", "v4"},
	} {
		if got := variantsOf([]byte("processor\t: 0\nflags\t\t: " + flags + "\nprocessor : 1\nflags : all\n")); !slices.Equal(got, want) {
			t.Errorf("%q gives %v, want %v", flags, got, want)
		}
	}
}

// TestProbe runs a program that the kernel must be able to run, one that fails,
// and what is none.
func TestProbe(t *testing.T) {
	shell, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if runs([]byte("no program")) || runs(shell[:100]) {
		t.Error("what is no program runs")
	}
	var m machine
	for _, x := range machines() {
		if x.arch == "386" {
			m = x
		}
	}
	if runtime.GOARCH == "amd64" && runs(m.program([]byte{0x0f, 0x0b})) {
		t.Error("a program that crashes runs well")
	}
}

func TestAge(t *testing.T) {
	dir := register(t, map[string]string{})
	for age, later := range map[int]int{-1: 0, 0: 1} {
		d := &Detector{Dir: dir, MaxAge: 0}
		if age < 0 {
			d.MaxAge = -1
		}
		if err := os.RemoveAll(filepath.Join(dir, "qemu")); err != nil {
			t.Fatal(err)
		}
		before := len(d.Platforms())
		if err := os.WriteFile(filepath.Join(dir, "qemu"), []byte(riscv64), 0o600); err != nil {
			t.Fatal(err)
		}
		if n := len(d.Platforms()) - before; n != later {
			t.Errorf("with age %d, %d platforms came later, want %d", age, n, later)
		}
	}
}
