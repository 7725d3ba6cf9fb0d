package namespace

import (
	"bytes"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reapEvery is how long an ended process must be left alone to count as
// nobody's. Those that the program started itself are waited for at once.
const reapEvery = 10 * time.Second

// reapOrphans waits for processes whose parent has ended. They are given to
// the first process of a PID namespace, and stay in the process table until it
// asks for them. It works only while children end.
func reapOrphans() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	for range ended {
		before := endedChildren("/proc", os.Getpid())
		time.Sleep(reapEvery)
		after := endedChildren("/proc", os.Getpid())
		for pid := range after {
			if before[pid] {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil) // gone already is as good
			}
		}
		if len(after) > 0 {
			select { // look once more, if no child ends until then
			case ended <- unix.SIGCHLD:
			default:
			}
		}
	}
}

// endedChildren are the children of a process that have ended and that nobody
// has waited for, by their number.
func endedChildren(proc string, parent int) map[int]bool {
	children := map[int]bool{}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return children
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile(proc + "/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// pid (name) state parent ...; a name may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[0] == "Z" && fields[1] == strconv.Itoa(parent) {
			children[pid] = true
		}
	}
	return children
}
