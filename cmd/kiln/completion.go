package main

import (
	"context"
	"io"

	"github.com/urfave/cli/v3"
)

const completionDescription = `Prints a script that has a shell complete the commands, flags and values of kiln.

For the shells to come:
   bash   echo 'source <(kiln completion bash)' >> ~/.bashrc
   zsh    echo 'source <(kiln completion zsh)' >> ~/.zshrc
   fish   kiln completion fish > ~/.config/fish/completions/kiln.fish`

func completionCommand(e *env) *cli.Command {
	cmd := &cli.Command{
		Name: "completion", Usage: "print a completion script for bash, zsh or fish",
		Description: completionDescription,
	}
	for _, s := range []struct{ shell, script string }{{"bash", bashCompletion}, {"zsh", zshCompletion}, {"fish", fishCompletion}} {
		cmd.Commands = append(cmd.Commands, &cli.Command{
			Name: s.shell, Usage: "print the script for " + s.shell,
			Action: func(_ context.Context, cmd *cli.Command) error {
				if err := noArgs(cmd); err != nil {
					return err
				}
				_, err := io.WriteString(e.stdout, s.script)
				return err
			},
		})
	}
	return cmd
}
