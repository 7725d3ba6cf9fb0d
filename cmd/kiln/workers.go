package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/ui"
)

func workersCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "workers",
		Usage:       "show what the daemon can build, and how",
		Description: "Shows the daemon's workers: platforms, labels, and the rules of what it keeps.\n\nExamples:\n   kiln workers",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			return withClient(ctx, e, cmd, func(c *client.Client) error {
				list, err := c.ListWorkers(ctx, nil)
				if err != nil {
					return err
				}
				return writeWorkers(e.stdout, list)
			})
		},
	}
}

func writeWorkers(out io.Writer, list []client.Worker) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	for i, worker := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "ID:\t%s\nPlatforms:\t%s\n", worker.ID, strings.Join(platformNames(worker.Platforms), ", "))
		for _, k := range slices.Sorted(maps.Keys(worker.Labels)) {
			fmt.Fprintf(w, "Label:\t%s=%s\n", k, worker.Labels[k])
		}
		for _, p := range worker.GC {
			fmt.Fprintf(w, "Keeps:\t%s\n", policyText(p))
		}
	}
	return w.Flush()
}

// platformNames are platforms such as "linux/arm64".
func platformNames(list []ocispecs.Platform) []string {
	out := make([]string, 0, len(list))
	for _, p := range list {
		out = append(out, platforms.Format(platforms.Normalize(p)))
	}
	return out
}

// policyText says a rule in words.
func policyText(p client.GCPolicy) string {
	subject := "what is "
	if len(p.Filters) == 0 {
		subject = "anything"
	} else {
		subject += strings.Join(p.Filters, " or ")
	}
	if p.All {
		subject += ", its own needs included,"
	}
	var limits []string
	if p.KeepFor > 0 {
		limits = append(limits, fmt.Sprintf("for %v after its last use", p.KeepFor))
	}
	if p.MaxUsed > 0 {
		limits = append(limits, "up to "+ui.Bytes(p.MaxUsed))
	}
	if p.Reserved > 0 {
		limits = append(limits, "at least "+ui.Bytes(p.Reserved))
	}
	if p.MinFree > 0 {
		limits = append(limits, "while "+ui.Bytes(p.MinFree)+" of the disk are free")
	}
	return subject + " " + strings.Join(limits, ", ")
}
