package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// maxDefinition is the size of the largest LLB definition that is read, bytes.
const maxDefinition = 256 << 20

func debugCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "debug",
		Usage:       "look into what kiln does",
		Description: "Commands for those who write frontends, or who look for a mistake in kiln.",
		Commands:    []*cli.Command{debugFrontendCommand(e), dumpLLBCommand(e)},
	}
}

const dumpDescription = `Reads an LLB definition, the protobuf message that a frontend or a program that
uses the llb package makes, from FILE or from standard input. It prints one line
of JSON for each operation, as BuildKit does, or the graph as text or for Graphviz.

Examples:
   my-frontend | kiln debug dump-llb | jq .
   my-frontend | kiln debug dump-llb --text
   my-frontend | kiln debug dump-llb --dot | dot -Tsvg > graph.svg`

func dumpLLBCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "dump-llb",
		Usage:       "print an LLB definition",
		ArgsUsage:   "[FILE]",
		Description: dumpDescription,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "text", Usage: "as text, for people"},
			&cli.BoolFlag{Name: "dot", Usage: "for the programs of Graphviz"},
		},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if cmd.Args().Len() > 1 {
				return usagef(cmd, "one FILE, not %q", cmd.Args().Slice())
			}
			if cmd.Bool("text") && cmd.Bool("dot") {
				return usagef(cmd, "--text and --dot exclude each other")
			}
			def, err := readDefinition(e, cmd.Args().First())
			if err != nil {
				return err
			}
			if cmd.Bool("text") {
				return dumpText(e.stdout, def)
			}
			ops, err := dumpedOps(def)
			if err != nil {
				return err
			}
			if cmd.Bool("dot") {
				return writeDot(e.stdout, ops)
			}
			return writeOps(e.stdout, ops)
		},
	}
}

func dumpText(out io.Writer, def *pb.Definition) error {
	g, err := llb.Unmarshal(def)
	if err != nil {
		return fmt.Errorf("decode definition: %w", err)
	}
	_, err = io.WriteString(out, g.Text())
	return err
}
