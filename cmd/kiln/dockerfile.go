package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile"
)

func dockerfileCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "dockerfile",
		Usage:       "look into Dockerfiles",
		Description: "Commands for editors, formatters and other programs that read Dockerfiles. They need no daemon.",
		Commands:    []*cli.Command{astCommand(e)},
	}
}

const astDescription = `Prints the syntax tree of a Dockerfile (./Dockerfile, FILE, or - for standard
input) as JSON. Every node and token has its place, and nothing of the file is left
out: the texts of all tokens, one behind the other, are the file, byte for byte. So
a formatter can change some tokens and keep the rest. A file with errors has a tree
as well; the errors are in it, and are shown, and the exit code is 1.

Lines count from 1, columns and offsets in bytes from 0. A token that is no UTF-8
has its bytes as base64 beside its text.

Examples:
   kiln dockerfile ast app.Dockerfile
   kiln dockerfile ast | jq -r '.nodes[].instruction | select(.verb == "FROM") | .arguments[0].value'
      the base images
   kiln dockerfile ast | jq -j '.nodes[].tokens[].text'
      the file itself`

func astCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "ast",
		Usage:       "print the syntax tree of a Dockerfile as JSON",
		ArgsUsage:   "[FILE]",
		Description: astDescription,
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Len() > 1 {
				return usagef(cmd, "one FILE, not %q", cmd.Args().Slice())
			}
			return printAST(e, cmd.Args().First())
		},
	}
}

func printAST(e *env, name string) error {
	if name == "" {
		name = "Dockerfile"
	}
	data, err := readDockerfile(e, name)
	if err != nil {
		return err
	}
	tree, err := dockerfile.AST(name, data)
	if tree != nil {
		if _, werr := fmt.Fprintf(e.stdout, "%s\n", tree); werr != nil {
			return werr
		}
	}
	for _, one := range frontend.SourceErrorsIn(err) {
		fmt.Fprint(e.stderr, one.Snippet())
	}
	return err
}

// readDockerfile reads a file, or standard input for "-".
func readDockerfile(e *env, name string) ([]byte, error) {
	in := e.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read Dockerfile: %w", err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxDockerfile+1))
	if err != nil {
		return nil, fmt.Errorf("read Dockerfile %s: %w", name, err)
	}
	if len(data) > maxDockerfile {
		return nil, fmt.Errorf("read Dockerfile %s: it is longer than %d bytes, is it one?", name, maxDockerfile)
	}
	return data, nil
}
