// Package oci runs containers with an OCI runtime: runc, or another program
// with runc's command line.
//
// It is the executor of a real daemon. [New] looks for a runtime, readies a network
// for sandboxed containers and clears what an earlier daemon left in the same
// state directory. A run is then one call of "runc run" on a bundle of one
// file, config.json; hosts and resolv.conf are shared by runs where they can
// be. What a container may do is what Docker lets it do: the same
// capabilities, seccomp profile, masked and read-only paths.
//
// Promises, each held by a test: after [executor.Container.Close] no process,
// mount, cgroup, network interface or file of the container is left; the root
// file system holds no mount points that only the run needed, and what is
// removed of them is what this package made, found again by handle (a build
// step can not turn the removal against another file, CVE-2024-23652);
// identifiers that become paths are checked, whoever made them.
//
// Like runc in BuildKit, a run leaves /proc, /dev and /sys in a root file
// system that did not have them.
package oci

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	runc "github.com/containerd/go-runc"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kiln-build/kiln/internal/executor"
)

// Config says how containers are run.
type Config struct {
	// StateDir is a directory of this executor's own: bundles, the runtime's
	// state, generated files. What is in it is removed by New and Close. It
	// should be short and on a local file system.
	StateDir string
	// Binary is the runtime, a path or a name to find on PATH. Empty means the
	// first that works of runc and crun on PATH and kiln-runc beside this
	// program.
	Binary string
	// Rootless says that the daemon is root only in a user namespace: no
	// cgroups, and the host's network instead of a sandbox.
	Rootless bool
	// CgroupParent is where containers go whose spec names no parent, relative
	// to the root of the cgroup hierarchy. Empty means that root.
	CgroupParent string
	// AppArmor is the profile that holds containers, which must be loaded; ""
	// leaves that to the machine.
	AppArmor string
	// SharedProcesses has containers see and signal the daemon's processes, for
	// daemons in a container that may mount no /proc.
	SharedProcesses bool
	// DNS is what resolv.conf says; by default what the machine's says.
	DNS DNS
	// Network is how sandboxed containers are connected.
	Network NetworkConfig
	// TraceSocket is where the OpenTelemetry spans of containers are taken, which
	// they are told of if it is there; "" for nowhere.
	TraceSocket string
	// Devices are those that containers can ask for; nil for none.
	Devices *Devices
	// Logger hears of what the machine lacks. Nil is silent.
	Logger *slog.Logger
}

// DNS says how containers resolve names. Empty fields are taken from the
// machine's resolv.conf.
type DNS struct {
	Nameservers []string
	Search      []string
	Options     []string
}

// NetworkConfig is how sandboxed containers are connected.
type NetworkConfig struct {
	// Pool is the IPv4 range that this daemon takes a subnet of 1022 addresses
	// from, one that nothing on the machine uses. Default 10.99.0.0/16.
	Pool netip.Prefix
	// Ready is how many network namespaces wait for a container. Default 2.
	Ready int
	// Host gives containers that ask for a sandbox the host's network.
	Host bool
}

// Executor runs containers with an OCI runtime. Close it after use.
type Executor struct {
	cfg     Config
	log     *slog.Logger
	runtime func() (Runtime, error) // waits for the search
	runc    runc.Runc               // without its command
	caps    capabilitySets
	seccomp *specs.LinuxSeccomp
	cgroups cgroupRoot
	files   *etcFiles
	net     *network // nil where a sandbox is the host's network
	ids     idMaps
	stubs   stubTable

	mu      sync.Mutex
	running map[string]*container
	closed  bool
}

var _ executor.Executor = (*Executor)(nil)

// New readies an executor. Where no runtime works, starting containers fails.
func New(cfg Config) (*Executor, error) {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(cfg.StateDir) {
		return nil, fmt.Errorf("open executor: state directory %q: want an absolute path", cfg.StateDir)
	}
	if err := os.MkdirAll(cfg.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("open executor: %w", err)
	}
	var err error
	if cfg.StateDir, err = filepath.EvalSymlinks(cfg.StateDir); err != nil {
		return nil, fmt.Errorf("open executor: state directory: %w", err)
	}
	e := &Executor{cfg: cfg, log: log, running: map[string]*container{}}
	// Starting a runtime takes longer than all else here, and not every build
	// runs containers.
	e.runtime = sync.OnceValues(func() (Runtime, error) { return FindRuntime(cfg.Binary) })
	go func() { _, _ = e.runtime() }() // Start tells of a failure
	e.stubs.roots = map[rootID]*stubs{}
	if e.ids, err = readIDMaps(); err != nil {
		return nil, err
	}
	if e.caps, err = readCapabilities(); err != nil {
		return nil, err
	}
	if e.seccomp, err = defaultSeccomp(e.caps.normal); err != nil {
		return nil, err
	}
	if !cfg.Rootless {
		if e.cgroups, err = findCgroupRoot(cfg.StateDir); err != nil {
			log.Warn("containers run without cgroups, so without limits", "reason", err)
		}
	}
	noCgroups := !e.cgroups.usable()
	e.runc = runc.Runc{
		Root:      filepath.Join(cfg.StateDir, "runtime"),
		LogFormat: runc.JSON,
		Setpgid:   true, // a terminal's Ctrl-C is the daemon's to hear
		Rootless:  &noCgroups,
	}
	if err := e.clearState(); err != nil {
		return nil, err
	}
	if e.files, err = newEtcFiles(filepath.Join(cfg.StateDir, "etc"), cfg.DNS); err != nil {
		return nil, err
	}
	switch {
	case cfg.Network.Host:
	case cfg.Rootless:
		log.Warn("containers use the host's network: a daemon without root can not make a bridge for them")
	default:
		e.net = newNetwork(cfg.Network, log)
	}
	return e, nil
}

// Runtime is the program that runs the containers.
func (e *Executor) Runtime() (Runtime, error) { return e.runtime() }

// driver drives the runtime, with its log going to a file, or to nowhere for "".
func (e *Executor) driver(log string) (*runc.Runc, error) {
	found, err := e.runtime()
	if err != nil {
		return nil, err
	}
	driver := e.runc
	driver.Command, driver.Log = found.Path, log
	return &driver, nil
}

// clearState removes what a daemon that was killed left, and makes the state
// directory anew. Its containers are gone where it had a PID namespace of its
// own; where not, the runtime still knows them and ends them here.
func (e *Executor) clearState() error {
	bundles := filepath.Join(e.cfg.StateDir, "run")
	left, err := os.ReadDir(e.runc.Root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read state directory: %w", err)
	}
	for _, entry := range left {
		e.forceDelete(entry.Name())
	}
	e.cgroups.removeAll()
	if err := unmountBelow(e.cfg.StateDir); err != nil {
		return err
	}
	for _, dir := range []string{bundles, e.runc.Root} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clear state directory: %w", err)
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
	}
	return nil
}

// Close ends every container, removes the network and the state, and makes
// later starts fail.
func (e *Executor) Close() error {
	e.mu.Lock()
	e.closed = true
	var open []*container
	for _, c := range e.running {
		open = append(open, c)
	}
	e.mu.Unlock()
	var errs []error
	for _, c := range open {
		errs = append(errs, c.Close())
	}
	if e.net != nil {
		errs = append(errs, e.net.close())
	}
	e.cgroups.removeAll()
	if err := unmountBelow(e.cfg.StateDir); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, dir := range []string{"run", "runtime", "etc"} {
		errs = append(errs, os.RemoveAll(filepath.Join(e.cfg.StateDir, dir)))
	}
	return errors.Join(errs...)
}

// add books a container by its identifier; two of the same would share a bundle.
func (e *Executor) add(c *container) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return errors.New("start container: the executor is closed")
	}
	if _, dup := e.running[c.spec.ID]; dup {
		return fmt.Errorf("start container: identifier %q is in use", c.spec.ID)
	}
	e.running[c.spec.ID] = c
	return nil
}

func (e *Executor) remove(c *container) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.running, c.spec.ID)
}
