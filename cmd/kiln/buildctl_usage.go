package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

// usageInfo is a record of what is stored, as templates and JSON have it.
type usageInfo struct {
	ID          string     `json:"id"`
	Mutable     bool       `json:"mutable"`
	InUse       bool       `json:"inUse"`
	Size        int64      `json:"size"`
	CreatedAt   time.Time  `json:"createdAt"`
	LastUsedAt  *time.Time `json:"lastUsedAt"`
	UsageCount  int        `json:"usageCount"`
	Parents     []string   `json:"parents"`
	Description string     `json:"description"`
	RecordType  string     `json:"recordType"`
	Shared      bool       `json:"shared"`
}

func usageInfoOf(u client.Usage) *usageInfo {
	return &usageInfo{
		ID: u.ID, Mutable: u.Mutable, InUse: u.InUse, Size: u.Size, CreatedAt: u.Created, LastUsedAt: timeOrNil(u.LastUsed),
		UsageCount: int(u.Uses), Parents: u.Parents, Description: u.Description, RecordType: u.Type, Shared: u.Shared,
	}
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (b *buildctl) duCommand() *cli.Command {
	return &cli.Command{
		Name:  "du",
		Usage: "disk usage",
		Flags: []cli.Flag{filterFlag("Filter records"), verboseFlag(), formatFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return b.withClient(ctx, cmd, func(c *client.Client) error { return b.diskUsage(ctx, cmd, c) })
		},
	}
}

func filterFlag(usage string) cli.Flag {
	return &cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: usage}
}

func verboseFlag() cli.Flag {
	return &cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "Verbose output"}
}

func (b *buildctl) diskUsage(ctx context.Context, cmd *cli.Command, c *client.Client) error {
	records, err := c.DiskUsage(ctx, client.UsageOpt{Filters: cmd.StringSlice("filter")})
	if err != nil {
		return fmt.Errorf("failed to call diskusage: %w", err)
	}
	var list []*usageInfo
	for _, u := range records {
		list = append(list, usageInfoOf(u))
	}
	slices.SortFunc(list, func(a, b *usageInfo) int { return cmp.Or(cmp.Compare(a.Size, b.Size), cmp.Compare(a.ID, b.ID)) })
	if format := cmd.String("format"); format != "" {
		p, err := newPrinter(b.stdout, format)
		if err != nil {
			return err
		}
		return p.print(list)
	}
	tw := b.table()
	if cmd.Bool("verbose") {
		for _, u := range list {
			writeUsageInfo(tw, u)
		}
	} else {
		writeUsageHeader(tw)
		for _, u := range list {
			writeUsageRow(tw, u)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	if len(cmd.StringSlice("filter")) > 0 {
		return nil
	}
	return writeUsageSum(tw, list)
}

// table is a writer of columns.
func (b *buildctl) table() *tabwriter.Writer { return tabwriter.NewWriter(b.stdout, 1, 8, 1, '\t', 0) }

func writeUsageInfo(tw *tabwriter.Writer, u *usageInfo) {
	line := func(key string, value any) { fmt.Fprintf(tw, "%s:\t%v\n", key, value) }
	line("ID", u.ID)
	if len(u.Parents) > 0 {
		line("Parents", strings.Join(u.Parents, ";"))
	}
	line("Created at", u.CreatedAt)
	line("Mutable", u.Mutable)
	line("Reclaimable", !u.InUse)
	line("Shared", u.Shared)
	line("Size", byteCount(u.Size, 2))
	if u.Description != "" {
		line("Description", u.Description)
	}
	line("Usage count", u.UsageCount)
	if u.LastUsedAt != nil {
		line("Last used", u.LastUsedAt)
	}
	if u.RecordType != "" {
		line("Type", u.RecordType)
	}
	fmt.Fprint(tw, "\n")
}

func writeUsageHeader(tw *tabwriter.Writer) { fmt.Fprintln(tw, "ID\tRECLAIMABLE\tSIZE\tLAST ACCESSED") }

func writeUsageRow(tw *tabwriter.Writer, u *usageInfo) {
	id, size := u.ID, byteCount(u.Size, 2)
	if u.Mutable {
		id += "*"
	}
	if u.Shared {
		size += "*"
	}
	fmt.Fprintf(tw, "%-71s\t%-11v\t%s\t\n", id, !u.InUse, size)
}

func writeUsageSum(tw *tabwriter.Writer, list []*usageInfo) error {
	var total, reclaimable, shared int64
	for _, u := range list {
		total += max(u.Size, 0)
		if !u.InUse {
			reclaimable += max(u.Size, 0)
		}
		if u.Shared {
			shared += u.Size
		}
	}
	if shared > 0 {
		fmt.Fprintf(tw, "Shared:\t%s\n", byteCount(shared, 2))
		fmt.Fprintf(tw, "Private:\t%s\n", byteCount(total-shared, 2))
	}
	fmt.Fprintf(tw, "Reclaimable:\t%s\n", byteCount(reclaimable, 2))
	fmt.Fprintf(tw, "Total:\t%s\n", byteCount(total, 2))
	return tw.Flush()
}

// byteCount is a number of bytes in decimal units, with a number of decimals; -1 is
// as many as it takes.
func byteCount(n int64, decimals int) string {
	if n < 1000 && n > -1000 {
		return strconv.FormatInt(n, 10) + "B"
	}
	v, unit := float64(n), 0
	for v >= 1000 || v <= -1000 {
		v, unit = v/1000, unit+1
	}
	verb := byte('f')
	if decimals < 0 {
		verb = 'g'
	}
	return strconv.FormatFloat(v, verb, decimals, 64) + string("kMGTPE"[unit-1]) + "B"
}

func (b *buildctl) pruneCommand() *cli.Command {
	return &cli.Command{
		Name:  "prune",
		Usage: "clean up build cache",
		Flags: []cli.Flag{
			&cli.DurationFlag{Name: "keep-duration", Usage: "Keep data newer than this limit"},
			&cli.Float64Flag{Name: "keep-storage", Usage: "Keep data below this limit (in MB)"},
			&cli.Float64Flag{Name: "keep-storage-min", Usage: "Always allow data above this limit (in MB)"},
			&cli.Float64Flag{Name: "free-storage", Usage: "Keep free data below this limit (in MB)"},
			filterFlag("Filter records"),
			&cli.BoolFlag{Name: "all", Usage: "Include internal/frontend references"},
			verboseFlag(), formatFlag(),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return b.withClient(ctx, cmd, func(c *client.Client) error { return b.prune(ctx, cmd, c) })
		},
	}
}

func (b *buildctl) prune(ctx context.Context, cmd *cli.Command, c *client.Client) error {
	opt := client.PruneOpt{
		Filters: cmd.StringSlice("filter"), All: cmd.Bool("all"), KeepFor: cmd.Duration("keep-duration"),
		Reserved: int64(cmd.Float64("keep-storage-min") * 1e6), MaxUsed: int64(cmd.Float64("keep-storage") * 1e6),
		MinFree: int64(cmd.Float64("free-storage") * 1e6),
	}
	tw := b.table()
	var total int64
	first := true
	var failure error
	show := func(u *usageInfo) error {
		if first && !cmd.Bool("verbose") {
			writeUsageHeader(tw)
		}
		first = false
		if cmd.Bool("verbose") {
			writeUsageInfo(tw, u)
			return nil
		}
		writeUsageRow(tw, u)
		return tw.Flush()
	}
	format := cmd.String("format")
	if format != "" {
		p, err := newPrinter(b.stdout, format)
		if err != nil {
			return err
		}
		show = func(u *usageInfo) error { return p.print(u) }
	}
	err := c.Prune(ctx, opt, func(u client.Usage) {
		total += u.Size
		if failure == nil {
			failure = show(usageInfoOf(u))
		}
	})
	if err != nil {
		return fmt.Errorf("failed to call prune: %w", err)
	}
	if failure != nil || format != "" {
		return failure
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(tw, "Total:\t%s\n", byteCount(total, 2))
	return tw.Flush()
}
