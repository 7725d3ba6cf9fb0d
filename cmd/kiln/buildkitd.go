package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

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
		Version:                   version,
		Writer:                    e.stdout,
		ErrWriter:                 e.stderr,
		Reader:                    e.stdin,
		DisableSliceFlagSeparator: true,
		Flags:                     buildkitdFlags(),
		ExitErrHandler:            func(context.Context, *cli.Command, error) {}, // runBuildkitd does it
		Action: func(ctx context.Context, cmd *cli.Command) error {
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

// buildkitdFlags are those of buildkitd v0.33, with their names, defaults and
// variables.
func buildkitdFlags() []cli.Flag {
	flags := []cli.Flag{
		&cli.BoolFlag{Name: "rootless", Usage: "set all the default options to be compatible with rootless containers"},
		&cli.StringFlag{Name: "config", Usage: "path to config file", Value: "/etc/buildkit/buildkitd.toml", Sources: cli.EnvVars("BUILDKITD_CONFIG")},
		&cli.BoolFlag{Name: "debug", Usage: "enable debug output in logs"},
		&cli.BoolFlag{Name: "trace", Usage: "enable trace output in logs", Hidden: true},
		&cli.StringFlag{Name: "root", Usage: "path to state directory", Value: "/var/lib/buildkit"},
		&cli.StringSliceFlag{Name: "addr", Usage: "listening address (socket or tcp)", Value: []string{"unix:///run/buildkit/buildkitd.sock"}},
		&cli.StringFlag{Name: "log-format", Usage: "log formatter: json or text", Value: "text"},
		&cli.StringFlag{Name: "log-level", Usage: "set the log level", Value: "info", Sources: cli.EnvVars("BUILDKITD_LOG_LEVEL")},
		&cli.StringFlag{Name: "group", Usage: "group (name or gid) which will own all Unix socket listening addresses"},
		&cli.StringFlag{Name: "debugaddr", Usage: "debugging address (eg. 0.0.0.0:6060)", Sources: cli.EnvVars("BUILDKITD_DEBUGADDR")},
		&cli.StringFlag{Name: "tlscert", Usage: "certificate file to use"},
		&cli.StringFlag{Name: "tlskey", Usage: "key file to use"},
		&cli.StringFlag{Name: "tlscacert", Usage: "ca certificate to verify clients"},
		&cli.StringSliceFlag{Name: "allow-insecure-entitlement", Usage: "allows insecure entitlements e.g. network.host, security.insecure, device"},
		&cli.BoolFlag{Name: "proxy-network", Usage: "enable proxy network enforcement for all builds"},
		&cli.StringFlag{Name: "otel-socket-path", Usage: "OTEL collector trace socket path"},
		&cli.BoolFlag{Name: "cdi-disabled", Usage: "disables support of the Container Device Interface (CDI)"},
		&cli.StringSliceFlag{Name: "cdi-spec-dir", Usage: "list of directories to scan for CDI spec files"},
		&cli.BoolFlag{Name: "save-cache-debug", Usage: "enable saving cache debug info"},
	}
	return append(flags, workerFlags()...)
}

// workerFlags are those of the two workers; the containerd one is not there,
// and its flags are read so that a command line need not change.
func workerFlags() []cli.Flag {
	var flags []cli.Flag
	for _, w := range []string{"containerd", "oci"} {
		flags = append(flags,
			&cli.StringFlag{Name: w + "-worker", Usage: "enable " + w + " workers (true/false/auto)", Value: "auto"},
			&cli.StringSliceFlag{Name: w + "-worker-labels", Usage: "user-specific annotation labels (com.example.foo=bar)"},
			&cli.StringSliceFlag{Name: w + "-worker-platform", Usage: "override supported platforms for worker"},
			&cli.StringFlag{Name: w + "-worker-net", Usage: "worker network type (auto, bridge, cni or host)", Value: "auto"},
			&cli.StringFlag{Name: w + "-cni-config-path", Usage: "path of cni config file", Value: "/etc/buildkit/cni.json"},
			&cli.StringFlag{Name: w + "-cni-binary-dir", Usage: "path of cni binary files", Value: "/opt/cni/bin"},
			&cli.IntFlag{Name: w + "-cni-pool-size", Usage: "size of cni network namespace pool"},
			&cli.StringFlag{Name: w + "-worker-snapshotter", Usage: "name of snapshotter (overlayfs, native, etc.)", Value: "auto"},
			&cli.StringFlag{Name: w + "-worker-apparmor-profile", Usage: "set the name of the apparmor profile applied to containers"},
			&cli.BoolFlag{Name: w + "-worker-selinux", Usage: "apply SELinux labels"},
			&cli.IntFlag{Name: w + "-max-parallelism", Usage: "limit the number of parallel build steps that can run at the same time"},
			&cli.BoolFlag{Name: w + "-worker-rootless", Usage: "enable rootless mode"},
			&cli.BoolFlag{Name: w + "-worker-gc", Usage: "Enable automatic garbage collection on worker", Value: true},
			&cli.StringFlag{Name: w + "-worker-gc-keepstorage", Usage: `Amount of storage GC keep locally, format "Reserved[,Free[,Maximum]]" (MB)`},
		)
	}
	return append(flags,
		&cli.StringFlag{Name: "containerd-worker-addr", Usage: "containerd socket", Value: "/run/containerd/containerd.sock"},
		&cli.StringFlag{Name: "containerd-worker-namespace", Usage: "override containerd namespace", Value: "buildkit", Hidden: true},
		&cli.StringFlag{Name: "containerd-worker-runtime", Usage: "override containerd runtime", Hidden: true},
		&cli.StringFlag{Name: "oci-worker-binary", Usage: "name of specified oci worker binary"},
		&cli.StringFlag{Name: "oci-worker-proxy-snapshotter-path", Usage: "address of proxy snapshotter socket (do not include 'unix://' prefix)"},
		&cli.BoolFlag{Name: "oci-worker-no-process-sandbox", Usage: "use the host PID namespace and procfs"},
	)
}

// buildkitdOptions reads a command line of buildkitd.
func buildkitdOptions(_ *env, cmd *cli.Command) (daemonOptions, error) {
	o := daemonOptions{
		root: cmd.String("root"), addrs: cmd.StringSlice("addr"), config: cmd.String("config"), executor: "oci",
		snapshotter: cmd.String("oci-worker-snapshotter"), runtime: cmd.String("oci-worker-binary"),
		debug: cmd.Bool("debug"), entitlements: cmd.StringSlice("allow-insecure-entitlement"), labels: map[string]string{},
	}
	for _, l := range cmd.StringSlice("oci-worker-labels") {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return o, fmt.Errorf("invalid value %s", l)
		}
		o.labels[k] = v
	}
	if !filepath.IsAbs(o.root) {
		wd, err := os.Getwd()
		if err != nil {
			return o, err
		}
		o.root = filepath.Join(wd, o.root)
	}
	return o, nil
}

// enterNamespaces moves a daemon into namespaces of its own, before anything
// else.
func (e *env) enterNamespaces() error {
	var err error
	if e.namespaces, err = namespace.Enter(namespace.Options{}); err != nil {
		return err
	}
	e.uid = e.namespaces.UID
	return nil
}
