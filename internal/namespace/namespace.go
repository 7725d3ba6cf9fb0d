// Package namespace moves the daemon into namespaces of its own, before it
// does anything else.
//
// [Enter] runs the program again: the outer process stays to pass signals in
// and the exit code out; the inner one is the daemon. As root it has its own
// mount and PID namespaces; as a plain user a user namespace too, in which it
// is root. Mounts that it makes are seen by nobody else. All that it starts is
// in its PID namespace, of which it is the first process: when it ends in any
// way, by kill -9 also, the kernel ends every container and drops every mount.
// It ends itself when the outer process does.
//
// What could not be had is told in [Info], never passed over in silence.
// The package imports nothing of the project; the daemon hands what it learns
// here to the executor and the snapshotter.
package namespace

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Options changes what Enter makes. The zero value is right for a daemon.
type Options struct {
	// SingleID maps one user id even where more are to be had.
	SingleID bool
	// SharedPIDs makes no PID namespace.
	SharedPIDs bool
	// Apart, if not nil, is called in the outer process once the inner one is on
	// its way, which then does not wait for it.
	Apart func()
}

// Info is what the inner process knows of where it is.
type Info struct {
	// Rootless says that it is root only in a user namespace.
	Rootless bool
	// SingleID says that this namespace has one user id and one group id.
	SingleID bool
	// OwnPIDs says that it has a PID namespace of its own.
	OwnPIDs bool
	// UID and GID are the ids outside of who started the program.
	UID, GID int
	// PID is the outer process's, as others outside see it: the one to send
	// signals to.
	PID int
	// Notices are sentences for the user on what is limited here.
	Notices []string

	notify *os.File // leads to the outer process; nil outside of namespaces
}

// Notify tells the service manager of a state, such as "READY=1", sd_notify(3).
// It is the outer process that does: the manager believes only the one that it
// started. Without a manager nothing is done.
func (i Info) Notify(state string) error {
	if i.notify == nil {
		return nil
	}
	if strings.ContainsRune(state, '\n') {
		return fmt.Errorf("notify the service manager: %q is more than one line", state)
	}
	if _, err := i.notify.WriteString(state + "\n"); err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}

// variable carries a stage's message to the next process. It is removed from
// the environment before Enter returns.
const variable = "KILN_NAMESPACE"

// stages of the inner process.
const (
	stageMap  = "map"  // wait for the id map, then run again to become root by it
	stageRoot = "root" // set up and go on
)

// settled is what the inner process reports when all went well.
const settled = "ok\n"

// message is the value of variable.
type message struct {
	Stage string
	Info  Info
}

// numbers of the inner process's files, after those of socket activation.
type pipes struct {
	hold   int // ends when the outer process does, and says when ids are mapped
	report int // takes the outcome of the set-up, then lines for the service manager
}

// Enter moves the program into its namespaces. In the outer process it does
// not return unless that is impossible; in the inner one it returns what was
// reached. It must be called before the program starts goroutines or reads its
// user's id.
func Enter(opts Options) (Info, error) {
	text, inner := os.LookupEnv(variable)
	if !inner {
		return Info{}, outer(opts)
	}
	var m message
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return Info{}, fmt.Errorf("read %s: %w: it is for the program's own use, unset it", variable, err)
	}
	if err := os.Unsetenv(variable); err != nil {
		return Info{}, fmt.Errorf("enter namespaces: %w", err)
	}
	p := pipes{hold: 3 + activationFiles(m.Info.PID)}
	p.report = p.hold + 1
	unix.CloseOnExec(p.hold)
	unix.CloseOnExec(p.report)
	if m.Stage == stageMap {
		return Info{}, becomeRoot(m, p)
	}
	if err := settle(&m.Info, p); err != nil {
		return Info{}, err
	}
	return m.Info, nil
}

// activationFiles is how many open files a service manager hands to the
// process pid, sd_listen_fds(3).
func activationFiles(pid int) int {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(pid) {
		return 0
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > 128 {
		return 0
	}
	return n
}

// becomeRoot waits until the outer process has written the id maps and runs the
// program once more: the kernel gives root's rights to a program that starts
// with user id 0, and this one started before it had one.
func becomeRoot(m message, p pipes) error {
	buf := make([]byte, 1)
	if n, err := unix.Read(p.hold, buf); n != 1 {
		return fmt.Errorf("wait for the id map: the first process ended: %w", errors.Join(err, unix.EPIPE))
	}
	m.Stage = stageRoot
	env, err := m.environ()
	if err != nil {
		return err
	}
	for _, fd := range []int{p.hold, p.report} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0); err != nil {
			return fmt.Errorf("keep pipe: %w", err)
		}
	}
	err = unix.Exec("/proc/self/exe", os.Args, env)
	return fmt.Errorf("run the program again as root of its namespace: %w", err)
}

// settle makes the namespaces the process's own.
func settle(info *Info, p pipes) error {
	// The kernel forgets this when a program that gains rights starts.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return fmt.Errorf("end with the first process: %w", err)
	}
	err := settleMounts(info)
	if err == nil && activationFiles(info.PID) > 0 {
		err = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	text := settled
	if err != nil {
		text = err.Error()
	}
	if _, werr := unix.Write(p.report, []byte(text)); err == nil && werr != nil {
		err = fmt.Errorf("report to the first process: %w", werr)
	}
	if err != nil {
		unix.Close(p.report)
		return err
	}
	if os.Getenv(notifySocket) == "" {
		unix.Close(p.report)
	} else {
		info.notify = os.NewFile(uintptr(p.report), "notify")
	}
	if err := unix.SetNonblock(p.hold, true); err != nil { // so that no thread waits in it
		return fmt.Errorf("watch the first process: %w", err)
	}
	go endWithOuter(os.NewFile(uintptr(p.hold), "hold"))
	if info.OwnPIDs {
		go reapOrphans()
	}
	return nil
}

func settleMounts(info *Info) error {
	// Mounts made outside are still seen here, ours are not seen there.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w%s", err, restriction(err))
	}
	if !info.OwnPIDs {
		return nil
	}
	emulators := openEmulators()
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	mountEmulators(emulators, info.Rootless)
	return nil
}

// binfmtMisc is the kernel's register of emulators, which is a mount within
// /proc and so hidden by another one.
const binfmtMisc = "/proc/sys/fs/binfmt_misc"

// openEmulators takes hold of the register as a mount that is nowhere yet; -1 is
// none.
func openEmulators() int {
	var fs unix.Statfs_t
	if unix.Statfs(binfmtMisc, &fs) != nil || fs.Type != unix.BINFMTFS_MAGIC {
		return -1
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, binfmtMisc, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1
	}
	return fd
}

// mountEmulators makes the register be seen again. Where that fails, no
// emulators are found, and the daemon says which platforms it has.
func mountEmulators(fd int, rootless bool) {
	if fd >= 0 {
		_ = unix.MoveMount(fd, "", unix.AT_FDCWD, binfmtMisc, unix.MOVE_MOUNT_F_EMPTY_PATH)
		_ = unix.Close(fd)
		return
	}
	if !rootless { // in a user namespace it would be another, empty one
		_ = unix.Mount("binfmt_misc", binfmtMisc, "binfmt_misc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
	}
}

// endWithOuter ends the process when the outer one ends. The kernel does so
// too, but for a moment at the start.
func endWithOuter(hold *os.File) {
	_, _ = io.Copy(io.Discard, hold) // any end is its end
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	os.Exit(128 + int(unix.SIGKILL)) // the first process of a namespace does not hear its own SIGKILL
}

// restriction explains a refusal that is not the kernel's usual one.
func restriction(err error) string {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return ""
	}
	on, readErr := os.ReadFile("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
	if readErr == nil && strings.TrimSpace(string(on)) == "1" {
		return ": AppArmor takes user namespaces from this program; " +
			"set the sysctl kernel.apparmor_restrict_unprivileged_userns to 0, or run as root"
	}
	return ": this process may not mount; a container around it must be privileged"
}

// environ is this process's environment with a message in it.
func (m message) environ() ([]string, error) {
	text, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", variable, err)
	}
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, variable+"=") {
			env = append(env, e)
		}
	}
	return append(env, variable+"="+string(text)), nil
}
