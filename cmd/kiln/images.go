package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/ui"
)

const imagesDescription = `Lists and removes the images in the daemon's store: those that were built with -t and
not sent elsewhere. Their layers stay while the cache has them, too (see kiln prune).

Examples:
   kiln build -t hello .
   kiln images ls
   kiln images rm hello
   kiln images rm --all`

func imagesCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "images",
		Usage:       "list and remove images in the daemon's store",
		Description: imagesDescription,
		Commands: []*cli.Command{
			{
				Name: "ls", Usage: "list images", Description: imagesDescription, Flags: []cli.Flag{textOrJSON()},
				Action: func(ctx context.Context, cmd *cli.Command) error {
					if err := noArgs(cmd); err != nil {
						return err
					}
					asJSON, err := wantsJSON(cmd)
					if err != nil {
						return err
					}
					return withClient(ctx, e, cmd, func(c *client.Client) error {
						list, err := c.ListImages(ctx)
						if err != nil {
							return err
						}
						if asJSON {
							return writeJSON(e.stdout, list)
						}
						return writeImages(e.stdout, list)
					})
				},
			},
			{
				Name: "rm", Usage: "remove images", ArgsUsage: "NAME...", Description: imagesDescription,
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all of them"}},
				Action: func(ctx context.Context, cmd *cli.Command) error { return removeImages(ctx, e, cmd) },
			},
		},
	}
}

func writeImages(out io.Writer, list []client.Image) error {
	w := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(w, "NAME\tDIGEST\tLAYERS\tSIZE")
	for _, i := range list {
		fmt.Fprintf(w, "%s\t%.19s\t%d\t%s\n", i.Name, i.Digest, i.Layers, ui.Bytes(i.Size))
	}
	return w.Flush()
}

func removeImages(ctx context.Context, e *env, cmd *cli.Command) error {
	all := cmd.Bool("all")
	if all == cmd.Args().Present() {
		return usagef(cmd, "want the NAME of an image, or --all: see kiln images ls")
	}
	return withClient(ctx, e, cmd, func(c *client.Client) error {
		list, err := c.ListImages(ctx)
		if err != nil {
			return err
		}
		var names []string
		for _, word := range cmd.Args().Slice() {
			name, err := imageName(list, word)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
		removed, freed, err := c.RemoveImages(ctx, all, names...)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(e.stdout, "Removed %d, freed %s\n", len(removed), ui.Bytes(freed))
		return err
	})
}

// imageName finds the name that a word stands for: with or without a registry,
// "library" and a tag of "latest", or the beginning of the digest.
func imageName(list []client.Image, word string) (string, error) {
	tagged := word
	if i := strings.LastIndexByte(word, ':'); i < strings.LastIndexByte(word, '/')+1 {
		tagged = word + ":latest"
	}
	for _, name := range []string{word, tagged, "docker.io/" + tagged, "docker.io/library/" + tagged} {
		if slices.ContainsFunc(list, func(i client.Image) bool { return i.Name == name }) {
			return name, nil
		}
	}
	var found []string
	for _, i := range list {
		if len(word) >= 6 && (strings.HasPrefix(i.Digest, word) || strings.HasPrefix(i.Digest, "sha256:"+word)) {
			found = append(found, i.Name)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("no image is called %q: see kiln images ls", word)
	case 1:
		return found[0], nil
	}
	return "", fmt.Errorf("%s is the digest of %s: give a name", word, strings.Join(found, " and "))
}
