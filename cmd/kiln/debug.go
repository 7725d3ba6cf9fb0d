package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/urfave/cli/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	digest "github.com/opencontainers/go-digest"

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
		Commands:    []*cli.Command{dumpLLBCommand(e)},
	}
}

const dumpDescription = `Reads an LLB definition, the protobuf message that a frontend or a program that
uses the llb package makes, from standard input. It prints the graph as text, or
one line of JSON for each operation.

Examples:
   my-frontend | kiln debug dump-llb --text
   my-frontend | kiln debug dump-llb`

func dumpLLBCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "dump-llb",
		Usage:       "print an LLB definition",
		Description: dumpDescription,
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "text", Usage: "as text, for people"}},
		Action: func(_ context.Context, cmd *cli.Command) error {
			if err := noArgs(cmd); err != nil {
				return err
			}
			data, err := io.ReadAll(io.LimitReader(e.stdin, maxDefinition+1))
			if err != nil {
				return fmt.Errorf("read definition from standard input: %w", err)
			}
			if len(data) > maxDefinition {
				return fmt.Errorf("the definition is larger than %d bytes", maxDefinition)
			}
			var def pb.Definition
			if err := proto.Unmarshal(data, &def); err != nil {
				return fmt.Errorf("decode definition: %w", err)
			}
			if cmd.Bool("text") {
				return dumpText(e.stdout, &def)
			}
			return dumpJSON(e.stdout, &def)
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

// dumpJSON prints each operation with its digest and its metadata.
func dumpJSON(out io.Writer, def *pb.Definition) error {
	for i, raw := range def.GetDef() {
		var op pb.Op
		if err := proto.Unmarshal(raw, &op); err != nil {
			return fmt.Errorf("decode operation %d: %w", i, err)
		}
		id := digest.FromBytes(raw)
		opJSON, err := protojson.Marshal(&op)
		if err != nil {
			return fmt.Errorf("print operation %d: %w", i, err)
		}
		line := struct {
			Digest   digest.Digest
			Op       json.RawMessage
			Metadata json.RawMessage `json:",omitempty"`
		}{Digest: id, Op: opJSON}
		if m := def.GetMetadata()[string(id)]; m != nil {
			if line.Metadata, err = protojson.Marshal(m); err != nil {
				return fmt.Errorf("print metadata of operation %d: %w", i, err)
			}
		}
		b, err := json.Marshal(line)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(out, "%s\n", b); err != nil {
			return err
		}
	}
	return nil
}
