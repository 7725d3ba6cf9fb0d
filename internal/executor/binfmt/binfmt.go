// Package binfmt finds the platforms whose programs this machine runs: the
// processor's own, and those that an emulator is registered for with the
// kernel (binfmt_misc, see the kernel's Documentation/admin-guide/binfmt-misc.rst).
//
// It promises to list a platform only if a container of it would run: an
// emulator counts if the kernel holds it open (flag F), since a container does
// not have its file. It sits beside the executors, which need do nothing for
// emulation: the kernel does it.
package binfmt

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Dir is where the kernel's register of emulators is mounted.
const Dir = "/proc/sys/fs/binfmt_misc"

// maxEntry bounds what is read of an entry, and of /proc/cpuinfo's first part.
const maxEntry = 64 << 10

// Detector knows the machine's platforms. It may be used concurrently.
type Detector struct {
	// Dir is the register; "" is [Dir].
	Dir string
	// MaxAge is how long what was found holds; negative holds for ever.
	MaxAge time.Duration

	mu       sync.Mutex
	found    []ocispecs.Platform
	at       time.Time
	variants []string // of the processor, which stays the same; nil before they are read
}

// machine is what tells the programs of an architecture: fields of the ELF
// header, from the ELF specification's list of machines.
type machine struct {
	arch   string
	number uint16 // e_machine
	bits   int
	big    bool // endian
}

// machines are in the order in which BuildKit lists them.
func machines() []machine {
	return []machine{
		{"amd64", 62, 64, false}, {"arm64", 183, 64, false}, {"riscv64", 243, 64, false}, {"ppc64", 21, 64, true},
		{"ppc64le", 21, 64, false}, {"s390x", 22, 64, true}, {"386", 3, 32, false}, {"mips64le", 8, 64, false},
		{"mips64", 8, 64, true}, {"loong64", 258, 64, false}, {"arm", 40, 32, false},
	}
}

// Platforms lists what runs here, the processor's own first.
func (d *Detector) Platforms() []ocispecs.Platform {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found == nil || d.MaxAge >= 0 && time.Since(d.at) >= d.MaxAge {
		d.found, d.at = d.detect(), time.Now()
	}
	return slices.Clone(d.found)
}

// detect looks for what runs here. The caller holds d.mu.
func (d *Detector) detect() []ocispecs.Platform {
	own := platforms.Normalize(platforms.DefaultSpec())
	own.OSVersion, own.OSFeatures = "", nil
	all := []ocispecs.Platform{own}
	dir := d.Dir
	if dir == "" {
		dir = Dir
	}
	emulators := readEmulators(dir)
	for _, m := range machines() {
		switch {
		case m.arch == own.Architecture && m.arch == "amd64":
			if d.variants == nil {
				d.variants = append([]string{}, amd64Variants()...)
			}
			for _, v := range d.variants {
				all = append(all, ocispecs.Platform{OS: "linux", Architecture: "amd64", Variant: v})
			}
		case m.arch == own.Architecture:
		case !compatible(own.Architecture, m.arch) && !slices.ContainsFunc(emulators, func(e emulator) bool { return e.takes(m.header()) }):
		case m.arch == "arm":
			all = append(all, ocispecs.Platform{OS: "linux", Architecture: "arm", Variant: "v7"},
				ocispecs.Platform{OS: "linux", Architecture: "arm", Variant: "v6"})
		default:
			all = append(all, ocispecs.Platform{OS: "linux", Architecture: m.arch})
		}
	}
	return all
}

// header is the beginning of a program of the architecture.
func (m machine) header() []byte {
	h := make([]byte, 64)
	copy(h, "\x7fELF")
	h[4], h[5], h[6] = byte(m.bits/32), 1, 1
	order := binary.ByteOrder(binary.LittleEndian)
	if m.big {
		h[5], order = 2, binary.BigEndian
	}
	order.PutUint16(h[16:], 2) // an executable
	order.PutUint16(h[18:], m.number)
	order.PutUint32(h[20:], 1)
	return h
}

// emulator is an entry of the register: it takes programs that begin with
// magic, in the bits of mask.
type emulator struct {
	offset      int
	magic, mask []byte
}

func (e emulator) takes(header []byte) bool {
	if e.offset < 0 || e.offset+len(e.magic) > len(header) || len(e.magic) == 0 {
		return false
	}
	for i, b := range e.magic {
		m := byte(0xff)
		if i < len(e.mask) {
			m = e.mask[i]
		}
		if header[e.offset+i]&m != b&m {
			return false
		}
	}
	return true
}

// readEmulators reads the register. One that is not there has no entries.
func readEmulators(dir string) (out []emulator) {
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil || strings.TrimSpace(string(status)) != "enabled" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, entry := range entries {
		f, err := os.Open(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue // "register" can only be written
		}
		if e, ok := parseEmulator(io.LimitReader(f, maxEntry)); ok {
			out = append(out, e)
		}
		_ = f.Close() // it was read
	}
	return out
}

// parseEmulator reads an entry. It is not ok if it is turned off, goes by a
// file's name, or has its interpreter in the container.
func parseEmulator(r io.Reader) (e emulator, ok bool) {
	lines := bufio.NewScanner(r)
	enabled, fixed := false, false
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), " ")
		var err error
		switch key {
		case "enabled":
			enabled = true
		case "flags:":
			fixed = strings.Contains(value, "F")
		case "offset":
			for _, c := range value {
				if c < '0' || c > '9' || e.offset > maxEntry {
					return e, false
				}
				e.offset = e.offset*10 + int(c-'0')
			}
		case "magic":
			e.magic, err = hex.DecodeString(value)
		case "mask":
			e.mask, err = hex.DecodeString(value)
		}
		if err != nil {
			return e, false
		}
	}
	return e, enabled && fixed && len(e.magic) > 0 && lines.Err() == nil
}

// amd64Variants are the levels of the x86-64 psABI above the first that the
// processor has, "v2" first.
func amd64Variants() []string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return nil
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEntry))
	if err != nil {
		return nil
	}
	return variantsOf(text)
}

func variantsOf(cpuinfo []byte) (variants []string) {
	var flags []string
	for line := range bytes.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(key) == "flags" {
			flags = strings.Fields(value)
			break
		}
	}
	for _, level := range []struct {
		name  string
		flags string // by the kernel's names
	}{
		{"v2", "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3"},
		{"v3", "avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"},
		{"v4", "avx512f avx512bw avx512cd avx512dq avx512vl"},
	} {
		for want := range strings.FieldsSeq(level.flags) {
			if !slices.Contains(flags, want) {
				return variants
			}
		}
		variants = append(variants, level.name)
	}
	return variants
}
