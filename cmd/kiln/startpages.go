package main

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxMaps bounds what is read of /proc/self/maps, in bytes.
const maxMaps = 1 << 20

// forgetStartPages lets go of the program's pages in memory. Before main runs,
// every package has set itself up, which touches most of the program; what a
// client or a daemon then does needs half of that. What is needed comes back
// from the file, so a failure here does no harm.
func forgetStartPages() {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return
	}
	defer f.Close()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	for lines := bufio.NewScanner(io.LimitReader(f, maxMaps)); lines.Scan(); {
		if first, size, ok := unwritten(lines.Text(), program); ok {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, first, size, unix.MADV_DONTNEED)
		}
	}
}

// unwritten tells where in memory a line of /proc/self/maps, proc_pid_maps(5),
// has a part of program that cannot have been written to.
func unwritten(line, program string) (first, size uintptr, ok bool) {
	fields := strings.Fields(line)
	if len(fields) != 6 || fields[5] != program || strings.Contains(fields[1], "w") {
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
