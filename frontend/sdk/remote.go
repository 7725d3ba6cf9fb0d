package sdk

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// openContext finds the context where it is no directory of the client: a git
// repository, an archive or a build file at a URL, or a graph of the request.
func (b *Build) openContext(ctx context.Context) error {
	name := cmp.Or(b.opts[optContext], "context")
	if in := b.inputs[name]; in != nil {
		return b.setRemote(ctx, in.Root)
	}
	address := b.opts[name]
	git, err := llb.ParseGitURL(address)
	switch {
	case address == "":
		return nil
	case err == nil && (isGitScheme(address) || strings.HasSuffix(strings.SplitN(address, "#", 2)[0], ".git")):
		opts := []llb.GitOption{llb.WithCustomName("[internal] load git source " + git.Host + "/" + strings.TrimPrefix(git.Path, "/"))}
		g, err := llb.Git(address, "", opts...).Graph(ctx)
		if err != nil {
			return fmt.Errorf("open context: %w", err)
		}
		return b.setRemote(ctx, g.Root)
	case strings.HasPrefix(address, "http://"), strings.HasPrefix(address, "https://"):
		return b.openURL(ctx, address)
	}
	return fmt.Errorf("open context: %q is neither a git repository nor a URL: expected either, or a directory", address)
}

func isGitScheme(address string) bool {
	return strings.HasPrefix(address, "git://") || strings.HasPrefix(address, "ssh://") || strings.HasPrefix(address, "git@")
}

// archiveHead is how much of a file tells whether it is an archive, in bytes.
const archiveHead = 4 << 10

// openURL takes an archive as the context, and anything else as the build file.
// Clients hand over what they read on their standard input so.
func (b *Build) openURL(ctx context.Context, address string) error {
	const name = "context"
	g, err := llb.HTTP(address, llb.Filename(name), llb.WithCustomName("[internal] load remote build context")).Graph(ctx)
	if err != nil {
		return fmt.Errorf("open context: %w", err)
	}
	ref, err := b.gw.Solve(ctx, g)
	if err != nil {
		return fmt.Errorf("open context: %w", err)
	}
	head := make([]byte, archiveHead)
	n, err := io.ReadFull(frontend.Open(ctx, ref, name), head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return fmt.Errorf("open context: %w", err)
	}
	if !isArchive(head[:n]) {
		b.File.Name = name
		return b.setRemote(ctx, g.Root)
	}
	st, err := stateOf(g)
	if err != nil {
		return err
	}
	files, err := llb.Scratch().File(llb.Copy(st, "/"+name, "/", &llb.CopyInfo{AttemptUnpack: true})).Graph(ctx)
	if err != nil {
		return fmt.Errorf("open context: %w", err)
	}
	return b.setRemote(ctx, files.Root)
}

// setRemote makes a graph the context and, unless another directory is named for
// it, the place of the build file.
func (b *Build) setRemote(ctx context.Context, files llb.Edge) error {
	b.remote, b.base = &files, files
	dir := b.opts["contextsubdir"]
	if dir == "" {
		return nil
	}
	st, err := stateOf(&llb.Graph{Root: files})
	if err != nil {
		return err
	}
	g, err := llb.Scratch().File(llb.Copy(st, "/"+strings.TrimPrefix(dir, "/"), "/", &llb.CopyInfo{CopyDirContentsOnly: true})).Graph(ctx)
	if err != nil {
		return fmt.Errorf("open folder %s of the context: %w", dir, err)
	}
	b.base = g.Root
	return nil
}

// isArchive tells whether data is the start of a tar archive, or compressed.
func isArchive(data []byte) bool {
	for _, magic := range []string{"BZh", "\x1f\x8b\x08", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(data, []byte(magic)) {
			return true
		}
	}
	_, err := tar.NewReader(bytes.NewReader(data)).Next()
	return err == nil
}
