package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/ui"
)

const cacheMountsDescription = `The folders of RUN --mount=type=cache stay on the machine between builds. They are known by
the mount's id, or by its target where it has none. They can travel with other caches:

   kiln build --cache-to   type=registry,ref=example.com/app:cache,mounts=npm,go-build .
   kiln build --cache-from type=registry,ref=example.com/app:cache,mounts=npm,go-build .

mounts=* is all that the build uses; patterns such as go-* are possible. Only what has
changed is sent. A mount that is here already is not replaced by a build; import does that.`

// cacheMountsCommand is about the folders of RUN --mount=type=cache.
func cacheMountsCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "mounts",
		Usage:       "list, export, import and remove what RUN --mount=type=cache keeps",
		Description: cacheMountsDescription,
		Commands: []*cli.Command{
			cacheMountsListCommand(e), cacheMountsExportCommand(e), cacheMountsImportCommand(e), cacheMountsRemoveCommand(e),
		},
	}
}

func cacheMountsListCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:  "ls",
		Usage: "list the cache mounts",
		Flags: []cli.Flag{&cli.StringFlag{Name: "format", Value: "table", Usage: "`table or json`, an object a line"}},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			format := cmd.String("format")
			if format != "table" && format != "json" {
				return usagef(cmd, "--format %q: expected table or json", format)
			}
			return withClient(ctx, e, cmd, func(c *client.Client) error {
				list, err := c.CacheMounts(ctx)
				if err != nil {
					return err
				}
				if format == "json" {
					out := json.NewEncoder(e.stdout)
					for _, m := range list {
						if err := out.Encode(m); err != nil {
							return err
						}
					}
					return nil
				}
				return writeCacheMounts(e.stdout, list, time.Now())
			})
		},
	}
}

func writeCacheMounts(to io.Writer, list []client.CacheMount, now time.Time) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(to, "There are no cache mounts: no RUN --mount=type=cache has run here.")
		return err
	}
	w := tabwriter.NewWriter(to, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tSIZE\tUSES\tLAST USED\tIN USE")
	for _, m := range list {
		inUse := "no"
		if m.InUse {
			inUse = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s ago\t%s\n", m.ID, ui.Bytes(m.Size), m.Uses, now.Sub(m.LastUsed).Round(time.Second), inUse)
	}
	return w.Flush()
}

func cacheMountsExportCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "write a cache mount's files into a tar archive, or into a cache for others",
		ArgsUsage: "ID",
		Description: `Examples:
   kiln cache mounts export npm --output npm.tar
   kiln cache mounts export npm --output - | tar t
   kiln cache mounts export npm --to type=registry,ref=example.com/app:cache     only what has changed is sent`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write a tar archive to `FILE`; - is standard output"},
			&cli.StringSliceFlag{Name: "to", Usage: "write into a `CACHE`, as in kiln build --cache-to"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			id, err := oneMount(cmd, "output", "to")
			if err != nil {
				return err
			}
			if file := cmd.String("output"); file != "" {
				return withClient(ctx, e, cmd, func(c *client.Client) error { return exportMountTo(ctx, e, c, id, file) })
			}
			entry, err := mountPlace(e, cmd, "to", id)
			if err != nil {
				return err
			}
			return moveMount(ctx, e, cmd, client.SolveOpt{CacheExports: []client.CacheEntry{entry}})
		},
	}
}

// oneMount is the id that a command names, with just one of two flags.
func oneMount(cmd *cli.Command, file, place string) (string, error) {
	if cmd.Args().Len() != 1 || cmd.Args().First() == "" {
		return "", usagef(cmd, "want the id of one cache mount; kiln cache mounts ls lists them")
	}
	if cmd.IsSet(file) == cmd.IsSet(place) {
		return "", usagef(cmd, "want either --%s FILE or --%s CACHE", file, place)
	}
	return cmd.Args().First(), nil
}

// mountPlace is the one cache that a flag names, for the mount of one id.
func mountPlace(e *env, cmd *cli.Command, flag, id string) (client.CacheEntry, error) {
	entries, err := cacheEntries(e, cmd, flag)
	if err != nil {
		return client.CacheEntry{}, err
	}
	if len(entries) != 1 {
		return client.CacheEntry{}, usagef(cmd, "--%s: want one cache, not %d", flag, len(entries))
	}
	if strings.ContainsAny(id, ",;") {
		return client.CacheEntry{}, usagef(cmd, "cache mount %q: an id with a comma or a semicolon can travel in archives only", id)
	}
	entries[0].Attrs["mounts"] = id
	entries[0].Attrs["format"] = "kiln"
	return entries[0], nil
}

// moveMount has a build do nothing but what its caches are for.
func moveMount(ctx context.Context, e *env, cmd *cli.Command, opt client.SolveOpt) error {
	opt.Internal = true
	return withClient(ctx, e, cmd, func(c *client.Client) error {
		display, err := client.NewDisplay(client.DisplayOptions{Mode: client.DisplayAuto, Out: e.stderr, Getenv: e.getenv})
		if err != nil {
			return err
		}
		_, err = c.Build(ctx, opt, func(context.Context, *client.Gateway) (*client.BuildResult, error) { return &client.BuildResult{}, nil }, display)
		return endDisplay(ctx, display, client.DisplayAuto, err)
	})
}

func exportMountTo(ctx context.Context, e *env, c *client.Client, id, file string) error {
	if file == "-" {
		return c.WriteCacheMount(ctx, id, e.stdout)
	}
	return export.WriteFile(file, func(to io.Writer) error {
		w := bufio.NewWriterSize(to, 1<<20)
		return errors.Join(c.WriteCacheMount(ctx, id, w), w.Flush())
	})
}

func cacheMountsImportCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "put files in place of a cache mount's",
		ArgsUsage: "ID",
		Description: `Examples:
   kiln cache mounts import npm --input npm.tar
   tar cC ~/.npm . | kiln cache mounts import npm --input -
   kiln cache mounts import npm --from type=registry,ref=example.com/app:cache`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "input", Aliases: []string{"i"}, Usage: "read a tar archive from `FILE`, which may be compressed; - is standard input"},
			&cli.StringSliceFlag{Name: "from", Usage: "read from a `CACHE`, as in kiln build --cache-from"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			id, err := oneMount(cmd, "input", "from")
			if err != nil {
				return err
			}
			if file := cmd.String("input"); file != "" {
				return withClient(ctx, e, cmd, func(c *client.Client) error { return importMountFrom(ctx, e, c, id, file) })
			}
			entry, err := mountPlace(e, cmd, "from", id)
			if err != nil {
				return err
			}
			entry.Attrs["mounts-replace"] = "true"
			return moveMount(ctx, e, cmd, client.SolveOpt{CacheImports: []client.CacheEntry{entry}})
		},
	}
}

func importMountFrom(ctx context.Context, e *env, c *client.Client, id, file string) (err error) {
	in := e.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		defer f.Close()
		in = f
	}
	size, err := c.ReadCacheMount(ctx, id, in)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "Cache mount %s now takes %s\n", id, ui.Bytes(size))
	return err
}

func cacheMountsRemoveCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Usage:     "remove cache mounts that no step uses",
		ArgsUsage: "ID...",
		Flags:     []cli.Flag{&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all of them"}},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			ids := cmd.Args().Slice()
			if (len(ids) > 0) == cmd.Bool("all") {
				return usagef(cmd, "want the ids of cache mounts, or --all; kiln cache mounts ls lists them")
			}
			return withClient(ctx, e, cmd, func(c *client.Client) error {
				removed, inUse, err := c.RemoveCacheMounts(ctx, cmd.Bool("all"), ids...)
				if err != nil {
					return err
				}
				total := int64(0)
				for _, m := range removed {
					total += m.Size
				}
				fmt.Fprintf(e.pages, "Removed %d, freed %s\n", len(removed), ui.Bytes(total))
				for _, m := range inUse {
					fmt.Fprintf(e.stderr, "kiln: cache mount %s is in use and stays\n", m.ID)
				}
				if len(inUse) > 0 {
					return fmt.Errorf("%d cache mounts are in use; try again when their builds have ended", len(inUse))
				}
				return nil
			})
		},
	}
}
