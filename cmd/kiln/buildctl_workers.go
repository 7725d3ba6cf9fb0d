package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

// workerInfo is a worker, as templates and JSON have it.
type workerInfo struct {
	ID              string              `json:"id"`
	Labels          map[string]string   `json:"labels"`
	Platforms       []ocispecs.Platform `json:"platforms"`
	GCPolicy        []pruneInfo         `json:"gcPolicy"`
	BuildkitVersion buildkitVersion     `json:"buildkitVersion"`
	CDIDevices      []cdiDevice         `json:"cdiDevices"`
}

type pruneInfo struct {
	All           bool          `json:"all"`
	Filter        []string      `json:"filter"`
	KeepDuration  time.Duration `json:"keepDuration"`
	ReservedSpace int64         `json:"reservedSpace"`
	MaxUsedSpace  int64         `json:"maxUsedSpace"`
	MinFreeSpace  int64         `json:"minFreeSpace"`
}

type buildkitVersion struct {
	Package           string `json:"package"`
	Version           string `json:"version"`
	Revision          string `json:"revision"`
	DockerfileVersion string `json:"dockerfileVersion,omitempty"`
}

type cdiDevice struct {
	Name        string            `json:"name"`
	AutoAllow   bool              `json:"autoAllow"`
	Annotations map[string]string `json:"annotations"`
	OnDemand    bool              `json:"onDemand"`
}

func versionInfo(v client.Version) buildkitVersion {
	return buildkitVersion{v.Package, v.Version, v.Revision, v.Dockerfile}
}

func workerInfoOf(w client.Worker) *workerInfo {
	out := &workerInfo{
		ID: w.ID, Labels: w.Labels, Platforms: w.Platforms, GCPolicy: []pruneInfo{}, BuildkitVersion: versionInfo(w.Version),
	}
	for _, p := range w.GC {
		out.GCPolicy = append(out.GCPolicy, pruneInfo{p.All, p.Filters, p.KeepFor, p.Reserved, p.MaxUsed, p.MinFree})
	}
	for _, d := range w.Devices {
		out.CDIDevices = append(out.CDIDevices, cdiDevice{d.Name, d.AutoAllow, d.Annotations, d.OnDemand})
	}
	return out
}

func (b *buildctl) workersCommand() *cli.Command {
	return &cli.Command{
		Name:  "workers",
		Usage: "list workers",
		Flags: []cli.Flag{filterFlag("containerd-style filter string slice"), verboseFlag(), formatFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return b.withClient(ctx, cmd, func(c *client.Client) error { return b.workers(ctx, cmd, c) })
		},
	}
}

func (b *buildctl) workers(ctx context.Context, cmd *cli.Command, c *client.Client) error {
	found, err := c.ListWorkers(ctx, cmd.StringSlice("filter"))
	if err != nil {
		return fmt.Errorf("failed to list workers: %w", err)
	}
	var list []*workerInfo
	for _, w := range found {
		list = append(list, workerInfoOf(w))
	}
	if format := cmd.String("format"); format != "" {
		p, err := newPrinter(b.stdout, format)
		if err != nil {
			return err
		}
		return p.print(list)
	}
	tw := b.table()
	if !cmd.Bool("verbose") {
		fmt.Fprintln(tw, "ID\tPLATFORMS")
	}
	for _, w := range list {
		if cmd.Bool("verbose") {
			writeWorkerInfo(tw, w)
		} else {
			fmt.Fprintf(tw, "%s\t%s\n", w.ID, strings.Join(platformNames(w.Platforms), ","))
		}
	}
	return tw.Flush()
}

func writeWorkerInfo(tw *tabwriter.Writer, w *workerInfo) {
	v := w.BuildkitVersion
	fmt.Fprintf(tw, "ID:\t%s\n", w.ID)
	fmt.Fprintf(tw, "Platforms:\t%s\n", strings.Join(platformNames(w.Platforms), ","))
	fmt.Fprintf(tw, "BuildKit:\t%s %s %s\n", v.Package, v.Version, v.Revision)
	if v.DockerfileVersion != "" {
		fmt.Fprintf(tw, "Dockerfile:\t%s\n", v.DockerfileVersion)
	}
	fmt.Fprint(tw, "Labels:\n")
	for _, k := range slices.Sorted(maps.Keys(w.Labels)) {
		fmt.Fprintf(tw, "\t%s:\t%s\n", k, w.Labels[k])
	}
	writeDevices(tw, w.CDIDevices)
	for i, p := range w.GCPolicy {
		writeGCPolicy(tw, i, p)
	}
	fmt.Fprint(tw, "\n")
}

func writeDevices(tw *tabwriter.Writer, list []cdiDevice) {
	if len(list) == 0 {
		return
	}
	fmt.Fprint(tw, "Devices:\n")
	for _, d := range list {
		fmt.Fprintf(tw, "\tName:\t%s\n", d.Name)
		if d.OnDemand {
			fmt.Fprintf(tw, "\tOnDemand:\t%v\n", d.OnDemand)
		} else {
			fmt.Fprintf(tw, "\tAutoAllow:\t%v\n", d.AutoAllow)
		}
		for _, k := range slices.Sorted(maps.Keys(d.Annotations)) {
			fmt.Fprintf(tw, "\tAnnotations:\t%s:\t%s\n", k, d.Annotations[k])
		}
	}
	fmt.Fprint(tw, "\n")
}

func writeGCPolicy(tw *tabwriter.Writer, i int, p pruneInfo) {
	fmt.Fprintf(tw, "GC Policy rule#%d:\n\tAll:\t%v\n", i, p.All)
	if len(p.Filter) > 0 {
		fmt.Fprintf(tw, "\tFilters:\t%s\n", strings.Join(p.Filter, " "))
	}
	if p.KeepDuration > 0 {
		fmt.Fprintf(tw, "\tKeep duration:\t%v\n", p.KeepDuration)
	}
	for _, limit := range []struct {
		name  string
		bytes int64
	}{{"Reserved space", p.ReservedSpace}, {"Minimum free space", p.MinFreeSpace}, {"Maximum used space", p.MaxUsedSpace}} {
		if limit.bytes > 0 {
			fmt.Fprintf(tw, "\t%s:\t%s\n", limit.name, byteCount(limit.bytes, -1))
		}
	}
}

func (b *buildctl) infoCommand() *cli.Command {
	return &cli.Command{
		Name:  "info",
		Usage: "display internal information",
		Flags: []cli.Flag{formatFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return b.withClient(ctx, cmd, func(c *client.Client) error {
				found, err := c.Info(ctx)
				if err != nil {
					return fmt.Errorf("failed to call info: %w", err)
				}
				v := versionInfo(found)
				if format := cmd.String("format"); format != "" {
					p, err := newPrinter(b.stdout, format)
					if err != nil {
						return err
					}
					return p.print(struct {
						BuildkitVersion buildkitVersion `json:"buildkitVersion"`
					}{v})
				}
				tw := tabwriter.NewWriter(b.stdout, 0, 0, 1, ' ', 0)
				fmt.Fprintf(tw, "BuildKit:\t%s %s %s\n", v.Package, v.Version, v.Revision)
				if v.DockerfileVersion != "" {
					fmt.Fprintf(tw, "Dockerfile:\t%s\n", v.DockerfileVersion)
				}
				return tw.Flush()
			})
		},
	}
}
