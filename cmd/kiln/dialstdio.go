package main

import (
	"context"

	"github.com/urfave/cli/v3"
)

func dialStdioCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:   "dial-stdio",
		Usage:  "connect standard input and output to the daemon",
		Hidden: true,
		Description: "What addresses such as docker-container://NAME run on the other end.\n\n" +
			"Examples:\n   kiln dial-stdio",
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			address, err := daemonAddress(ctx, e, cmd)
			if err != nil {
				return err
			}
			return dialStdio(e, address, answerTimeout)
		},
	}
}
