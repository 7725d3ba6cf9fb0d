package main

import (
	"context"
	"os"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/internal/config"
)

// daemonOptions are the configuration of a daemon, and what has no key in it.
type daemonOptions struct {
	config      *config.Config // the file and the flags: with a root and addresses
	notices     []string       // for the user, of the file
	owner       socketOwner
	idleTimeout time.Duration // 0 stays
	executor    string        // "oci" or "fake"
}

const daemonDescription = `Runs the daemon in the foreground. You need it only for a daemon of a set place
or for other machines: "kiln build" starts one by itself.

Examples:
   kiln daemon                                     your own daemon, on its usual socket
   kiln daemon --addr tcp://127.0.0.1:1234         for clients with KILN_HOST=tcp://127.0.0.1:1234
   kiln daemon --root /big/disk/kiln               its state somewhere else
   kiln daemon --cap 20g                           its state never larger than 20 GiB

What was not used for longest is removed in time, by the rules of the configuration
(gcpolicy, reservedSpace, maxUsedSpace, minFreeSpace). --cap holds whatever builds do:
before a step begins room is made for it, it waits if need be, and a build that
writes past the cap is stopped. KILN_CAP is the same for daemons that kiln starts.`

func daemonCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "daemon",
		Usage:       "run the daemon in the foreground",
		Description: daemonDescription,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "`FOLDER` of all state"},
			&cli.StringSliceFlag{Name: "addr", Usage: "`ADDRESS` to listen on: unix://PATH, tcp://HOST:PORT or fd:// for sockets of systemd; may be repeated"},
			&cli.StringFlag{Name: "config", Usage: "`FILE` in the form of buildkitd.toml"},
			&cli.DurationFlag{Name: "idle-timeout", Usage: "leave after so long without work; 0 stays"},
			&cli.StringFlag{Name: "executor", Value: "oci", Usage: "what runs steps: oci, or fake, which runs none"},
			&cli.StringFlag{Name: "snapshotter", Value: "auto", Usage: "auto, overlayfs or native"},
			&cli.StringFlag{Name: "runtime", Usage: "`PROGRAM` that runs containers, such as runc or crun"},
			&cli.StringSliceFlag{Name: "allow-insecure-entitlement", Usage: "grant `ENTITLEMENT` to builds that ask: network.host or security.insecure; may be repeated"},
			&cli.StringFlag{
				Name: "cap", Sources: cli.EnvVars("KILN_CAP"),
				Usage: "the whole folder never takes more than `SIZE`, such as 20g, or a share of the disk, such as 50%",
			},
			&cli.BoolFlag{Name: "debug", Usage: "log more"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			o, err := daemonFlags(e, cmd)
			if err != nil {
				return err
			}
			return runDaemon(ctx, o, e.namespaces)
		},
	}
}

func daemonFlags(e *env, cmd *cli.Command) (daemonOptions, error) {
	// Whoever may connect can run steps: that is for the owner alone.
	o := daemonOptions{
		config: &config.Config{}, idleTimeout: cmd.Duration("idle-timeout"), executor: cmd.String("executor"),
		owner: socketOwner{uid: os.Getuid(), gid: os.Getgid(), mode: 0o600},
	}
	if file := cmd.String("config"); file != "" {
		if err := o.load(file, false); err != nil {
			return o, err
		}
	}
	switch o.executor {
	case "oci", "fake":
	default:
		return o, usagef(cmd, "--executor %s: want oci or fake", o.executor)
	}
	switch s := cmd.String("snapshotter"); s {
	case "auto", "overlayfs", "native":
	default:
		return o, usagef(cmd, "--snapshotter %s: want auto, overlayfs or native", s)
	}
	if o.idleTimeout < 0 {
		return o, usagef(cmd, "--idle-timeout %v: want a time of at least 0", o.idleTimeout)
	}
	c := o.config
	overrule(cmd, "root", cmd.String, &c.Root)
	overrule(cmd, "addr", cmd.StringSlice, &c.GRPC.Address)
	overrule(cmd, "snapshotter", cmd.String, &c.Workers.OCI.Snapshotter)
	overrule(cmd, "runtime", cmd.String, &c.Workers.OCI.Binary)
	overrule(cmd, "allow-insecure-entitlement", cmd.StringSlice, &c.Entitlements)
	if text := cmd.String("cap"); text != "" {
		if err := c.Workers.OCI.Cap.UnmarshalText([]byte(text)); err != nil {
			return o, usagef(cmd, "--cap: %v", err)
		}
	}
	if cmd.Bool("debug") {
		c.Log.Level = "debug"
	}
	o.setOwner()
	p, err := ownPlace(e.getenv, e.uid)
	if err != nil && (c.Root == "" || len(c.GRPC.Address) == 0) {
		return o, err
	}
	if c.Root == "" {
		c.Root = p.root
	}
	if len(c.GRPC.Address) == 0 {
		c.GRPC.Address = []string{p.address()}
	}
	return o, nil
}

// overrule takes a flag's value in place of the file's, if the flag is given.
func overrule[T any](cmd *cli.Command, flag string, value func(string) T, to *T) {
	if cmd.IsSet(flag) {
		*to = value(flag)
	}
}

// load reads a configuration file.
func (o *daemonOptions) load(file string, mayBeMissing bool) error {
	c, warnings, err := config.Load(file, mayBeMissing)
	if err != nil {
		return err
	}
	o.config = c
	for _, w := range warnings {
		o.notices = append(o.notices, w.Text)
	}
	if c.Log.Level == "" && c.Debug {
		c.Log.Level = "debug"
	}
	if c.Log.Level == "" && c.Trace {
		c.Log.Level = "trace"
	}
	return nil
}

// setOwner has the configuration say who may connect. A group that is named can.
func (o *daemonOptions) setOwner() {
	if uid := o.config.GRPC.UID; uid != nil {
		o.owner.uid = *uid
	}
	if gid := o.config.GRPC.GID; gid != nil {
		o.owner.gid, o.owner.mode = *gid, 0o660
	}
}
