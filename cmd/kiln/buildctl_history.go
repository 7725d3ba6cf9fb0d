package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

func (b *buildctl) pruneHistoriesCommand() *cli.Command {
	return &cli.Command{
		Name:  "prune-histories",
		Usage: "clean up build histories",
		Flags: []cli.Flag{formatFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return b.withClient(ctx, cmd, func(c *client.Client) error { return b.pruneHistories(ctx, cmd, c) })
		},
	}
}

// pruneHistories removes the records that are not pinned. One that cannot be removed
// does not stop it.
func (b *buildctl) pruneHistories(ctx context.Context, cmd *cli.Command, c *client.Client) error {
	show, finish, err := b.showEvents(cmd.String("format"), "TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION", func(tw *tabwriter.Writer, e *historyEvent) {
		r := e.Record
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\n", e.Type, r.Ref, r.CreatedAt.local(), r.CompletedAt.local(), r.Generation)
	})
	if err != nil {
		return err
	}
	var failures []error
	err = c.ListenBuildHistory(ctx, client.HistoryOpt{EarlyExit: true}, func(e client.HistoryEvent) error {
		if e.Record == nil || e.Record.Pinned {
			return nil
		}
		if err := c.UpdateBuildHistory(ctx, client.HistoryUpdate{Ref: e.Record.Ref, Delete: true}); err != nil {
			failures = append(failures, err)
			return nil
		}
		return show(historyEventOf(e))
	})
	if err == nil {
		err = finish()
	}
	return errors.Join(append(failures, err)...)
}

// showEvents returns what shows an event: by a template, or as a row of a table.
func (b *buildctl) showEvents(format, header string, row func(*tabwriter.Writer, *historyEvent)) (show func(*historyEvent) error, finish func() error, err error) {
	if format != "" {
		p, err := newPrinter(b.stdout, format)
		if err != nil {
			return nil, nil, err
		}
		return func(e *historyEvent) error { return p.print(e) }, func() error { return nil }, nil
	}
	tw := b.table()
	fmt.Fprintln(tw, header)
	return func(e *historyEvent) error {
		row(tw, e)
		return tw.Flush()
	}, tw.Flush, nil
}

func (b *buildctl) historiesCommand() *cli.Command {
	return &cli.Command{
		Name:  "histories",
		Usage: "list build records",
		Flags: []cli.Flag{formatFlag()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return b.withClient(ctx, cmd, func(c *client.Client) error {
				show, finish, err := b.showEvents(cmd.String("format"), "TYPE\tREF\tCREATED\tCOMPLETED\tGENERATION\tPINNED", writeHistoryRow)
				if err != nil {
					return err
				}
				err = c.ListenBuildHistory(ctx, client.HistoryOpt{EarlyExit: true}, func(e client.HistoryEvent) error {
					return show(historyEventOf(e))
				})
				if err != nil {
					return err
				}
				return finish()
			})
		},
	}
}

func writeHistoryRow(tw *tabwriter.Writer, e *historyEvent) {
	r, pinned := e.Record, ""
	if r == nil {
		r = &historyRecord{}
	}
	if r.Pinned {
		pinned = "*"
	}
	fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%s\n", e.Type, r.Ref, r.CreatedAt.local(), r.CompletedAt.local(), r.Generation, pinned)
}

func (b *buildctl) ctlCommand() *cli.Command {
	return &cli.Command{
		Name:  "ctl",
		Usage: "control build records",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "pin", Usage: "Pin build so it will not be garbage collected"},
			&cli.BoolFlag{Name: "unpin", Usage: "Unpin build so it will be garbage collected"},
			&cli.BoolFlag{Name: "delete", Usage: "Delete build record"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if !cmd.Args().Present() {
				return errors.New("build ref must be specified")
			}
			pin, unpin, del := cmd.Bool("pin"), cmd.Bool("unpin"), cmd.Bool("delete")
			switch {
			case !pin && !unpin && !del:
				return errors.New("must specify one of --pin, --unpin, --delete")
			case pin && unpin:
				return errors.New("cannot specify both --pin and --unpin")
			case del && (pin || unpin):
				return errors.New("cannot specify --delete with --pin or --unpin")
			}
			return b.withClient(ctx, cmd, func(c *client.Client) error {
				return c.UpdateBuildHistory(ctx, client.HistoryUpdate{Ref: cmd.Args().First(), Pinned: pin, Delete: del})
			})
		},
	}
}

func (b *buildctl) getCommand() *cli.Command {
	return &cli.Command{
		Name:  "get",
		Usage: "retrieve a blob from contentstore",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if !cmd.Args().Present() {
				return errors.New("blob digest must be specified")
			}
			d, err := digest.Parse(cmd.Args().First())
			if err != nil {
				return err
			}
			return b.withClient(ctx, cmd, func(c *client.Client) error {
				return copyBlob(ctx, c, ocispecs.Descriptor{Digest: d}, b.stdout)
			})
		},
	}
}

// copyBlob writes a blob of a daemon.
func copyBlob(ctx context.Context, c *client.Client, desc ocispecs.Descriptor, out io.Writer) (err error) {
	r, err := c.OpenBlob(ctx, desc)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	_, err = io.CopyBuffer(out, content.NewReader(r), make([]byte, 1<<20))
	return err
}

func (b *buildctl) logsCommand() *cli.Command {
	return &cli.Command{
		Name:  "logs",
		Usage: "display build logs",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "progress", Usage: "progress output type", Value: "auto"},
			&cli.BoolFlag{Name: "trace", Usage: "show opentelemetry trace"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if !cmd.Args().Present() {
				return errors.New("build ref must be specified")
			}
			ref := cmd.Args().First()
			return b.withClient(ctx, cmd, func(c *client.Client) error {
				if cmd.Bool("trace") {
					return buildTrace(ctx, c, ref, b.stdout)
				}
				display, err := b.display(cmd.String("progress"), b.stdout)
				if err != nil {
					return err
				}
				err = c.Status(ctx, ref, display)
				return errors.Join(err, display.Finish(nil))
			})
		},
	}
}

// buildTrace writes the trace of a build.
func buildTrace(ctx context.Context, c *client.Client, ref string, out io.Writer) error {
	record, err := findBuild(ctx, c, ref)
	if err != nil {
		return err
	}
	if record.Trace == nil {
		return fmt.Errorf("ref %s does not have trace", ref)
	}
	return copyBlob(ctx, c, *record.Trace, out)
}

// findBuild returns the record of a build.
func findBuild(ctx context.Context, c *client.Client, ref string) (*client.BuildRecord, error) {
	var found *client.BuildRecord
	err := c.ListenBuildHistory(ctx, client.HistoryOpt{Ref: ref, EarlyExit: true}, func(e client.HistoryEvent) error {
		found = e.Record
		return nil
	})
	if err == nil && found == nil {
		err = fmt.Errorf("ref %s not found", ref)
	}
	return found, err
}

// display returns what shows progress; mode is that of a flag.
func (b *buildctl) display(mode string, out io.Writer) (client.Display, error) {
	if v := b.getenv("BUILDKIT_PROGRESS"); v != "" && mode == "auto" {
		mode = v
	}
	parsed, err := client.ParseDisplayMode(mode)
	if err != nil || mode == "none" {
		return nil, fmt.Errorf("invalid progress mode %s", mode)
	}
	return client.NewDisplay(client.DisplayOptions{Mode: parsed, Out: out, Getenv: b.getenv})
}

func (b *buildctl) monitorCommand() *cli.Command {
	return &cli.Command{
		Name:  "monitor",
		Usage: "display build events",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "completed", Usage: "show completed builds"},
			&cli.StringFlag{Name: "ref", Usage: "show events for a specific build"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return b.withClient(ctx, cmd, func(c *client.Client) error {
				opt := client.HistoryOpt{ActiveOnly: !cmd.Bool("completed"), Ref: cmd.String("ref")}
				return c.ListenBuildHistory(ctx, opt, func(e client.HistoryEvent) error {
					return writeMonitored(b.stdout, historyEventOf(e))
				})
			})
		},
	}
}

// writeMonitored writes an event, with what there is to fetch.
func writeMonitored(out io.Writer, e *historyEvent) error {
	r := e.Record
	if r == nil {
		return nil
	}
	w := &errWriter{out: out}
	w.printf("event: %s ref:%s\n", e.Type, r.Ref)
	if r.NumTotalSteps != 0 {
		w.printf("  cache: %d/%d\n", r.NumCachedSteps, r.NumTotalSteps)
	}
	if r.NumWarnings != 0 {
		w.printf("  warnings: %d\n", r.NumWarnings)
	}
	if r.Logs != nil {
		w.printf("  logs: %s\n", r.Logs)
	}
	if r.Trace != nil {
		w.printf("  trace: %s\n", r.Trace)
	}
	writeResult(w, "  ", r.Result)
	for platform, result := range r.Results {
		writeResult(w, "  ["+platform+"] ", result)
	}
	return w.err
}

func writeResult(w *errWriter, indent string, r *resultInfo) {
	if r == nil {
		return
	}
	for _, d := range r.Results {
		w.printf("%sdescriptor: %s\n", indent, d)
	}
	if len(r.Results) == 0 && r.ResultDeprecated != nil {
		w.printf("%sdescriptor: %s\n", indent, r.ResultDeprecated)
	}
	for _, a := range r.Attestations {
		w.printf("%sattestation: %s\n", indent, a)
	}
}

// errWriter keeps the first error of writes.
type errWriter struct {
	out io.Writer
	err error
}

func (w *errWriter) printf(format string, args ...any) {
	if w.err == nil {
		_, w.err = fmt.Fprintf(w.out, format, args...)
	}
}

// local is a moment for a table, or nothing.
func (t *timestamp) local() string {
	if t == nil {
		return ""
	}
	return t.AsTime().Local().Format(time.RFC3339)
}
