package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMaps bounds what is read of /proc/self/maps, in bytes.
const maxMaps = 4 << 20

// garbage is how much of it may grow before it is collected, in percent of what
// is in use. Clients and daemons allocate little but buffers, which are used
// again, so collecting twice as often as Go does costs hardly anything.
const garbage = 50

// Below these sizes of the heap, in bytes, nothing is collected. A collection
// takes milliseconds however little there is: two of them were half of what a
// daemon does for a build that is all cached, and a third of its client's time.
const (
	clientHeap = 10 << 20
	daemonHeap = 12 << 20
)

// goHeap is the size of the heap below which Go collects nothing at 100 percent,
// in bytes. It changes in proportion to the percentage, see runtime/mgcpacer.go.
const goHeap = 4 << 20

// economize has the program keep little garbage beyond a size of its heap,
// unless its environment says otherwise.
func economize(getenv func(string) string, heap uint64) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(patience(0, heap))
		afterCollection(heap)
	}
}

// afterCollection adjusts the percentage to what each collection leaves.
func afterCollection(heap uint64) {
	// The next collection finds this, which nobody else knows.
	runtime.AddCleanup(new([64]byte), func(heap uint64) {
		live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		if metrics.Read(live); live[0].Value.Kind() == metrics.KindUint64 {
			debug.SetGCPercent(patience(live[0].Value.Uint64(), heap))
		}
		afterCollection(heap)
	}, heap)
}

// patience is the percentage at which the next collection begins at a size of
// the heap, or later if that many bytes in use with their garbage are more.
func patience(live, heap uint64) int {
	percent := heap * 100 / goHeap
	if live > 0 {
		percent = min(percent, (max(live, heap)-live)*100/live)
	}
	return int(max(percent, garbage)) //nolint:gosec // at most what heap is of goHeap
}

// trimMemory gives back to the machine what the program does not need now: free
// memory of the heap, and pages of files.
func trimMemory() {
	debug.FreeOSMemory()
	forgetPages()
}

// forgetPages lets go of the pages of files in memory, the program's own and
// those of databases. Before main runs, every package has set itself up, which
// touches most of the program; what a client or a daemon then does needs half of
// that. What is needed comes back from the file, so a failure here does no harm.
func forgetPages() {
	// A part that was written to, as a loader does to a program that needs one,
	// would not come back as it was.
	if !selfContained("/proc/self/exe") {
		return
	}
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(io.LimitReader(f, maxMaps)); lines.Scan(); {
		if first, size, ok := readOnlyFile(lines.Text()); ok {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, first, size, unix.MADV_DONTNEED)
		}
	}
}

// What elf(5) calls EI_CLASS, ELFCLASS64, ET_EXEC and PT_INTERP, and the size of
// an Elf64_Phdr.
const (
	elfClass, elfClass64 = 4, 2
	elfFixed             = 2
	elfLoader            = 3
	elfSegment           = 56
)

// selfContained tells whether a program is an ELF file of 64 bits with a fixed
// place in memory and no loader: nothing was ever written to its parts that
// cannot be written.
func selfContained(program string) bool {
	f, err := os.Open(program)
	if err != nil {
		return false
	}
	defer f.Close()
	var header [4096]byte // of the file and of its segments
	n, err := io.ReadFull(f, header[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false
	}
	order := binary.NativeEndian
	if n < 64 || string(header[:4]) != "\x7fELF" || header[elfClass] != elfClass64 || order.Uint16(header[16:]) != elfFixed {
		return false
	}
	first, size, count := order.Uint64(header[32:]), order.Uint16(header[54:]), order.Uint16(header[56:])
	if size != elfSegment || first > uint64(n) || uint64(count)*elfSegment > uint64(n)-first {
		return false
	}
	for segment := range slices.Chunk(header[first:first+uint64(count)*elfSegment], elfSegment) {
		if order.Uint32(segment) == elfLoader {
			return false
		}
	}
	return true
}

// readOnlyFile tells where in memory a line of /proc/self/maps has a file that
// cannot be written to there, see proc_pid_maps(5).
func readOnlyFile(line string) (first, size uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 6 || !strings.HasPrefix(fields[5], "/") || fields[1][0] != 'r' || fields[1][1] == 'w' {
		return 0, 0, false
	}
	from, to, _ := strings.Cut(fields[0], "-")
	start, err := strconv.ParseUint(from, 16, 64)
	if err != nil {
		return 0, 0, false
	}
	end, err := strconv.ParseUint(to, 16, 64)
	if err != nil || end <= start {
		return 0, 0, false
	}
	return uintptr(start), uintptr(end - start), true
}
