package main

import (
	"context"

	"github.com/urfave/cli/v3"
)

// helpCommand is "kiln help COMMAND...", which is COMMAND --help.
func helpCommand(e *env) *cli.Command {
	return &cli.Command{
		Name: "help", Aliases: []string{"h"}, Usage: "show help", ArgsUsage: "[COMMAND]",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			words := []string{"kiln"}
			asked := cmd.Root()
			for _, name := range cmd.Args().Slice() {
				sub := asked.Command(name)
				if sub == nil {
					return noSuchCommand(asked, name)
				}
				asked, words = sub, append(words, name)
			}
			return rootCommand(e).Run(ctx, append(words, "--help"))
		},
	}
}
