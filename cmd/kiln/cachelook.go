package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/ui"
)

const cacheDescription = `Looks into the cache: which steps it knows, what their keys are made of, and in what
two of them differ.

Examples:
   kiln cache ls               the steps that it knows, those made last first
   kiln cache ls make          those with "make" in their names
   kiln cache show KEY         all of what a key is made of
   kiln cache diff KEY KEY     in what two keys differ

A KEY may be cut short as long as it is clear. A step without a result was
removed to make room; what it was made of is remembered, so that kiln why can
tell. See also kiln why, kiln du and kiln prune.`

// cacheLookCommands are those that look into our own cache.
func cacheLookCommands(e *env) []*cli.Command {
	one := func(name, usage, args string, count int, f func(context.Context, *cli.Command, *client.Client, bool) error) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, ArgsUsage: args, Description: cacheDescription, Flags: []cli.Flag{textOrJSON()},
			Action: func(ctx context.Context, cmd *cli.Command) error {
				switch {
				case name == "ls" && cmd.NArg() > 1, name != "ls" && cmd.NArg() > count:
					return usagef(cmd, "unexpected argument %q", cmd.Args().Get(count))
				case name != "ls" && cmd.NArg() < count:
					return usagef(cmd, "want %s: see kiln cache ls", args)
				}
				asJSON, err := wantsJSON(cmd)
				if err != nil {
					return err
				}
				return withClient(ctx, e, cmd, func(c *client.Client) error { return f(ctx, cmd, c, asJSON) })
			},
		}
	}
	return []*cli.Command{
		one("ls", "list the steps that the cache knows", "[WORD]", 1, func(ctx context.Context, cmd *cli.Command, c *client.Client, asJSON bool) error {
			return listCache(ctx, e.stdout, cmd.Args().First(), c, asJSON)
		}),
		one("show", "show what a key is made of", "KEY", 1, func(ctx context.Context, cmd *cli.Command, c *client.Client, asJSON bool) error {
			r, err := c.ShowCache(ctx, cmd.Args().First())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(e.stdout, r)
			}
			return writeCacheRecord(e.stdout, r)
		}),
		one("diff", "tell in what two keys differ", "KEY KEY", 2, func(ctx context.Context, cmd *cli.Command, c *client.Client, asJSON bool) error {
			d, err := c.DiffCache(ctx, cmd.Args().Get(0), cmd.Args().Get(1))
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(e.stdout, d)
			}
			writeCacheDiff(e.pages, d)
			return nil
		}),
	}
}

// keyText is a key cut to what is clear in all likelihood.
func keyText(key string) string { return key[:min(len(key), 16)] }

func listCache(ctx context.Context, out io.Writer, word string, c *client.Client, asJSON bool) error {
	list := []client.CacheRecord{}
	err := c.ListCache(ctx, word, func(r client.CacheRecord) error {
		list = append(list, r)
		return nil
	})
	if err != nil {
		return err
	}
	if asJSON {
		return writeJSON(out, list)
	}
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "KEY\tMADE\tTOOK\tSIZE\tSTEP")
	var size int64
	kept := 0
	for _, r := range list {
		text := "removed"
		if r.Kept {
			kept++
			size += r.Size
			text = ui.Bytes(r.Size)
		} else if r.Evicted.IsZero() {
			text = "-" // nothing is kept of what costs nothing to make
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%.70s\n", keyText(r.Key), when(r.Made), r.Took.Round(time.Millisecond), text, r.Name)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%d steps known, results of %d kept, of %s\n", len(list), kept, ui.Bytes(size))
	return err
}

func writeCacheRecord(out io.Writer, r client.CacheRecord) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	line := func(key, format string, args ...any) {
		if key != "" { // else it goes on with the line before
			key += ":"
		}
		fmt.Fprintf(w, "%s\t"+format+"\n", append([]any{key}, args...)...)
	}
	line("Key", "%s", r.Key)
	line("Step", "%s", r.Name)
	line("Operation", "%s", r.Operation)
	for _, p := range r.Parts {
		line("Part", "%s", strings.Join(strings.Fields(p.Kind+" "+p.Name), " ")+" = "+p.Value)
	}
	for i, in := range r.Inputs {
		name := in.Name
		if name == "" {
			name = "a step of one build only"
		}
		line(fmt.Sprintf("Input %d", i), "%s", name)
		if in.Content == "" {
			line("", "key %s", in.Key)
			continue
		}
		line("", "content %s", in.Content)
		if in.Files > 0 {
			line("", "files or folders that are told apart: %d", in.Files)
		}
	}
	line("Made", "%s, in %s, by build %s", when(r.Made), r.Took.Round(time.Millisecond), r.Build)
	switch {
	case r.Kept:
		for i, o := range r.Outputs {
			text := "layer " + o.Layer + ", " + ui.Bytes(o.Size)
			if o.Absent {
				text = "not made: nobody wanted it"
			} else if o.Layer == "" {
				text = "empty"
			}
			line(fmt.Sprintf("Result %d", i), "%s", text)
		}
	case !r.Evicted.IsZero():
		line("Result", "removed %s on %s", r.EvictedBy, r.Evicted.Local().Format(time.DateTime))
	default:
		line("Result", "not kept")
	}
	return w.Flush()
}

func writeCacheDiff(out io.Writer, d *client.CacheDiff) {
	fmt.Fprintf(out, "- %s  %s\n+ %s  %s\n", keyText(d.A.Key), d.A.Name, keyText(d.B.Key), d.B.Name)
	if len(d.Differences) == 0 {
		fmt.Fprintln(out, "It is one key.")
		return
	}
	for _, x := range d.Differences {
		fmt.Fprintf(out, "  %s\n", x.Sentence)
	}
}
