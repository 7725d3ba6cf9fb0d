package dockerfile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

// syntaxArg is the build argument that wins over the file's syntax directive.
const syntaxArg = "BUILDKIT_SYNTAX"

// handOver has another frontend serve the request if the file, or the user, says
// that its language is read by an image. The file is not parsed for that.
func (d *driver) handOver(ctx context.Context) (_ *frontend.Result, handed bool, _ error) {
	if _, ok := d.req.Opts["cmdline"]; ok {
		return nil, false, nil // this is what was called for the directive
	}
	line := strings.TrimSpace(d.opts.buildArgs[syntaxArg])
	var at syntax.Directive
	if line == "" {
		var ok bool
		if at, ok = syntax.FindSyntax(d.source.Data); !ok {
			return nil, false, nil
		}
		line = at.Value
	}
	image, _, _ := strings.Cut(line, " ")
	if d.isOwn(image) {
		return nil, false, nil
	}
	res, err := d.forward(ctx, image, line)
	switch {
	case err == nil || frontend.Located(err):
	case at.Name == "":
		err = fmt.Errorf("failed with build-arg:%s = %s: %w", syntaxArg, line, err)
	default:
		err = &frontend.SourceError{File: d.source.LLB(), Ranges: d.source.LineRanges(at.Span), Err: err}
	}
	return res, true, err
}

// isOwn tells whether an image stands for this frontend: one of the language
// itself, unless the user puts something else in its place.
func (d *driver) isOwn(image string) bool {
	name := strings.TrimPrefix(strings.TrimPrefix(image, "docker-image://"), "docker.io/")
	bare, _, _ := strings.Cut(name, "@")
	repository, _, _ := strings.Cut(bare, ":")
	switch {
	case repository == "" || repository == dockerfileFrontend:
		return true
	case !slices.Contains(d.language.Images, repository):
		return false
	}
	for replaced := range d.opts.contexts {
		replaced, _, _ = strings.Cut(replaced, "::")
		if replaced == strings.TrimSuffix(name, ":latest") {
			return false
		}
	}
	return true
}

// Names of frontends.
const (
	dockerfileFrontend = "dockerfile.v0"
	imageFrontend      = "gateway.v0"
)

// forward asks the frontend for images, with all that was asked of this one.
func (d *driver) forward(ctx context.Context, image, cmdline string) (*frontend.Result, error) {
	to, ok := d.gw.(frontend.Forwarder)
	if !ok {
		return nil, errors.New("a frontend image cannot be run from here")
	}
	opts := maps.Clone(d.req.Opts)
	if opts == nil {
		opts = map[string]string{}
	}
	opts["cmdline"], opts["source"] = cmdline, image
	return to.Frontend(ctx, imageFrontend, opts, d.req.Inputs)
}
