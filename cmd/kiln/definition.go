package main

import (
	"errors"
	"maps"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

// isGraphBuild tells whether a command line builds LLB from standard input, or what a
// frontend makes, in the manner of buildctl: it names no PATH.
func isGraphBuild(e *env, cmd *cli.Command) bool {
	if cmd.Args().Present() {
		return false
	}
	return cmd.IsSet("frontend") || cmd.IsSet("local") || cmd.IsSet("oci-layout") || !isDevice(e.stdin)
}

// setGraph sets what to build where there is no PATH.
func setGraph(e *env, cmd *cli.Command, o *client.SolveOpt) error {
	for _, flag := range []string{"file", "target", "build-context", "build-arg", "label", "platform", "pull", "no-cache-filter", "add-host", "network", "shm-size", "ulimit"} {
		if cmd.IsSet(flag) && cmd.String("frontend") == "" {
			return usagef(cmd, "--%s is for a Dockerfile: want a PATH, such as: kiln build .", flag)
		}
	}
	o.Frontend = cmd.String("frontend")
	if o.Frontend != "" {
		return nil
	}
	def, err := stdinDefinition(e, cmd.Bool("no-cache"))
	if errors.Is(err, errNoDefinition) {
		return usagef(cmd, "kiln build needs a PATH, such as: kiln build . (or LLB on standard input, or --frontend)")
	}
	if err != nil {
		return usagef(cmd, "standard input: %v: want LLB there, or a PATH, such as: kiln build .", err)
	}
	o.Definition = def
	delete(o.FrontendAttrs, "no-cache")
	return nil
}

// setGraphAccess sets what a graph, or a frontend, may read of this machine, and the
// frontend's further options.
func setGraphAccess(_ *env, cmd *cli.Command, o *client.SolveOpt) error {
	dirs, err := localDirs(cmd.StringSlice("local"))
	if err != nil {
		return usagef(cmd, "--local: %v", err)
	}
	if o.Attach.Dirs == nil {
		o.Attach.Dirs = map[string]string{}
	}
	maps.Copy(o.Attach.Dirs, dirs)
	if o.Attach.Stores, err = layoutStores(cmd.StringSlice("oci-layout")); err != nil {
		return usagef(cmd, "--oci-layout: %v", err)
	}
	opts, err := keyValues(cmd.StringSlice("opt"))
	if err != nil {
		return usagef(cmd, "--opt: %v", err)
	}
	maps.Copy(o.FrontendAttrs, opts)
	if name := cmd.String("source-policy-file"); name != "" {
		if o.SourcePolicy, err = client.ReadSourcePolicy(name); err != nil {
			return usagef(cmd, "--source-policy-file: %v", err)
		}
	}
	return nil
}
