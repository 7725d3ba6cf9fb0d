package main

import (
	"bufio"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMaps bounds what is read of /proc/self/smaps, in bytes.
const maxMaps = 4 << 20

// garbage is how much of it may grow before it is collected, in percent of what
// is in use. Clients and daemons allocate little but buffers, which are used
// again, so collecting twice as often as Go does costs hardly anything.
const garbage = 50

// economize has the program keep little garbage, unless its environment says
// otherwise.
func economize(getenv func(string) string) {
	if getenv("GOGC") == "" {
		debug.SetGCPercent(garbage)
	}
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
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	var first, size uintptr
	var ok bool
	for lines := bufio.NewScanner(io.LimitReader(f, maxMaps)); lines.Scan(); {
		switch anonymous, found := strings.CutPrefix(lines.Text(), "Anonymous:"); {
		case strings.Contains(lines.Text(), "-"):
			first, size, ok = readOnlyFile(lines.Text())
		case found && ok && strings.TrimSpace(anonymous) == "0 kB":
			// A part that was written to, as a loader does to a program whose
			// place in memory is not fixed, would not come back as it was.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, first, size, unix.MADV_DONTNEED)
		}
	}
}

// readOnlyFile tells where in memory a line of /proc/self/smaps has a file that
// cannot be written to there, see proc_pid_maps(5). Lines of other kinds, which
// say how much there is of something, have none.
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
