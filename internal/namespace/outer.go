package namespace

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxReport bounds what the inner process says of its set-up.
const maxReport = 4096

// errNoPIDs says that the machine gives no PID namespace with a /proc, as
// within a container that hides parts of /proc.
var errNoPIDs = errors.New("no PID namespace with its own /proc")

// errNoMap says that the subordinate ids could not be mapped.
var errNoMap = errors.New("map subordinate ids")

// outer starts the inner process and stands in for it until it ends. It
// returns only when there is no inner process.
func outer(opts Options) error {
	// The kernel ends the inner process when the thread that started it ends.
	runtime.LockOSThread()
	info := Info{UID: os.Getuid(), GID: os.Getgid(), PID: os.Getpid(), OwnPIDs: !opts.SharedPIDs}
	ids, err := chooseIDs(&info, opts)
	if err != nil {
		return err
	}
	if info.UID == 0 {
		if err := shareCgroups(unifiedCgroups); err != nil {
			info.Notices = append(info.Notices, fmt.Sprintf("Containers may have no limits here (%v).", err))
		}
	}
	var activation []*os.File
	for n := range activationFiles(info.PID) {
		activation = append(activation, os.NewFile(uintptr(3+n), "activation"))
	}
	in, err := start(info, ids, activation)
	if errors.Is(err, errNoMap) {
		info.limitIDs(strings.TrimPrefix(err.Error(), errNoMap.Error()+": "))
		ids.helper = false
		in, err = start(info, ids, activation)
	}
	if errors.Is(err, errNoPIDs) {
		info.OwnPIDs = false
		info.Notices = append(info.Notices, "Here no PID namespace can be had ("+strings.TrimPrefix(err.Error(), errNoPIDs.Error()+": ")+
			"): containers outlive a daemon that is killed with SIGKILL.")
		in, err = start(info, ids, activation)
	}
	if err != nil {
		return err
	}
	for _, f := range activation {
		f.Close() // the inner process has them now
	}
	if opts.Apart != nil {
		opts.Apart()
	}
	in.standIn()
	return nil
}

// inner is the process in the namespaces.
type inner struct {
	cmd     *exec.Cmd
	hold    *os.File
	signals chan os.Signal
}

// start starts the inner process and waits for its set-up.
func start(info Info, ids idPlan, activation []*os.File) (*inner, error) {
	hold, holdEnd, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	defer hold.Close()
	report, reportEnd, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make pipe: %w", err)
	}
	m := message{Stage: stageRoot, Info: info}
	if ids.helper {
		m.Stage = stageMap
	}
	env, err := m.environ()
	if err != nil {
		return nil, err
	}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: os.Args, Env: env,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS,
			Pdeathsig:  syscall.SIGKILL,
			Setpgid:    true, // a terminal's Ctrl-C comes once, through the outer process
		},
	}
	cmd.ExtraFiles = append(slices.Clone(activation), hold, reportEnd)
	if info.OwnPIDs {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWPID
	}
	ids.apply(cmd.SysProcAttr)

	in := &inner{cmd: cmd, hold: holdEnd, signals: make(chan os.Signal, 16)}
	signal.Notify(in.signals, forwarded()...)
	err = cmd.Start()
	reportEnd.Close()
	if err != nil {
		signal.Stop(in.signals)
		holdEnd.Close()
		report.Close()
		return nil, startError(err, info, ids)
	}
	if err := in.settle(ids, report); err != nil {
		signal.Stop(in.signals)
		holdEnd.Close()
		report.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed: how it ended says nothing
		return nil, err
	}
	go passNotices(report)
	return in, nil
}

// settle maps the ids and hears how the set-up went.
func (in *inner) settle(ids idPlan, report io.Reader) error {
	if ids.helper {
		if err := ids.write(in.cmd.Process.Pid); err != nil {
			return err
		}
		if _, err := in.hold.Write([]byte{1}); err != nil {
			return fmt.Errorf("tell of the id map: %w", err)
		}
	}
	text, err := readReport(report)
	switch {
	case err != nil:
		return fmt.Errorf("hear from the inner process: %w", err)
	case string(text) == settled:
		return nil
	case strings.HasPrefix(string(text), "mount /proc:"):
		return fmt.Errorf("%w: %s", errNoPIDs, text)
	case len(text) == 0:
		return errors.New("enter namespaces: the inner process ended before it was set up")
	}
	return fmt.Errorf("enter namespaces: %s", text)
}

// readReport reads how the set-up went: settled, or all that is said till the end.
func readReport(r io.Reader) (text []byte, err error) {
	buf := make([]byte, 1) // what comes after it is not to be read here
	for len(text) < maxReport && string(text) != settled {
		n, err := r.Read(buf)
		text = append(text, buf[:n]...)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return text, nil
}

// startError explains why no process could be started in new namespaces.
func startError(err error, info Info, ids idPlan) error {
	if !ids.user {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("enter namespaces: %w: root here lacks CAP_SYS_ADMIN; "+
				"a container around it must be privileged", err)
		}
		return fmt.Errorf("enter namespaces: %w", err)
	}
	return fmt.Errorf("enter a user namespace as user %d: %w: this machine gives them to root only or to nobody; "+
		"see the sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and "+
		"kernel.apparmor_restrict_unprivileged_userns, or run as root", info.UID, err)
}

// forwarded are the signals that the outer process passes on.
func forwarded() []os.Signal {
	return []os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGCONT, unix.SIGWINCH,
	}
}

// standIn passes signals to the inner process until it ends, and ends as it
// did.
func (in *inner) standIn() {
	ended := make(chan struct{})
	go func() {
		_ = in.cmd.Wait() // the state says how it ended
		close(ended)
	}()
	for {
		select {
		case s := <-in.signals:
			_ = in.cmd.Process.Signal(s) // one that has ended needs none
			continue
		case <-ended:
		}
		break
	}
	status, _ := in.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		os.Exit(128 + int(status.Signal()))
	}
	os.Exit(status.ExitStatus())
}
