package sdk

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/patternmatcher/ignorefile"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// Build is a request of a user, read: the options that the clients of any
// frontend have, and the build file.
type Build struct {
	File *File
	// Target is what of the file to build; "" is its default.
	Target string
	// Args are build arguments, Labels those that the user adds to the image.
	Args, Labels map[string]string
	// Platforms are those to build for. There is at least one.
	Platforms []ocispecs.Platform
	// Worker is the platform that steps run on.
	Worker ocispecs.Platform
	// NoCache is set if all steps are to be run anew.
	NoCache bool
	// IgnoreFiles are names of files that say what of the context to leave out, of
	// which the first that is there counts; nil is .dockerignore alone.
	IgnoreFiles []string

	opts   map[string]string
	inputs map[string]*llb.Graph
	gw     frontend.Gateway
	id     string    // of the request
	many   bool      // the result is one of several platforms
	base   llb.Edge  // where the context is, unless it is a directory of the client
	remote *llb.Edge // the same with its whole files; nil if there is none
}

// File is a build file.
type File struct {
	Name string
	Data []byte

	from   *llb.Graph     // makes the directory that it is in
	places *llb.SourceMap // of its lines
}

// caps are what requests may ask of a frontend that is made with this package.
// That it answers subrequests says no more than that it refuses those it does not know.
const (
	capInputs      = "moby.buildkit.frontend.inputs"
	capContexts    = "moby.buildkit.frontend.contexts"
	capSubrequests = "moby.buildkit.frontend.subrequests"
)

// Open reads a request and the build file. What the request asks for and this
// package does not have is a [frontend.UnsupportedError].
func Open(ctx context.Context, req frontend.Request, gw frontend.Gateway) (*Build, error) {
	for want := range strings.SplitSeq(req.Opts["frontend.caps"], ",") {
		switch want, _, _ = strings.Cut(strings.TrimSpace(want), "+"); want {
		case "", capInputs, capContexts, capSubrequests:
		default:
			return nil, &frontend.UnsupportedError{Kind: "capability", Name: want}
		}
	}
	if id := req.Opts[optRequest]; id != "" {
		return nil, &frontend.UnsupportedError{Kind: "subrequest", Name: id}
	}
	b := &Build{
		Target: req.Opts["target"], Args: withPrefix(req.Opts, "build-arg:"), Labels: withPrefix(req.Opts, "label:"),
		Worker: platforms.Normalize(req.Worker), opts: req.Opts, inputs: req.Inputs, gw: gw, id: rand.Text(),
	}
	_, b.NoCache = req.Opts["no-cache"]
	if req.Worker.OS == "" {
		b.Worker = platforms.DefaultSpec()
	}
	if err := b.readPlatforms(); err != nil {
		return nil, err
	}
	return b, b.load(ctx)
}

func withPrefix(opts map[string]string, prefix string) map[string]string {
	out := map[string]string{}
	for k, v := range opts {
		if name, ok := strings.CutPrefix(k, prefix); ok {
			out[name] = v
		}
	}
	return out
}

func (b *Build) readPlatforms() error {
	for name := range strings.SplitSeq(b.opts["platform"], ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		p, err := platforms.Parse(name)
		if err != nil {
			return fmt.Errorf("read option platform: %w (expected OS[/ARCH[/VARIANT]], such as linux/arm64)", err)
		}
		b.Platforms = append(b.Platforms, platforms.Normalize(p))
	}
	b.many = len(b.Platforms) > 1
	if v := b.opts["multi-platform"]; v != "" {
		many, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("read option multi-platform: %q is neither true nor false", v)
		}
		b.many = b.many || many
	}
	if len(b.Platforms) == 0 {
		b.Platforms = []ocispecs.Platform{b.Worker}
	}
	return nil
}

// Options of the directories that a client has.
const optFile, optContext, optFileDir = "filename", "contextkey", "dockerfilekey"

// load finds the context and reads the build file.
func (b *Build) load(ctx context.Context) error {
	b.File = &File{Name: cmp.Or(b.opts[optFile], "Dockerfile")}
	if err := b.openContext(ctx); err != nil {
		return err
	}
	g, err := b.fileSource(ctx)
	if err != nil {
		return err
	}
	b.File.from = g
	ref, err := b.gw.Solve(ctx, g)
	if err != nil {
		return fmt.Errorf("load %s: %w", b.File.Name, err)
	}
	b.File.Data, err = ref.ReadFile(ctx, b.File.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read build file: there is no file %s: expected it in the context, or its name with -f: %w", b.File.Name, err)
	} else if err != nil {
		return fmt.Errorf("read build file %s: %w", b.File.Name, err)
	}
	dir, err := stateOf(g)
	b.File.places = llb.NewSourceMap(&dir, b.File.Name, "", b.File.Data)
	return err
}

// fileSource is the directory that has the build file.
func (b *Build) fileSource(ctx context.Context) (*llb.Graph, error) {
	dir := cmp.Or(b.opts[optFileDir], "dockerfile")
	if in := b.inputs[dir]; in != nil {
		return in, nil
	}
	if b.remote != nil && b.opts[optFileDir] == "" {
		return &llb.Graph{Root: *b.remote}, nil
	}
	return b.local(dir, dir, llb.FollowPaths([]string{b.File.Name}), llb.WithCustomName("[internal] load build definition from "+b.File.Name)).Graph(ctx)
}

// Context is the user's files: the directory, or what the URL that is the build's
// context has. Files that .dockerignore, or one of IgnoreFiles, names are left out
// of a directory.
func (b *Build) Context(ctx context.Context, opts ...llb.LocalOption) (llb.State, error) {
	if b.remote != nil {
		return stateOf(&llb.Graph{Root: b.base})
	}
	name := cmp.Or(b.opts[optContext], "context")
	ignored, err := b.ignored(ctx, name)
	if err != nil {
		return llb.State{}, err
	}
	if len(ignored) > 0 {
		opts = append(opts, llb.ExcludePatterns(ignored))
	}
	return b.local(name, name, append([]llb.LocalOption{llb.WithCustomName("[internal] load build context")}, opts...)...), nil
}

// local is a directory of the client. hint tells what of it is wanted.
func (b *Build) local(name, hint string, opts ...llb.LocalOption) llb.State {
	return llb.Local(name, append([]llb.LocalOption{
		llb.SharedKeyHint(hint), llb.SessionID(b.opts["local-sessionid:"+name]), llb.LocalUniqueID(b.id),
	}, opts...)...)
}

// ignored are the patterns of the first file there is of those that say what to
// leave out.
func (b *Build) ignored(ctx context.Context, name string) ([]string, error) {
	files := b.IgnoreFiles
	if files == nil {
		files = []string{".dockerignore"}
	}
	title := strings.Join(files, ", ")
	g, err := b.local(name, name+"-"+files[0], llb.FollowPaths(files), llb.WithCustomName("[internal] load "+title)).Graph(ctx)
	if err != nil {
		return nil, err
	}
	ref, err := b.gw.Solve(ctx, g)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", title, err)
	}
	for _, file := range files {
		data, err := ref.ReadFile(ctx, file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		patterns, err := ignorefile.ReadAll(bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		return patterns, nil
	}
	return nil, nil
}

// stateOf makes a graph a State to build on.
func stateOf(g *llb.Graph) (llb.State, error) {
	def, err := g.Marshal()
	if err != nil {
		return llb.State{}, fmt.Errorf("encode graph: %w", err)
	}
	op, err := llb.NewDefinitionOp(def)
	if err != nil {
		return llb.State{}, fmt.Errorf("read graph: %w", err)
	}
	return llb.NewState(op.Output()), nil
}
