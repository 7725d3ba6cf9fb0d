package dockerfile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/distribution/reference"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// jsonString quotes a text for JSON.
func jsonString(s string) string {
	data, err := json.Marshal(s)
	if err != nil {
		return `""` // not reached: all strings can be written
	}
	return string(data)
}

// fetch finds out what a lowering needs, everything at once.
func (d *driver) fetch(ctx context.Context, n *need) error {
	images, ignores := map[string]imageQuery{}, map[string]ignoreQuery{}
	for _, q := range n.images {
		if _, ok := images[q.key()]; !ok {
			images[q.key()] = q
		}
	}
	for _, q := range n.ignores {
		ignores[q.key()] = q
	}
	times := map[string]timeQuery{}
	for _, q := range n.times {
		times[q.key()] = q
	}
	type timeAnswer struct {
		key string
		at  *time.Time
	}
	type imageAnswer struct {
		key  string
		fact *imageFact
	}
	type ignoreAnswer struct {
		key      string
		patterns []string
	}
	imageAnswers := make(chan imageAnswer, len(images))
	ignoreAnswers := make(chan ignoreAnswer, len(ignores))
	timeAnswers := make(chan timeAnswer, len(times))
	group, ctx := errgroup.WithContext(ctx)
	for key, q := range images {
		group.Go(func() error {
			fact, err := d.fetchImage(ctx, q)
			imageAnswers <- imageAnswer{key, fact}
			return err
		})
	}
	for key, q := range ignores {
		group.Go(func() error {
			patterns, err := d.fetchIgnore(ctx, q)
			ignoreAnswers <- ignoreAnswer{key, patterns}
			return err
		})
	}
	for key, q := range times {
		group.Go(func() error {
			at, err := d.fetchTime(ctx, q)
			timeAnswers <- timeAnswer{key, at}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for range times {
		a := <-timeAnswers
		d.facts.times[a.key] = a.at
	}
	for range images {
		a := <-imageAnswers
		d.facts.images[a.key] = a.fact
	}
	for range ignores {
		a := <-ignoreAnswers
		d.facts.ignores[a.key] = a.patterns
	}
	return nil
}

// fetchImage resolves an image.
func (d *driver) fetchImage(ctx context.Context, q imageQuery) (*imageFact, error) {
	op := q.op
	meta, err := d.gw.ResolveSource(ctx, &op, frontend.ResolveOpt{Platform: &q.platform, Mode: q.mode, LogName: q.log})
	if err != nil {
		e := &syntax.Error{Source: d.source, Span: q.at, Message: fmt.Sprintf("failed to resolve source metadata for %s: %v", strings.TrimPrefix(op.Identifier, "docker-image://"), err)}
		if q.laterStage > 0 {
			e.Expected = fmt.Sprintf("an image, or the stage of that name above this line and not on line %d", q.laterStage)
		} else {
			e.Suggest = syntax.Suggest(q.name, q.stages)
		}
		return nil, &placedError{at: e, cause: err}
	}
	return pinned(q, meta)
}

// placedError is an error at a place that has a cause of its own.
type placedError struct {
	at    *syntax.Error
	cause error
}

// Error is the error at the place, which tells the cause.
func (e *placedError) Error() string { return e.at.Error() }

// Unwrap returns the place's error and the cause.
func (e *placedError) Unwrap() []error { return []error{e.at, e.cause} }

// pinned is an image by its digest.
func pinned(q imageQuery, meta *frontend.SourceMeta) (*imageFact, error) {
	fact := &imageFact{op: q.op, config: meta.Config}
	if meta.Op != nil {
		fact.op = *meta.Op
	}
	ref, isImage := strings.CutPrefix(fact.op.Identifier, "docker-image://")
	if !isImage && fact.op.Scheme() != "oci-layout" {
		fact.config = []byte("{}") // a policy has put something else in its place
		return fact, nil
	}
	if len(meta.Config) == 0 {
		return nil, fmt.Errorf("resolve image %s: it has no config, is it an image?", q.name)
	}
	if !isImage || meta.Digest == "" {
		return fact, nil
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return nil, fmt.Errorf("read resolved reference %q: %w", ref, err)
	}
	withDigest, err := reference.WithDigest(named, meta.Digest)
	if err != nil {
		return nil, fmt.Errorf("pin image %s: %w", ref, err)
	}
	fact.op.Identifier = "docker-image://" + withDigest.String()
	return fact, nil
}

// fetchIgnore reads the .dockerignore file of a client's directory.
func (d *driver) fetchIgnore(ctx context.Context, q ignoreQuery) (patterns []string, err error) {
	defer func() {
		if err != nil && q.at != (syntax.Span{}) { // where a named context is asked for
			err = &placedError{at: &syntax.Error{Source: d.source, Span: q.at, Message: err.Error()}, cause: err}
		}
	}()
	const name = ".dockerignore"
	v := d.opts.smallLocal(q.local, q.hint, q.title, []string{name})
	ref, err := d.gw.Solve(ctx, &llb.Graph{Root: llb.Edge{Vertex: v}})
	missing := q.optional && ctx.Err() == nil
	if err != nil && missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load %s of %s: %w", name, q.local, err)
	}
	data, err := ref.ReadFile(ctx, name)
	// A context that the client does not share has no patterns, either; whether
	// it is needed shows when files of it are.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || err != nil && missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s of %s: %w", name, q.local, err)
	}
	return parseIgnore(name, data)
}
