package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/internal/config"
	"github.com/kiln-build/kiln/internal/namespace"
)

// calledAs is the name that the program was called by: "buildkitd" makes it a
// daemon with BuildKit's flags, any other name is the command line of kiln.
func calledAs(args []string) string {
	if len(args) == 0 {
		return "kiln"
	}
	return filepath.Base(args[0])
}

// asksOnly tells whether a command line asks for help or the version, and runs
// nothing.
func asksOnly(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		switch a {
		case "--help", "-h", "-help", "help", "--version", "-v", "-version":
			return true
		}
		return false
	})
}

// runBuildkitd is the program under the name buildkitd. It returns the exit
// code, which is 1 for each error, as buildkitd's is.
func runBuildkitd(ctx context.Context, e *env, args []string) int {
	if err := buildkitdCommand(e).Run(ctx, args); err != nil {
		fmt.Fprintf(e.stderr, "buildkitd: %v\n", err)
		return 1
	}
	return exitOK
}

func buildkitdCommand(e *env) *cli.Command {
	cmd := &cli.Command{
		Name:                      "buildkitd",
		Usage:                     "build daemon",
		HideHelpCommand:           true,
		HideVersion:               true, // of --version there is one of our own
		Version:                   "v" + version,
		Writer:                    e.stdout,
		ErrWriter:                 e.stderr,
		Reader:                    e.stdin,
		DisableSliceFlagSeparator: true,
		Flags:                     buildkitdFlags(config.DefaultPlaces(e.getenv, e.userPlaces())),
		ExitErrHandler:            func(context.Context, *cli.Command, error) {}, // runBuildkitd does it
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.Bool("version") {
				// Clients count the words: program, package, version, revision.
				_, err := fmt.Fprintf(e.stdout, "buildkitd github.com/kiln-build/kiln v%s %s\n", version, revision())
				return err
			}
			if cmd.Args().Present() {
				return fmt.Errorf("unexpected argument %q", cmd.Args().First())
			}
			o, err := buildkitdOptions(e, cmd)
			if err != nil {
				return err
			}
			return runDaemon(ctx, o, e.namespaces)
		},
	}
	cmd.OnUsageError = func(_ context.Context, c *cli.Command, err error, _ bool) error {
		return errors.New(explainUsage(c, err))
	}
	return cmd
}

// userPlaces tells whether the user's own places are the default ones, and not
// the machine's: for a plain user, and for one who is root in a user namespace
// that others made, such as RootlessKit.
func (e *env) userPlaces() bool {
	if e.uid != 0 {
		return true
	}
	user := e.getenv("USER")
	return e.namespaces.Rootless && user != "" && user != "root"
}

// buildkitdFlags are those of buildkitd v0.33, with their names, defaults and
// variables. A flag that is given overrules the file.
func buildkitdFlags(p config.Places) []cli.Flag {
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "rootless", Usage: "set all the default options to be compatible with rootless containers"},
		&cli.StringFlag{Name: "config", Usage: "path to config `FILE`", Value: p.File, Sources: cli.EnvVars("BUILDKITD_CONFIG")},
		&cli.BoolFlag{Name: "debug", Usage: "enable debug output in logs"},
		&cli.BoolFlag{Name: "trace", Usage: "enable trace output in logs", Hidden: true},
		&cli.StringFlag{Name: "root", Usage: "`FOLDER` of all state", Value: p.Root},
		&cli.StringSliceFlag{Name: "addr", Usage: "listening `ADDRESS`: unix://PATH, tcp://HOST:PORT or fd://[NAME]; may be repeated", Value: []string{p.Address}},
		&cli.StringFlag{Name: "log-format", Usage: "log formatter: json or text", Value: "text"},
		&cli.StringFlag{Name: "log-level", Usage: "log `LEVEL`: error, warn, info, debug or trace", Value: "info", Sources: cli.EnvVars("BUILDKITD_LOG_LEVEL")},
		&cli.StringFlag{Name: "group", Usage: "`GROUP` (name or gid) which will own all Unix socket listening addresses"},
		&cli.StringFlag{Name: "debugaddr", Usage: "debugging `ADDRESS` (eg. 127.0.0.1:6060)", Sources: cli.EnvVars("BUILDKITD_DEBUGADDR")},
		&cli.StringFlag{Name: "tlscert", Usage: "certificate `FILE` to use"},
		&cli.StringFlag{Name: "tlskey", Usage: "key `FILE` to use"},
		&cli.StringFlag{Name: "tlscacert", Usage: "ca certificate `FILE` to verify clients"},
		&cli.StringSliceFlag{Name: "allow-insecure-entitlement", Usage: "allows insecure entitlements: network.host, security.insecure, device"},
		&cli.BoolFlag{Name: "proxy-network", Usage: "enable proxy network enforcement for all builds"},
		&cli.StringFlag{Name: "otel-socket-path", Usage: "OTEL collector trace socket `PATH`, if not one in the root folder"},
		&cli.BoolFlag{Name: "cdi-disabled", Usage: "disables support of the Container Device Interface (CDI)"},
		&cli.StringSliceFlag{Name: "cdi-spec-dir", Usage: "`FOLDER` to scan for CDI spec files; may be repeated"},
		&cli.BoolFlag{Name: "save-cache-debug", Usage: "enable saving cache debug info (not supported)"},
	}
	flags = append(flags, workerFlags()...)
	return append(flags, &cli.BoolFlag{Name: "version", Aliases: []string{"v"}, Usage: "print the version"})
}

// workerFlags are those of the two workers; the containerd one is not there,
// and its flags are read so that a command line need not change.
func workerFlags() []cli.Flag {
	var flags []cli.Flag
	for _, w := range []string{"oci", "containerd"} {
		hidden := w == "containerd"
		flags = append(flags,
			&cli.StringFlag{Name: w + "-worker", Usage: "enable " + w + " workers (true/false/auto)", Value: "auto"},
			&cli.StringSliceFlag{Name: w + "-worker-labels", Usage: "user-specific annotation labels (com.example.foo=bar)", Hidden: hidden},
			&cli.StringSliceFlag{Name: w + "-worker-platform", Usage: "override supported platforms for worker", Hidden: hidden},
			&cli.StringFlag{Name: w + "-worker-net", Usage: "worker network type (auto, bridge, cni or host)", Value: "auto", Hidden: hidden},
			&cli.StringFlag{Name: w + "-cni-config-path", Usage: "path of cni config file", Hidden: true},
			&cli.StringFlag{Name: w + "-cni-binary-dir", Usage: "path of cni binary files", Hidden: true},
			&cli.IntFlag{Name: w + "-cni-pool-size", Usage: "number of network namespaces to keep ready", Hidden: hidden},
			&cli.StringFlag{Name: w + "-worker-snapshotter", Usage: "name of snapshotter (auto, overlayfs, native)", Value: "auto", Hidden: hidden},
			&cli.StringFlag{Name: w + "-worker-apparmor-profile", Usage: "set the name of the apparmor profile applied to containers", Hidden: hidden},
			&cli.BoolFlag{Name: w + "-worker-selinux", Usage: "apply SELinux labels", Hidden: hidden},
			&cli.IntFlag{Name: w + "-max-parallelism", Usage: "limit the number of parallel build steps that can run at the same time", Hidden: hidden},
			&cli.BoolFlag{Name: w + "-worker-rootless", Usage: "enable rootless mode", Hidden: hidden},
			&cli.BoolFlag{Name: w + "-worker-gc", Usage: "enable automatic garbage collection on worker", Value: true, Hidden: hidden},
			&cli.StringFlag{Name: w + "-worker-gc-keepstorage", Usage: `amount of storage GC keep locally, format "Reserved[,Free[,Maximum]]" (MB)`, Hidden: hidden},
		)
	}
	return append(flags,
		&cli.StringFlag{Name: "containerd-worker-addr", Usage: "containerd socket", Hidden: true},
		&cli.StringFlag{Name: "containerd-worker-namespace", Usage: "override containerd namespace", Hidden: true},
		&cli.StringFlag{Name: "containerd-worker-runtime", Usage: "override containerd runtime", Hidden: true},
		&cli.BoolFlag{Name: "containerd-worker-hyperv-isolation", Usage: "use Hyper-V isolation for Windows containers", Hidden: true},
		&cli.StringFlag{Name: "oci-worker-binary", Usage: "`NAME` of specified oci worker binary, such as crun"},
		&cli.StringFlag{Name: "oci-worker-proxy-snapshotter-path", Usage: "address of proxy snapshotter socket (not supported)", Hidden: true},
		&cli.BoolFlag{Name: "oci-worker-no-process-sandbox", Usage: "have steps see all processes of the daemon, where it is rootless in a container"},
	)
}

// buildkitdOptions reads a command line of buildkitd, and the file.
func buildkitdOptions(e *env, cmd *cli.Command) (daemonOptions, error) {
	o := daemonOptions{executor: "oci"}
	places := config.DefaultPlaces(e.getenv, e.userPlaces())
	file := cmp.Or(cmd.String("config"), places.File)
	if err := o.load(file, true); err != nil {
		return o, err
	}
	if _, err := os.Stat(file); err != nil && file != places.File { // which is no error to buildkitd
		o.notices = append(o.notices, fmt.Sprintf("The configuration is not there: %v: all is at its default.", err))
	}
	for _, apply := range []func(*env, *cli.Command) error{o.applyMain, o.applyListeners, o.applyWorker, o.applyWorkerLimits} {
		if err := apply(e, cmd); err != nil {
			return o, err
		}
	}
	c := o.config
	c.Root = cmp.Or(c.Root, places.Root)
	if len(c.GRPC.Address) == 0 {
		c.GRPC.Address = []string{places.Address}
	}
	var err error
	c.Root, err = filepath.Abs(c.Root)
	return o, err
}

func (o *daemonOptions) applyMain(_ *env, cmd *cli.Command) error {
	c := o.config
	if cmd.Bool("debug") {
		c.Log.Level = "debug"
	}
	if cmd.Bool("trace") {
		c.Log.Level = "trace"
	}
	overrule(cmd, "root", cmd.String, &c.Root)
	overrule(cmd, "log-format", cmd.String, &c.Log.Format)
	overrule(cmd, "log-level", cmd.String, &c.Log.Level)
	overrule(cmd, "allow-insecure-entitlement", cmd.StringSlice, &c.Entitlements)
	overrule(cmd, "proxy-network", cmd.Bool, &c.ProxyNetwork)
	overrule(cmd, "otel-socket-path", cmd.String, &c.OTEL.SocketPath)
	overrule(cmd, "cdi-spec-dir", cmd.StringSlice, &c.CDI.SpecDirs)
	if cmd.IsSet("cdi-disabled") {
		off := cmd.Bool("cdi-disabled")
		c.CDI.Disabled = &off
	}
	for _, ent := range c.Entitlements {
		if !slices.Contains(config.Entitlements(), ent) {
			return fmt.Errorf("invalid entitlement : %s", ent)
		}
	}
	for _, flag := range []string{"save-cache-debug", "oci-worker-proxy-snapshotter-path", "oci-cni-config-path", "oci-cni-binary-dir"} {
		if cmd.IsSet(flag) {
			o.notices = append(o.notices, "--"+flag+" has no effect.")
		}
	}
	return config.CheckLog(c.Log)
}

func (o *daemonOptions) applyListeners(_ *env, cmd *cli.Command) error {
	c := o.config
	overrule(cmd, "addr", cmd.StringSlice, &c.GRPC.Address)
	overrule(cmd, "debugaddr", cmd.String, &c.GRPC.DebugAddress)
	overrule(cmd, "tlscert", cmd.String, &c.GRPC.TLS.Cert)
	overrule(cmd, "tlskey", cmd.String, &c.GRPC.TLS.Key)
	overrule(cmd, "tlscacert", cmd.String, &c.GRPC.TLS.CA)
	if group := cmd.String("group"); group != "" {
		gid, err := groupID(group)
		if err != nil {
			return err
		}
		c.GRPC.GID = &gid
	}
	o.owner = socketOwner{uid: os.Getuid(), gid: os.Getgid(), mode: 0o660}
	o.setOwner()
	return nil
}

// groupID is the id of a group that is given by name or id.
func groupID(group string) (int, error) {
	if id, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(id), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("--group %s: %w", group, err)
	}
	return strconv.Atoi(g.Gid)
}

func (o *daemonOptions) applyWorker(e *env, cmd *cli.Command) error {
	w, other := &o.config.Workers.OCI, &o.config.Workers.Containerd
	for flag, to := range map[string]**bool{"oci-worker": &w.Enabled, "containerd-worker": &other.Enabled} {
		if !cmd.IsSet(flag) {
			continue
		}
		on, err := config.ParseSwitch(cmd.String(flag))
		if err != nil {
			return fmt.Errorf("--%s: %w", flag, err)
		}
		*to = on
	}
	if !config.Enabled(w.Enabled) && !config.Enabled(other.Enabled) {
		return errors.New("no worker found: both the oci and the containerd worker are turned off")
	}
	for _, l := range cmd.StringSlice("oci-worker-labels") {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return fmt.Errorf("--oci-worker-labels: invalid value %s, expected KEY=VALUE", l)
		}
		if w.Labels == nil {
			w.Labels = map[string]string{}
		}
		w.Labels[k] = v
	}
	overrule(cmd, "oci-worker-snapshotter", cmd.String, &w.Snapshotter)
	overrule(cmd, "oci-worker-platform", cmd.StringSlice, &w.Platforms)
	overrule(cmd, "oci-worker-binary", cmd.String, &w.Binary)
	if w.Binary != "" {
		if _, err := exec.LookPath(w.Binary); err != nil {
			return fmt.Errorf("find the runtime %s: %w", w.Binary, err)
		}
	}
	overrule(cmd, "oci-worker-apparmor-profile", cmd.String, &w.AppArmor)
	overrule(cmd, "oci-worker-selinux", cmd.Bool, &w.SELinux)
	overrule(cmd, "oci-worker-no-process-sandbox", cmd.Bool, &w.NoProcessSandbox)
	overrule(cmd, "rootless", cmd.Bool, &w.Rootless)
	if cmd.Bool("oci-worker-rootless") && !e.namespaces.Rootless {
		return errors.New("rootless mode requires to be executed as a plain user, or as the mapped root in a user namespace")
	}
	overrule(cmd, "oci-worker-rootless", cmd.Bool, &w.Rootless)
	return errors.Join(config.CheckSnapshotter(w.Snapshotter), config.CheckPlatforms(w.Platforms))
}

func (o *daemonOptions) applyWorkerLimits(_ *env, cmd *cli.Command) error {
	w := &o.config.Workers.OCI
	overrule(cmd, "oci-worker-net", cmd.String, &w.Mode)
	overrule(cmd, "oci-cni-pool-size", cmd.Int, &w.CNIPoolSize)
	overrule(cmd, "oci-max-parallelism", cmd.Int, &w.MaxParallelism)
	if cmd.IsSet("oci-worker-gc") {
		on := cmd.Bool("oci-worker-gc")
		w.GC.GC = &on
	}
	if cmd.IsSet("oci-worker-gc-keepstorage") {
		if err := w.ParseKeepStorage(cmd.String("oci-worker-gc-keepstorage")); err != nil {
			return err
		}
	}
	if w.MaxParallelism < 0 || w.CNIPoolSize < 0 {
		return errors.New("--oci-max-parallelism and --oci-cni-pool-size: expected a number of at least 0")
	}
	return config.CheckNetworkMode(w.Mode)
}

// enterNamespaces moves a daemon into namespaces of its own, before anything
// else.
func (e *env) enterNamespaces() error {
	var err error
	if e.namespaces, err = namespace.Enter(namespace.Options{Apart: forgetPages}); err != nil {
		return err
	}
	e.uid = e.namespaces.UID
	return nil
}
