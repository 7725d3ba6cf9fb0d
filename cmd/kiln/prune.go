package main

import (
	"context"
	"fmt"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/ui"
)

const pruneDescription = `Removes what the daemon stores and nobody uses at the moment. The next build has
to do again what it takes from there.

Examples:
   kiln prune                         all that is not in use
   kiln prune --keep-duration 24h     but for what was used in the last 24 hours
   kiln prune --max-used-space 10g    as much as it takes to get down to 10 GiB
   kiln prune --filter type=exec.cachemount`

func pruneCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "prune",
		Usage:       "give space back",
		Description: pruneDescription,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "filter", Usage: "only what matches `FILTER` (see kiln du --help); may be repeated"},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also what the daemon keeps for itself"},
			&cli.DurationFlag{Name: "keep-duration", Usage: "keep what was used in this time, such as 24h"},
			&cli.StringFlag{Name: "reserved-space", Usage: "never go below this `SIZE`, such as 1g"},
			&cli.StringFlag{Name: "max-used-space", Usage: "go no further than down to this `SIZE`"},
			&cli.StringFlag{Name: "min-free-space", Usage: "go no further than until this `SIZE` of the disk is free"},
			&cli.BoolFlag{Name: "verbose", Usage: "list what is removed"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error { return runPrune(ctx, e, cmd) },
	}
}

func runPrune(ctx context.Context, e *env, cmd *cli.Command) error {
	if err := noArgs(cmd); err != nil {
		return err
	}
	opt := client.PruneOpt{Filters: filters(cmd), All: cmd.Bool("all"), KeepFor: cmd.Duration("keep-duration")}
	for flag, to := range map[string]*int64{
		"reserved-space": &opt.Reserved, "max-used-space": &opt.MaxUsed, "min-free-space": &opt.MinFree,
	} {
		if v := cmd.String(flag); v != "" {
			n, err := parseSize(v)
			if err != nil {
				return usagef(cmd, "--%s: %v", flag, err)
			}
			*to = n
		}
	}
	return withClient(ctx, e, cmd, func(c *client.Client) error {
		var total int64
		count := 0
		err := c.Prune(ctx, opt, func(u client.Usage) {
			total, count = total+u.Size, count+1
			if cmd.Bool("verbose") {
				fmt.Fprintf(e.stdout, "%s  %s  %s\n", u.ID, u.Type, ui.Bytes(u.Size))
			}
		})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(e.stdout, "Removed %d, freed %s\n", count, ui.Bytes(total))
		return err
	})
}
