// Package dockerfile is the Dockerfile frontend.
//
// It makes a Dockerfile a graph in two halves. Lowering (lower.go and the files
// below it) is pure: from a syntax tree, options and facts about the world it
// makes the graph and image config, or says which facts it lacks. The driver
// (this file, load.go, fetch.go) reads the files and fetches the facts through
// the gateway, all that are needed at once, and lowers again until nothing is
// needed. The graph has the shape of docker/dockerfile's, so that cache keys
// can be compared with BuildKit's.
//
// In the pipeline it stands behind package build and before package pass.
package dockerfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// Language is a dialect: the Dockerfile language with instructions of other
// names.
type Language struct {
	// Words are its instructions. Images keep the words of Dockerfiles, in their
	// history and in the triggers for builds upon them.
	Words syntax.Words
	// Images are the repositories of the language's own frontend, such as
	// "docker/dockerfile": a file that asks for one of them is for this one.
	Images []string
}

// Dockerfile is the language of Dockerfiles.
func Dockerfile() Language {
	return Language{Words: syntax.DockerfileWords(), Images: []string{"docker/dockerfile", "docker/dockerfile-upstream"}}
}

// Frontend is the frontend of a language. It keeps nothing between builds.
type Frontend struct{ language Language }

// New returns the Dockerfile frontend.
func New() *Frontend { return NewLanguage(Dockerfile()) }

// NewLanguage returns the frontend of a dialect.
func NewLanguage(l Language) *Frontend { return &Frontend{l} }

// Build reads the Dockerfile that a request names and makes a graph for each
// platform. Errors at places of the file are [frontend.SourceError] or, if
// there are several, [frontend.SourceErrors].
func (f *Frontend) Build(ctx context.Context, req frontend.Request, gw frontend.Gateway) (_ *frontend.Result, err error) {
	opts, err := decodeOptions(req.Opts)
	if err != nil {
		return nil, err
	}
	d := &driver{language: f.language, gw: gw, opts: opts, req: req, facts: newFacts()}
	defer func() {
		for _, e := range frontend.SourceErrorsIn(err) {
			e.File.From = d.sourceGraph
		}
	}()
	if err := d.load(ctx); err != nil {
		return nil, sourceErrors(err)
	}
	if res, handed, err := d.handOver(ctx); handed {
		return res, err
	}
	switch {
	case opts.missing != nil:
		return nil, opts.missing
	case opts.request == requestDescribe:
		return describeRequests()
	}
	file, err := syntax.Parse(d.source, d.language.Words)
	if err != nil {
		found := &lowered{remarks: d.lintSyntax(file)}
		if opts.request == requestLint {
			return d.lintResult([]*lowered{found}, err)
		}
		d.warn(ctx, []*lowered{found})
		return nil, sourceErrors(err)
	}
	if opts.request != "" {
		return d.serve(ctx, file)
	}
	targets := d.targets(file)
	lowered, err := d.lowerAll(ctx, targets)
	d.warn(ctx, lowered)
	if err != nil {
		return nil, sourceErrors(err)
	}
	res, err := d.result(targets, lowered)
	if err != nil {
		return nil, err
	}
	return res, d.scan(ctx, res, lowered)
}

// warn passes on the remarks on a file, which are the same for all platforms.
func (d *driver) warn(ctx context.Context, lowered []*lowered) {
	if len(lowered) == 0 {
		return
	}
	for _, r := range lowered[0].remarks {
		d.gw.Warn(ctx, d.sourceVertex, r.Warning)
	}
}

// driver is one request being served.
type driver struct {
	language Language
	gw       frontend.Gateway
	opts     *options
	req      frontend.Request
	facts    *facts

	source       *syntax.Source
	sourceVertex digest.Digest // what the Dockerfile came from
	sourceGraph  *llb.Graph    // the same, whole; nil if unknown
	context      *llb.Edge     // the main context if it is no directory of the client
	contextOp    *llb.SourceOp // where that comes from
	remoteFile   *llb.Edge     // what has the Dockerfile if it came with that context
}

// maxRounds bounds how often a file is lowered. Each round needs something new,
// and what a round needs follows from images that the last one brought, so more
// than a few mean that something runs in circles.
const maxRounds = 16

// lowerAll lowers a file for all platforms, fetching what is needed for that.
//
// With an error come the remarks of the platform that has it.
func (d *driver) lowerAll(ctx context.Context, targets []*input) ([]*lowered, error) {
	for range maxRounds {
		out := make([]*lowered, len(targets))
		var missing need
		for i, in := range targets {
			l, n, err := lower(in, d.facts)
			if err != nil {
				return []*lowered{l}, err // of the others the remarks would be the same
			}
			missing.images = append(missing.images, n.images...)
			missing.ignores = append(missing.ignores, n.ignores...)
			missing.times = append(missing.times, n.times...)
			out[i] = l
		}
		if missing.empty() {
			return out, nil
		}
		if err := d.fetch(ctx, &missing); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("lower %s: still needs images after %d rounds", d.source.Name, maxRounds)
}

// worker is the platform that steps run on.
func (d *driver) worker() ocispecs.Platform {
	worker := d.req.Worker
	if worker.OS == "" || worker.Architecture == "" {
		worker = platforms.DefaultSpec()
	}
	return platforms.Normalize(worker)
}

// targets are the inputs of the lowering, one for each platform.
func (d *driver) targets(file *syntax.File) []*input {
	worker := d.worker()
	base := input{
		file: file, words: d.language.Words, opts: d.opts, target: worker, build: worker,
		implicit: true, context: d.context, contextOp: d.contextOp, inputs: d.req.Inputs,
	}
	if len(d.opts.platforms) == 0 {
		return []*input{&base}
	}
	var out []*input
	for _, p := range d.opts.platforms {
		in := base
		in.target, in.implicit = p, false
		out = append(out, &in)
	}
	return out
}

// result puts the platforms together.
func (d *driver) result(targets []*input, lowered []*lowered) (*frontend.Result, error) {
	res := &frontend.Result{Meta: map[string][]byte{}}
	for i, l := range lowered {
		config, err := json.Marshal(l.config)
		if err != nil {
			return nil, fmt.Errorf("write image config: %w", err)
		}
		p := frontend.PlatformResult{Platform: platforms.Normalize(targets[i].target), Graph: l.graph, Config: config}
		for n := range l.graph.Sources.Files {
			l.graph.Sources.Files[n].From = d.sourceGraph
		}
		suffix := ""
		if d.opts.multiPlatform {
			p.ID = platforms.FormatAll(p.Platform)
			suffix = "/" + p.ID
		}
		if l.base != nil {
			data, err := json.Marshal(l.base)
			if err != nil {
				return nil, fmt.Errorf("write base image config: %w", err)
			}
			res.Meta["containerimage.base.config"+suffix] = data
		}
		if l.epoch != nil {
			res.Meta["source.date.epoch"+suffix] = []byte(strconv.FormatInt(l.epoch.Unix(), 10))
		}
		res.Platforms = append(res.Platforms, p)
	}
	return res, nil
}

// sourceErrors makes errors of the syntax and the lowering those that the
// gateway's other side knows.
func sourceErrors(err error) error {
	var list syntax.Errors
	if errors.As(err, &list) {
		out := make(frontend.SourceErrors, len(list))
		for i, e := range list {
			out[i] = sourceError(e, e)
		}
		if len(out) == 1 {
			return out[0]
		}
		return out
	}
	var single *syntax.Error
	if errors.As(err, &single) {
		return sourceError(single, err)
	}
	return err
}

func sourceError(at *syntax.Error, err error) *frontend.SourceError {
	return &frontend.SourceError{File: at.Source.LLB(), Ranges: []llb.Range{at.Source.Range(at.Span)}, Err: err}
}
