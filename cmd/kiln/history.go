package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/client"
)

const historyDescription = `Shows the builds that the daemon remembers: their steps, logs and results.

Examples:
   kiln history ls                       the newest last
   kiln history logs                     what the newest build said, or: kiln history logs REF
   kiln history inspect REF              options, results and attestations of a build
   kiln history pin REF                  keep it until kiln history unpin REF
   kiln history rm REF                   forget it; --all forgets those that are not pinned

A REF may be cut short as long as it is clear.`

func historyCommand(e *env) *cli.Command {
	one := func(name, usage, args string, flags []cli.Flag, f func(context.Context, *cli.Command, *client.Client) error) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, ArgsUsage: args, Flags: flags, Description: historyDescription,
			Action: func(ctx context.Context, cmd *cli.Command) error {
				return withClient(ctx, e, cmd, func(c *client.Client) error { return f(ctx, cmd, c) })
			},
		}
	}
	pin := func(pinned bool) func(context.Context, *cli.Command, *client.Client) error {
		return func(ctx context.Context, cmd *cli.Command, c *client.Client) error {
			return eachRecord(ctx, cmd, c, func(r *client.BuildRecord) error {
				return c.UpdateBuildHistory(ctx, client.HistoryUpdate{Ref: r.Ref, Pinned: pinned})
			})
		}
	}
	return &cli.Command{
		Name:        "history",
		Usage:       "show builds of the past",
		Description: historyDescription,
		Commands: []*cli.Command{
			one("ls", "list builds", "", []cli.Flag{
				&cli.StringSliceFlag{Name: "filter", Usage: "only those that match `FILTER`, such as status=error; may be repeated"},
				&cli.IntFlag{Name: "limit", Usage: "the newest `N`"},
			}, func(ctx context.Context, cmd *cli.Command, c *client.Client) error { return listBuilds(ctx, e, cmd, c) }),
			one("logs", "show what a build said", "[REF]", []cli.Flag{
				&cli.StringFlag{Name: "progress", Value: string(client.DisplayPlain), Usage: "how it is shown: auto, tty, plain or rawjson"},
				&cli.BoolFlag{Name: "trace", Usage: "the OpenTelemetry trace in place of the log"},
			}, func(ctx context.Context, cmd *cli.Command, c *client.Client) error { return showLogs(ctx, e, cmd, c) }),
			one("inspect", "show what is known of a build", "[REF]", []cli.Flag{
				&cli.StringFlag{Name: "format", Usage: "by a `TEMPLATE` of Go, or json"},
			}, func(ctx context.Context, cmd *cli.Command, c *client.Client) error {
				return inspectBuild(ctx, e, cmd, c)
			}),
			one("rm", "forget builds", "REF...", []cli.Flag{
				&cli.BoolFlag{Name: "all", Usage: "all that are not pinned"},
			}, removeBuilds),
			one("pin", "keep builds", "REF...", nil, pin(true)),
			one("unpin", "let builds be forgotten", "REF...", nil, pin(false)),
		},
	}
}

// builds lists the records, the oldest first.
func builds(ctx context.Context, c *client.Client, opt client.HistoryOpt) ([]*client.BuildRecord, error) {
	opt.EarlyExit = true
	var list []*client.BuildRecord
	err := c.ListenBuildHistory(ctx, opt, func(e client.HistoryEvent) error {
		if e.Record != nil && e.Type != client.HistoryDeleted {
			list = append(list, e.Record)
		}
		return nil
	})
	slices.SortStableFunc(list, func(a, b *client.BuildRecord) int { return a.Created.Compare(b.Created) })
	return list, err
}

func listBuilds(ctx context.Context, e *env, cmd *cli.Command, c *client.Client) error {
	if err := noArgs(cmd); err != nil {
		return err
	}
	list, err := builds(ctx, c, client.HistoryOpt{Filters: filters(cmd), Limit: cmd.Int("limit")})
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(e.stdout, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "REF\tSTATUS\tCREATED\tDURATION\tCACHED\tNAME")
	for _, r := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d/%d\t%s\n", r.Ref, buildStatus(r), when(r.Created), buildDuration(r), r.CachedSteps, r.TotalSteps, buildName(r))
	}
	return w.Flush()
}

// buildStatus says in a word, or two, how a build went.
func buildStatus(r *client.BuildRecord) string {
	status := "completed"
	switch {
	case r.Completed.IsZero():
		status = "running"
	case r.Err != nil && r.Err.Code == codes.Canceled:
		status = "canceled"
	case r.Err != nil:
		status = "failed"
	}
	if r.Pinned {
		status += ", pinned"
	}
	return status
}

func buildDuration(r *client.BuildRecord) string {
	end := r.Completed
	if end.IsZero() {
		end = time.Now()
	}
	return end.Sub(r.Created).Round(100 * time.Millisecond).String()
}

// buildName is what a person knows a build by: its image, or its Dockerfile's target.
func buildName(r *client.BuildRecord) string {
	if name := r.ExporterResponse["image.name"]; name != "" {
		return name
	}
	for _, x := range r.Exports {
		if name := x.Attrs["name"]; name != "" {
			return name
		}
	}
	return strings.Join(slices.DeleteFunc([]string{r.FrontendAttrs["context"], r.FrontendAttrs["filename"], r.FrontendAttrs["target"]},
		func(s string) bool { return s == "" }), " ")
}

// oneRecord is the build that the argument means, or the newest.
func oneRecord(ctx context.Context, cmd *cli.Command, c *client.Client) (*client.BuildRecord, error) {
	if cmd.Args().Len() > 1 {
		return nil, usagef(cmd, "one REF, not %q", cmd.Args().Slice())
	}
	list, err := builds(ctx, c, client.HistoryOpt{})
	if err != nil {
		return nil, err
	}
	if cmd.Args().Present() {
		return pick(list, cmd.Args().First())
	}
	if len(list) == 0 {
		return nil, errors.New("the daemon remembers no build")
	}
	return list[len(list)-1], nil
}

// pick is the record whose ref begins with a word.
func pick(list []*client.BuildRecord, word string) (*client.BuildRecord, error) {
	var found *client.BuildRecord
	for _, r := range list {
		switch {
		case r.Ref == word:
			return r, nil
		case !strings.HasPrefix(r.Ref, word) || word == "":
		case found != nil:
			return nil, fmt.Errorf("%s may be the build %s or %s", word, found.Ref, r.Ref)
		default:
			found = r
		}
	}
	if found == nil {
		return nil, fmt.Errorf("the daemon remembers no build %s: see kiln history ls", word)
	}
	return found, nil
}

// eachRecord calls f for the builds that the arguments mean.
func eachRecord(ctx context.Context, cmd *cli.Command, c *client.Client, f func(*client.BuildRecord) error) error {
	if !cmd.Args().Present() {
		return usagef(cmd, "want the REF of a build: see kiln history ls")
	}
	list, err := builds(ctx, c, client.HistoryOpt{})
	if err != nil {
		return err
	}
	for _, word := range cmd.Args().Slice() {
		r, err := pick(list, word)
		if err != nil {
			return err
		}
		if err := f(r); err != nil {
			return err
		}
	}
	return nil
}

func removeBuilds(ctx context.Context, cmd *cli.Command, c *client.Client) error {
	remove := func(r *client.BuildRecord) error {
		return c.UpdateBuildHistory(ctx, client.HistoryUpdate{Ref: r.Ref, Delete: true})
	}
	if !cmd.Bool("all") {
		return eachRecord(ctx, cmd, c, remove)
	}
	if err := noArgs(cmd); err != nil {
		return err
	}
	list, err := builds(ctx, c, client.HistoryOpt{})
	if err != nil {
		return err
	}
	for _, r := range list {
		if r.Pinned || r.Completed.IsZero() {
			continue
		}
		if err := remove(r); err != nil {
			return err
		}
	}
	return nil
}

func showLogs(ctx context.Context, e *env, cmd *cli.Command, c *client.Client) error {
	mode, err := client.ParseDisplayMode(cmd.String("progress"))
	if err != nil {
		return usagef(cmd, "%v", err)
	}
	r, err := oneRecord(ctx, cmd, c)
	if err != nil {
		return err
	}
	if cmd.Bool("trace") {
		return buildTrace(ctx, c, r.Ref, e.stdout)
	}
	display, err := client.NewDisplay(client.DisplayOptions{Mode: mode, Out: e.stdout, Getenv: e.getenv})
	if err != nil {
		return usagef(cmd, "%v", err)
	}
	err = c.Status(ctx, r.Ref, display)
	return errors.Join(err, display.Finish(nil))
}

func inspectBuild(ctx context.Context, e *env, cmd *cli.Command, c *client.Client) error {
	r, err := oneRecord(ctx, cmd, c)
	if err != nil {
		return err
	}
	if format := cmd.String("format"); format != "" {
		p, err := newPrinter(e.stdout, format)
		if err != nil {
			return usagef(cmd, "--format: %v", err)
		}
		return p.print(historyEventOf(client.HistoryEvent{Type: client.HistoryComplete, Record: r}).Record)
	}
	if err := writeBuild(e.stdout, r); err != nil {
		return err
	}
	x, err := c.Why(ctx, r.Ref)
	if err != nil || r.Completed.IsZero() {
		return nil //nolint:nilerr // a daemon that is not Kiln's has no more to tell
	}
	_, err = fmt.Fprintf(e.stdout, "Cache:      %s\n", statsText(x.Cache))
	return err
}

func writeBuild(out io.Writer, r *client.BuildRecord) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", key, value)
		}
	}
	line("Ref", r.Ref)
	line("Status", buildStatus(r))
	if r.Err != nil {
		line("Error", r.Err.Message)
	}
	line("Created", r.Created.Local().Format(time.RFC3339))
	line("Duration", buildDuration(r))
	line("Steps", fmt.Sprintf("%d, of them %d completed, %d from cache", r.TotalSteps, r.CompletedSteps, r.CachedSteps))
	if r.Warnings > 0 {
		line("Warnings", fmt.Sprint(r.Warnings))
	}
	line("Frontend", r.Frontend)
	for _, k := range slices.Sorted(maps.Keys(r.FrontendAttrs)) {
		line("Option", k+"="+r.FrontendAttrs[k])
	}
	for _, x := range r.Exports {
		line("Output", x.Type+" "+x.Attrs["name"])
	}
	results := map[string]*client.ResultInfo{"": r.Result}
	maps.Copy(results, r.Results)
	for _, platform := range slices.Sorted(maps.Keys(results)) {
		result := results[platform]
		if result == nil {
			continue
		}
		for _, i := range slices.Sorted(maps.Keys(result.Descriptors)) {
			line("Result", strings.TrimSpace(platform+" "+string(result.Descriptors[i].Digest)))
		}
		for _, a := range result.Attestations {
			line("Attestation", strings.TrimSpace(platform+" "+a.Annotations["in-toto.io/predicate-type"]+" "+string(a.Digest)))
		}
	}
	return w.Flush()
}
