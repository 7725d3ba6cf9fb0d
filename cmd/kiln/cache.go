package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/ui"
)

// cacheCommand is all about caches, our own and those for others.
func cacheCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "cache",
		Usage:       "look into the cache, and see what is written for others",
		Description: cacheDescription,
		Commands:    append(cacheLookCommands(e), cacheMountsCommand(e), cacheStatusCommand(e), cacheIdentityCommand(e)),
	}
}

const cacheStatusDescription = `Lists the caches that builds write in the background, with --cache-to …,wait=false,
and those that have ended lately. An export that the daemon's end interrupted is told as
such: build once more, and only what is missing is uploaded.

Examples:
   kiln build --cache-to type=registry,ref=example.com/app:cache,mode=max,wait=false .
   kiln cache status
   kiln cache status --wait                     return when all have ended; exit code 1 if the last failed`

func cacheStatusCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "status",
		Usage:       "show caches that are written in the background",
		Description: cacheStatusDescription,
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "wait", Usage: "return when all have ended"}},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			return withClient(ctx, e, cmd, func(c *client.Client) error { return cacheStatus(ctx, e, c, cmd.Bool("wait")) })
		},
	}
}

// statusEvery is how often a daemon is asked whether exports have ended.
const statusEvery = 200 * time.Millisecond

func cacheStatus(ctx context.Context, e *env, c *client.Client, wait bool) error {
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		list, err := c.CacheExports(ctx)
		if err != nil {
			return err
		}
		running := false
		for _, one := range list {
			running = running || one.State == "running"
		}
		if !wait || !running {
			if err := writeCacheStatus(e.stdout, list, time.Now()); err != nil {
				return err
			}
			if wait && len(list) > 0 && list[0].State != "done" {
				return fmt.Errorf("the last export is %s: %s", list[0].State, list[0].Error)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func writeCacheStatus(to io.Writer, list []client.CacheExport, now time.Time) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(to, "No cache is or was written in the background.")
		return err
	}
	w := tabwriter.NewWriter(to, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "ID\tPLACE\tSTATE\tTIME\tRECORDS\tUPLOADED\tLEFT\tERROR")
	for _, one := range list {
		end := one.EndedAt
		if end.IsZero() {
			end = now
		}
		took := end.Sub(one.StartedAt).Round(100 * time.Millisecond)
		if one.State == "interrupted" && one.EndedAt.IsZero() {
			took = 0
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%d blobs, %s\t%d\t%s\n",
			one.ID, one.Place, one.State, took, one.Records, one.Blobs, ui.Bytes(one.Bytes), one.BlobsLeft, one.Error)
	}
	return w.Flush()
}

const cacheIdentityDescription = `Shows the public key by which others know the records that this daemon writes into caches.
Put it into the configuration of daemons that shall trust it:

   [[cache.trust.writer]]
     name = "ci"
     key = "ed25519:…"
     scopes = [""]                  # "" is what builds write that name no scope

With such a policy, records of nobody else count. The private key is cache-identity.pem
in the daemon's root folder, unless cache.trust.key names another file.`

func cacheIdentityCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "identity",
		Usage:       "show the public key that records of caches are signed with",
		Description: cacheIdentityDescription,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			return withClient(ctx, e, cmd, func(c *client.Client) error {
				key, err := c.CacheIdentity(ctx)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(e.stdout, key)
				return err
			})
		},
	}
}
