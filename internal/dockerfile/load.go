package dockerfile

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/moby/patternmatcher/ignorefile"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// maxIgnoreSize is how long a .dockerignore file may be, in bytes.
const maxIgnoreSize = 4 << 20

// load finds the main context and reads the Dockerfile.
func (d *driver) load(ctx context.Context) error {
	for _, name := range []string{d.opts.dockerfileName, contextName} {
		if g, given := d.req.Inputs[name]; given && (g == nil || g.Root.Vertex == nil) {
			return fmt.Errorf("the input %q of the build is empty (invalid nil input definition to definition op): expected a graph, or no such input", name)
		}
	}
	if err := d.openRemote(ctx); err != nil {
		return err
	}
	from := d.dockerfileEdge()
	ref, err := d.gw.Solve(ctx, &llb.Graph{Root: from})
	if err != nil {
		return fmt.Errorf("load %s: %w", d.opts.filename, err)
	}
	if from.Vertex != nil {
		d.sourceVertex = from.Vertex.Digest()
		d.sourceGraph = &llb.Graph{Root: from}
	}
	data, err := d.readDockerfile(ctx, ref)
	if err != nil {
		return err
	}
	d.source = syntax.NewSource(d.opts.filename, data)
	return d.readOwnIgnore(ctx, ref)
}

// readDockerfile reads the file under its name, or in lower case if it has the
// usual one.
func (d *driver) readDockerfile(ctx context.Context, ref frontend.Ref) ([]byte, error) {
	data, err := ref.ReadFile(ctx, d.opts.filename)
	if lower := lowerName(d.opts.filename); errors.Is(err, fs.ErrNotExist) && lower != "" {
		if other, otherErr := ref.ReadFile(ctx, lower); otherErr == nil {
			return other, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		missing := &fs.PathError{Op: "open", Path: d.opts.filename, Err: syscall.ENOENT}
		return nil, fmt.Errorf("failed to read dockerfile: %w: expected it in the context, or its name with -f", missing)
	}
	if err != nil {
		return nil, fmt.Errorf("failed to read dockerfile: %s: %w", d.opts.filename, err)
	}
	return data, nil
}

// lowerName is the other name that a file called Dockerfile may have.
func lowerName(name string) string {
	if path.Base(name) != "Dockerfile" {
		return ""
	}
	return path.Join(path.Dir(name), "dockerfile")
}

// readOwnIgnore reads the ignore file that stands beside the Dockerfile. It
// wins over the one of the context.
func (d *driver) readOwnIgnore(ctx context.Context, ref frontend.Ref) error {
	if d.context != nil {
		return nil // only directories of the client are filtered
	}
	name := d.opts.filename + ".dockerignore"
	data, err := ref.ReadFile(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	patterns, err := parseIgnore(name, data)
	if err != nil {
		return err
	}
	d.facts.ignores[mainIgnore().key()] = patterns
	return nil
}

func parseIgnore(name string, data []byte) ([]string, error) {
	if len(data) > maxIgnoreSize {
		return nil, fmt.Errorf("read %s: it is %d bytes long, expected at most %d", name, len(data), maxIgnoreSize)
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return patterns, nil
}

// dockerfileEdge is where the Dockerfile comes from.
func (d *driver) dockerfileEdge() llb.Edge {
	if !d.opts.forceLocalFile {
		if g := d.req.Inputs[d.opts.dockerfileName]; g != nil {
			return g.Root
		}
		if d.remoteFile != nil {
			return *d.remoteFile
		}
	}
	follow := []string{d.opts.filename, d.opts.filename + ".dockerignore"}
	if lower := lowerName(d.opts.filename); lower != "" {
		follow = append(follow, lower)
	}
	return llb.Edge{Vertex: d.opts.smallLocal(d.opts.dockerfileName, d.opts.dockerfileName,
		"[internal] load build definition from "+d.opts.filename, follow)}
}

// smallLocal is a directory of the client of which a few files are wanted.
func (o *options) smallLocal(local, hint, title string, follow []string) *llb.Vertex {
	attrs := map[string]string{"local.sharedkeyhint": hint, "local.differ": "none"}
	quoted := make([]string, len(follow))
	for i, f := range follow {
		quoted[i] = jsonString(f)
	}
	attrs["local.followpaths"] = "[" + strings.Join(quoted, ",") + "]"
	return o.localVertex(local, title, attrs)
}

// openRemote finds the main context where it is no directory of the client: a
// URL, or a graph that came with the request.
func (d *driver) openRemote(ctx context.Context) error {
	op, isGit, err := d.opts.gitContext(d.opts.context, true)
	switch url := d.opts.context; {
	case isGit && err != nil:
		return fmt.Errorf("open context %s: %w", withoutPassword(url), err)
	case isGit:
		d.contextOp = &op
		d.context = &llb.Edge{Vertex: &llb.Vertex{
			Op: &op, Meta: llb.Metadata{Description: map[string]string{"llb.customname": gitTitle(url)}},
		}}
		d.remoteFile = d.context
	case strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "https://"):
		if err := d.openHTTP(ctx, url); err != nil {
			return err
		}
	case d.req.Inputs[contextName] != nil:
		root := d.req.Inputs[contextName].Root
		d.context = &root
	}
	if d.context != nil && d.opts.subdir != nil {
		do := &llb.DoCopy{Src: path.Join("/", *d.opts.subdir), Dest: "/", Mode: -1, DirContents: true, Timestamp: llb.KeepTime}
		d.context = &llb.Edge{Vertex: llb.BuildFile(llb.Edge{}, llb.FileStepFrom{Do: do, From: *d.context})}
	}
	return nil
}

// archiveHead is how much of a file tells whether it is an archive, in bytes.
const archiveHead = 64 << 10

// openHTTP takes a URL as the context: an archive is unpacked, and anything
// else is a Dockerfile without a context. Clients hand over what they read on
// their standard input as a URL too.
func (d *driver) openHTTP(ctx context.Context, url string) error {
	const name = "context"
	d.contextOp = &llb.SourceOp{Identifier: url, Attrs: map[string]string{"http.filename": name}}
	download := llb.Edge{Vertex: &llb.Vertex{
		Op:   d.contextOp,
		Meta: llb.Metadata{Description: map[string]string{"llb.customname": "[internal] load remote build context"}},
	}}
	ref, err := d.gw.Solve(ctx, &llb.Graph{Root: download})
	if err != nil {
		return fmt.Errorf("open context %s: %w", withoutPassword(url), err)
	}
	data, err := io.ReadAll(io.LimitReader(frontend.Open(ctx, ref, name), archiveHead))
	if err != nil {
		return fmt.Errorf("open context %s: %w", withoutPassword(url), err)
	}
	if !isArchive(data) {
		d.opts.filename = name
		d.context, d.remoteFile = &download, &download
		return nil
	}
	do := &llb.DoCopy{Src: "/" + name, Dest: "/", Mode: -1, Unpack: true, Timestamp: llb.KeepTime}
	d.context = &llb.Edge{Vertex: llb.BuildFile(llb.Edge{}, llb.FileStepFrom{Do: do, From: download})}
	d.remoteFile = d.context
	return nil
}

// isArchive reports whether data is a tar archive, or compressed.
func isArchive(data []byte) bool {
	for _, magic := range []string{"BZh", "\x1f\x8b\x08", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(data, []byte(magic)) {
			return true
		}
	}
	if len(data) >= 8 && data[0]&0xf0 == 0x50 && bytes.Equal(data[1:4], []byte("\x2a\x4d\x18")) {
		return true // a zstd stream may start with a frame to skip
	}
	_, err := tar.NewReader(bytes.NewReader(data)).Next()
	return err == nil
}
