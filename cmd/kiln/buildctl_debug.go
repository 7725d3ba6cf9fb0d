package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode/utf8"

	digest "github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v3"
	"go.etcd.io/bbolt"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/llb/pb"
)

func (b *buildctl) debugCommand() *cli.Command {
	return &cli.Command{
		Name:  "debug",
		Usage: "debug utilities",
		Commands: []*cli.Command{
			b.dumpLLBCommand(), b.dumpMetadataCommand(), b.workersCommand(), b.infoCommand(), b.monitorCommand(),
			b.logsCommand(), b.ctlCommand(), b.getCommand(), b.historiesCommand(),
		},
	}
}

func (b *buildctl) dumpLLBCommand() *cli.Command {
	return &cli.Command{
		Name: "dump-llb",
		Usage: "dump LLB in human-readable format. LLB can be also passed via stdin. " +
			"This command does not require the daemon to be running.",
		ArgsUsage: "<llbfile>",
		Flags:     []cli.Flag{&cli.BoolFlag{Name: "dot", Usage: "Output dot format"}},
		Action: func(_ context.Context, cmd *cli.Command) error {
			def, err := readDefinition(b.env, cmd.Args().First())
			if err != nil {
				return err
			}
			ops, err := dumpedOps(def)
			if err != nil {
				return err
			}
			if cmd.Bool("dot") {
				return writeDot(b.stdout, ops)
			}
			return writeOps(b.stdout, ops)
		},
	}
}

// readDefinition reads LLB from a file; "" and "-" are standard input.
func readDefinition(e *env, name string) (_ *pb.Definition, err error) {
	in := e.stdin
	if name != "" && name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxDefinition+1))
	if err != nil {
		return nil, fmt.Errorf("read definition: %w", err)
	}
	if len(data) > maxDefinition {
		return nil, fmt.Errorf("the definition is larger than %d bytes", maxDefinition)
	}
	var def pb.Definition
	if err := proto.Unmarshal(data, &def); err != nil {
		return nil, fmt.Errorf("decode definition: %w", err)
	}
	return &def, nil
}

// dumpedOp is an operation, as it is printed.
type dumpedOp struct {
	Op         *pb.Op
	Digest     digest.Digest
	OpMetadata *pb.OpMetadata
}

func dumpedOps(def *pb.Definition) ([]dumpedOp, error) {
	var out []dumpedOp
	for i, raw := range def.GetDef() {
		var op pb.Op
		if err := proto.Unmarshal(raw, &op); err != nil {
			return nil, fmt.Errorf("failed to parse op: decode operation %d: %w", i, err)
		}
		d := digest.FromBytes(raw)
		meta := def.GetMetadata()[string(d)]
		if meta == nil {
			meta = &pb.OpMetadata{}
		}
		out = append(out, dumpedOp{&op, d, meta})
	}
	return out, nil
}

// writeOps prints a line of JSON for each operation.
func writeOps(out io.Writer, ops []dumpedOp) error {
	enc := json.NewEncoder(out)
	for _, op := range ops {
		if err := enc.Encode(op); err != nil {
			return fmt.Errorf("print operation %s: %w", op.Digest, err)
		}
	}
	return nil
}

// writeDot prints a graph for the programs of Graphviz.
func writeDot(out io.Writer, ops []dumpedOp) error {
	w := &errWriter{out: out}
	w.printf("digraph {\n")
	for _, op := range ops {
		name, shape := dotNode(op)
		w.printf("  %q [label=%q shape=%q];\n", op.Digest, name, shape)
	}
	for _, op := range ops {
		for i, in := range op.Op.GetInputs() {
			label := ""
			for _, m := range op.Op.GetExec().GetMounts() {
				if int(m.GetInput()) == i && m.GetDest() != "/" {
					label = m.GetDest()
				}
			}
			w.printf("  %q -> %q [label=%q];\n", in.GetDigest(), op.Digest, label)
		}
	}
	w.printf("}\n")
	return w.err
}

// dotNode is what a node says, and its shape.
func dotNode(op dumpedOp) (label, shape string) {
	switch o := op.Op.GetOp().(type) {
	case *pb.Op_Source:
		return o.Source.GetIdentifier(), "ellipse"
	case *pb.Op_Exec:
		return strings.Join(o.Exec.GetMeta().GetArgs(), " "), "box"
	case *pb.Op_Build:
		return "build", "box3d"
	case *pb.Op_Merge:
		return "merge", "invtriangle"
	case *pb.Op_Diff:
		return "diff", "doublecircle"
	case *pb.Op_File:
		var names []string
		for _, a := range o.File.GetActions() {
			names = append(names, dotAction(a))
		}
		return strings.Join(names, ","), "note"
	}
	return op.Digest.String(), "plaintext"
}

func dotAction(a *pb.FileAction) string {
	switch a := a.GetAction().(type) {
	case *pb.FileAction_Copy:
		return fmt.Sprintf("copy{src=%s, dest=%s}", a.Copy.GetSrc(), a.Copy.GetDest())
	case *pb.FileAction_Mkfile:
		return fmt.Sprintf("mkfile{path=%s}", a.Mkfile.GetPath())
	case *pb.FileAction_Mkdir:
		return fmt.Sprintf("mkdir{path=%s}", a.Mkdir.GetPath())
	case *pb.FileAction_Rm:
		return fmt.Sprintf("rm{path=%s}", a.Rm.GetPath())
	case *pb.FileAction_Symlink:
		return fmt.Sprintf("symlink{oldpath=%s, newpath=%s}", a.Symlink.GetOldpath(), a.Symlink.GetNewpath())
	}
	return ""
}

func (b *buildctl) dumpMetadataCommand() *cli.Command {
	return &cli.Command{
		Name:  "dump-metadata",
		Usage: "dump the meta in human-readable format.  This command requires the daemon NOT to be running.",
		Flags: []cli.Flag{&cli.StringFlag{Name: "root", Usage: "path to state directory", Value: "/var/lib/buildkit"}},
		Action: func(_ context.Context, cmd *cli.Command) error {
			names, err := databases(cmd.String("root"))
			if err != nil {
				return err
			}
			for _, name := range names {
				if _, err := fmt.Fprintf(b.stdout, "===== %s =====\n", name); err != nil {
					return err
				}
				if err := dumpDatabase(b.stdout, name); err != nil {
					return fmt.Errorf("dump %s (a daemon that runs keeps it locked): %w", name, err)
				}
			}
			return nil
		},
	}
}

// databases lists the databases below the root of a daemon: Kiln's, or those of
// BuildKit's workers.
func databases(root string) ([]string, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		name := filepath.Join(root, e.Name())
		if e.IsDir() {
			name = filepath.Join(name, "metadata_v2.db")
		} else if e.Name() != "kiln.db" {
			continue
		}
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
			out = append(out, name)
		}
	}
	return out, nil
}

func dumpDatabase(out io.Writer, name string) (err error) {
	db, err := bbolt.Open(name, 0o400, &bbolt.Options{ReadOnly: true, Timeout: 3 * time.Second})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	w := &errWriter{out: out}
	return errors.Join(db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error { return dumpBucket(w, name, b, "") })
	}), w.err)
}

func dumpBucket(w *errWriter, name []byte, bucket *bbolt.Bucket, indent string) error {
	w.printf("%sbucket %q:\n", indent, name)
	return bucket.ForEach(func(k, v []byte) error {
		if sub := bucket.Bucket(k); sub != nil {
			return dumpBucket(w, k, sub, indent+"  ")
		}
		if !utf8.Valid(v) {
			w.printf("%s  %q: %x\n", indent, k, v)
			return w.err
		}
		w.printf("%s  %q: %s\n", indent, k, v)
		return w.err
	})
}
