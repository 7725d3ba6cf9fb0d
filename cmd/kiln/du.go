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
	"github.com/kiln-build/kiln/internal/ui"
)

const duDescription = `Lists what the daemon stores: results of steps, contexts, cache mounts; and below them
what its folder holds besides. The sum of all is what the folder takes on the disk.

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
			textOrJSON(),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			asJSON, err := wantsJSON(cmd)
			if err != nil {
				return err
			}
			return withClient(ctx, e, cmd, func(c *client.Client) error {
				list, err := c.DiskUsage(ctx, client.UsageOpt{Filters: filters(cmd)})
				if err != nil {
					return err
				}
				var root *client.RootUsage
				if len(cmd.StringSlice("filter")) == 0 {
					if root, err = c.RootUsage(ctx); err != nil && !errors.Is(err, client.ErrNotKiln) {
						return err
					}
				}
				if asJSON {
					return writeJSON(e.stdout, usageJSON(list, root))
				}
				return errors.Join(writeUsage(e.stdout, list, cmd.Bool("verbose")), writeRoot(e.stdout, root))
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
				u.ID, u.Type, ui.Bytes(u.Size), u.Created.Format(time.RFC3339), when(u.LastUsed), u.Uses, u.InUse, u.Shared, u.Mutable, u.Description)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.60s\n", u.ID, u.Type, ui.Bytes(u.Size), when(u.LastUsed), u.Description)
	}
	fmt.Fprintf(w, "Total:\t%s\nIn use:\t%s\n", ui.Bytes(total), ui.Bytes(inUse))
	return w.Flush()
}

func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format("2006-01-02 15:04")
}

// writeRoot tells what the daemon's folder holds besides records.
func writeRoot(out io.Writer, root *client.RootUsage) error {
	if root == nil {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "\nBESIDES\tSIZE\tWHAT IT IS")
	for _, p := range root.Places {
		fmt.Fprintf(w, "%s\t%s\t%s\n", p.Name, ui.Bytes(p.Size), p.Description)
	}
	fmt.Fprintf(w, "All together:\t%s\n", ui.Bytes(root.Used))
	if root.Cap > 0 {
		fmt.Fprintf(w, "Cap:\t%s\t%d%% used\n", ui.Bytes(root.Cap), root.Used*100/root.Cap)
	}
	return w.Flush()
}

// usageJSON is what kiln du --format json prints.
func usageJSON(list []client.Usage, root *client.RootUsage) any {
	type record struct {
		ID          string    `json:"id"`
		Type        string    `json:"type"`
		Description string    `json:"description,omitempty"`
		Parents     []string  `json:"parents,omitempty"`
		Size        int64     `json:"size"` // bytes
		Created     time.Time `json:"created"`
		LastUsed    time.Time `json:"lastUsed,omitzero"`
		Uses        int64     `json:"uses"`
		Mutable     bool      `json:"mutable,omitempty"`
		InUse       bool      `json:"inUse,omitempty"`
		Shared      bool      `json:"shared,omitempty"`
	}
	out := struct {
		Records []record          `json:"records"`
		Root    *client.RootUsage `json:"root,omitempty"`
	}{Records: []record{}, Root: root}
	for _, u := range list {
		out.Records = append(out.Records, record(u))
	}
	return out
}
