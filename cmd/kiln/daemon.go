package main

import (
	"context"
	"time"

	"github.com/urfave/cli/v3"
)

// daemonOptions are the flags of "kiln daemon".
type daemonOptions struct {
	root        string
	addrs       []string // such as "unix:///run/kiln/kiln.sock"; at least one
	config      string   // a buildkitd.toml, or ""
	idleTimeout time.Duration
	executor    string // "oci" or "fake"
	snapshotter string // "auto", "overlayfs" or "native"
	runtime     string // path or name of an OCI runtime, or "" for the own one
	debug       bool
	// entitlements are what builds that ask for them are granted.
	entitlements []string
	labels       map[string]string // of the worker, besides those of ours
}

const daemonDescription = `Runs the daemon in the foreground. You need it only for a daemon of a set place
or for other machines: "kiln build" starts one by itself.

Examples:
   kiln daemon                                     your own daemon, on its usual socket
   kiln daemon --addr tcp://127.0.0.1:1234         for clients with KILN_HOST=tcp://127.0.0.1:1234
   kiln daemon --root /big/disk/kiln               its state somewhere else`

func daemonCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "daemon",
		Usage:       "run the daemon in the foreground",
		Description: daemonDescription,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "`FOLDER` of all state"},
			&cli.StringSliceFlag{Name: "addr", Usage: "`ADDRESS` to listen on: unix://PATH or tcp://HOST:PORT; may be repeated"},
			&cli.StringFlag{Name: "config", Usage: "`FILE` in the form of buildkitd.toml"},
			&cli.DurationFlag{Name: "idle-timeout", Usage: "leave after so long without work; 0 stays"},
			&cli.StringFlag{Name: "executor", Value: "oci", Usage: "what runs steps: oci, or fake, which runs none"},
			&cli.StringFlag{Name: "snapshotter", Value: "auto", Usage: "auto, overlayfs or native"},
			&cli.StringFlag{Name: "runtime", Usage: "`PROGRAM` that runs containers, such as runc or crun"},
			&cli.StringSliceFlag{Name: "allow-insecure-entitlement", Usage: "grant `ENTITLEMENT` to builds that ask: network.host or security.insecure; may be repeated"},
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
	o := daemonOptions{
		root: cmd.String("root"), addrs: cmd.StringSlice("addr"), config: cmd.String("config"),
		idleTimeout: cmd.Duration("idle-timeout"), executor: cmd.String("executor"),
		snapshotter: cmd.String("snapshotter"), runtime: cmd.String("runtime"), debug: cmd.Bool("debug"),
		entitlements: cmd.StringSlice("allow-insecure-entitlement"),
	}
	switch o.executor {
	case "oci", "fake":
	default:
		return o, usagef(cmd, "--executor %s: want oci or fake", o.executor)
	}
	switch o.snapshotter {
	case "auto", "overlayfs", "native":
	default:
		return o, usagef(cmd, "--snapshotter %s: want auto, overlayfs or native", o.snapshotter)
	}
	if o.idleTimeout < 0 {
		return o, usagef(cmd, "--idle-timeout %v: want a time of at least 0", o.idleTimeout)
	}
	p, err := ownPlace(e.getenv, e.uid)
	if err != nil && (o.root == "" || len(o.addrs) == 0) {
		return o, err
	}
	if o.root == "" {
		o.root = p.root
	}
	if len(o.addrs) == 0 {
		o.addrs = []string{p.address()}
	}
	return o, nil
}
