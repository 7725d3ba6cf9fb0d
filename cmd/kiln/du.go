package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

const duDescription = `Lists what the daemon stores: results of steps, contexts, cache mounts.

Examples:
   kiln du                                      all of it, the largest first
   kiln du --filter type=exec.cachemount        what RUN --mount=type=cache keeps
   kiln du --verbose                            more on each

A filter is FIELD=VALUE, FIELD!=VALUE or FIELD~=REGEXP; fields are id, type,
description, inuse, mutable, shared. Several by commas must all match; of
several --filter one must.`

func duCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "du",
		Usage:       "show what takes space",
		Description: duDescription,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "filter", Usage: "only what matches `FILTER`; may be repeated"},
			&cli.BoolFlag{Name: "verbose", Usage: "more on each"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			return withClient(ctx, e, cmd, func(c *client.Client) error {
				list, err := c.DiskUsage(ctx, client.UsageOpt{Filters: filters(cmd)})
				if err != nil {
					return err
				}
				return writeUsage(e.stdout, list, cmd.Bool("verbose"))
			})
		},
	}
}

// withClient calls f with a client.
func withClient(ctx context.Context, e *env, cmd *cli.Command, f func(*client.Client) error) (err error) {
	c, err := connect(ctx, e, cmd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return f(c)
}

// filters are the filters as the daemon wants them: "==" where people write "=".
func filters(cmd *cli.Command) []string {
	var out []string
	for _, f := range cmd.StringSlice("filter") {
		b := []byte(nil)
		for i := range len(f) {
			b = append(b, f[i])
			before, after := byte(0), byte(0)
			if i > 0 {
				before = f[i-1]
			}
			if i+1 < len(f) {
				after = f[i+1]
			}
			if f[i] == '=' && after != '=' && before != '=' && before != '!' && before != '~' {
				b = append(b, '=')
			}
		}
		out = append(out, string(b))
	}
	return out
}

func writeUsage(out io.Writer, list []client.Usage, verbose bool) error {
	slices.SortFunc(list, func(a, b client.Usage) int {
		return cmp.Or(cmp.Compare(b.Size, a.Size), cmp.Compare(a.ID, b.ID))
	})
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	if !verbose {
		fmt.Fprintln(w, "ID\tTYPE\tSIZE\tLAST USED\tDESCRIPTION")
	}
	var total, inUse int64
	for _, u := range list {
		total += u.Size
		if u.InUse {
			inUse += u.Size
		}
		if verbose {
			fmt.Fprintf(w, "ID:\t%s\nType:\t%s\nSize:\t%s\nCreated:\t%s\nLast used:\t%s\nUses:\t%d\nIn use:\t%t\nShared:\t%t\nMutable:\t%t\nDescription:\t%s\n\n",
				u.ID, u.Type, sizeText(u.Size), u.Created.Format(time.RFC3339), when(u.LastUsed), u.Uses, u.InUse, u.Shared, u.Mutable, u.Description)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.60s\n", u.ID, u.Type, sizeText(u.Size), when(u.LastUsed), u.Description)
	}
	fmt.Fprintf(w, "Total:\t%s\nIn use:\t%s\n", sizeText(total), sizeText(inUse))
	return w.Flush()
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format("2006-01-02 15:04")
}

// sizeText is a number of bytes in decimal units.
func sizeText(n int64) string {
	v, unit := float64(n), 0
	for v >= 999.995 && unit < 6 {
		v, unit = v/1000, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.2f%cB", v, " kMGTPE"[unit])
}
