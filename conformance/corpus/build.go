package corpus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/tonistiigi/fsutil"
)

// Builder builds cases on one daemon. It may be used by several goroutines.
type Builder struct {
	client *client.Client
	bases  *Bases
	store  content.Store
	agent  string // socket of an ssh agent
	syntax string // an image that is named as the syntax of all cases, if not ""
}

// NewBuilder connects with a daemon. Close it.
func NewBuilder(ctx context.Context, addr string, bases *Bases, agentSocket string) (*Builder, error) {
	c, err := client.New(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect with %s: %w", addr, err)
	}
	store, err := contentlocal.NewStore(bases.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the base images: %w", err)
	}
	return &Builder{client: c, bases: bases, store: store, agent: agentSocket}, nil
}

// Close ends the connection.
func (b *Builder) Close() error { return b.client.Close() }

// Outcome is what a daemon made of a case.
type Outcome struct {
	Err      error
	ErrLines []string          // where the error says that it is
	Archive  []byte            // OCI, if one was asked for
	Graphs   map[string]Graph  // by platform, "" if there is one only
	Steps    map[string]string // name to "cached", "run" or "failed"
	Warnings []string
	Log      string
}

// Build builds a case and reads all of what came out. An archive of the result
// is made if export is set.
func (b *Builder) Build(ctx context.Context, c *Case, export bool) (out *Outcome, err error) {
	opt, err := b.solveOpt(c)
	if err != nil {
		return nil, err
	}
	end, err := b.offer(ctx, c, &opt)
	if err != nil {
		return nil, err
	}
	defer func() {
		if endErr := end(); err == nil {
			err = endErr
		}
	}()
	var archive bytes.Buffer
	if export {
		opt.Exports = []client.ExportEntry{{
			Type:   client.ExporterOCI,
			Output: func(map[string]string) (io.WriteCloser, error) { return nopCloser{&archive}, nil },
		}}
	}
	watch := newWatcher()
	out = &Outcome{Graphs: map[string]Graph{}}
	_, err = b.client.Build(ctx, opt, "", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		attrs := maps.Clone(opt.FrontendAttrs)
		req := gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: attrs, FrontendInputs: nil}
		if req.FrontendInputs, err = c.frontendInputs(ctx); err != nil {
			return nil, err
		}
		res, err := gw.Solve(ctx, req)
		if err != nil {
			return nil, err
		}
		return res, out.keepGraphs(ctx, res)
	}, watch.updates)
	watch.wait()
	out.Steps, out.Warnings, out.Log = watch.end()
	maps.DeleteFunc(out.Steps, func(name, _ string) bool { return b.syntax != "" && strings.Contains(name, b.syntax) })
	out.Archive = archive.Bytes()
	if out.Err = err; err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("build %s: %w", c.Name, err)
		}
		for _, s := range errdefs.Sources(err) {
			for _, r := range s.Ranges {
				for line := r.Start.Line; line <= r.End.Line; line++ {
					out.ErrLines = append(out.ErrLines, fmt.Sprintf("%s:%d", s.Info.GetFilename(), line))
				}
			}
		}
	}
	return out, nil
}

// Request asks the frontend something about a case, such as frontend.lint, and
// returns the answer, of which nothing is solved.
func (b *Builder) Request(ctx context.Context, c *Case, id string) (answer map[string][]byte, err error) {
	opt, err := b.solveOpt(c)
	if err != nil {
		return nil, err
	}
	end, err := b.offer(ctx, c, &opt)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	inputs, err := c.frontendInputs(ctx)
	if err != nil {
		return nil, err
	}
	_, err = b.client.Build(ctx, opt, "", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		attrs := maps.Clone(opt.FrontendAttrs)
		attrs["requestid"] = id
		attrs["frontend.caps"] = "moby.buildkit.frontend.subrequests"
		res, err := gw.Solve(ctx, gateway.SolveRequest{Frontend: "dockerfile.v0", FrontendOpt: attrs, FrontendInputs: inputs})
		if err == nil {
			answer = res.Metadata
		}
		return res, err
	}, nil)
	return answer, err
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// keepGraphs takes the definitions of the result's references.
func (o *Outcome) keepGraphs(ctx context.Context, res *gateway.Result) error {
	refs := map[string]gateway.Reference{}
	if ref, err := res.SingleRef(); err == nil {
		refs[""] = ref
	} else {
		refs = res.Refs
	}
	for platform, ref := range refs {
		if ref == nil {
			o.Graphs[platform] = Graph{}
			continue
		}
		st, err := ref.ToState()
		if err != nil {
			return fmt.Errorf("the result has no definition: %w", err)
		}
		def, err := st.Marshal(ctx)
		if err != nil {
			return err
		}
		if o.Graphs[platform], err = newGraph(def.ToPB()); err != nil {
			return err
		}
	}
	return nil
}

func (b *Builder) solveOpt(c *Case) (client.SolveOpt, error) {
	attrs := map[string]string{"filename": c.file()}
	for name, d := range b.bases.Digests {
		attrs["context:"+name] = "oci-layout://bases@" + d
	}
	maps.Copy(attrs, c.opts)
	if b.syntax != "" {
		attrs["build-arg:BUILDKIT_SYNTAX"] = b.syntax
	}
	opt := client.SolveOpt{
		FrontendAttrs: attrs, OCIStores: map[string]content.Store{"bases": b.store},
		LocalMounts: map[string]fsutil.FS{}, AllowedEntitlements: c.allow,
		SharedKey: c.Name, // what another case sent before must not bear on this one's files
	}
	folders := map[string]string{"dockerfile": c.family.dockerfiles, "context": c.family.context}
	for name, dir := range c.locals {
		folders[name] = filepath.Join(c.family.context, dir)
	}
	for name, dir := range folders {
		fs, err := fsutil.NewFS(dir)
		if err != nil {
			return opt, err
		}
		opt.LocalMounts[name] = fs
	}
	if len(c.secrets) > 0 {
		texts := map[string][]byte{}
		for id, text := range c.secrets {
			texts[id] = []byte(text)
		}
		opt.Session = append(opt.Session, secretsprovider.FromMap(texts))
	}
	agents, err := b.agents(c)
	opt.Session = append(opt.Session, agents...)
	return opt, err
}

func (b *Builder) agents(c *Case) ([]session.Attachable, error) {
	if len(c.agents) == 0 {
		return nil, nil
	}
	var configs []sshprovider.AgentConfig
	for _, id := range c.agents {
		configs = append(configs, sshprovider.AgentConfig{ID: id, Paths: []string{b.agent}})
	}
	p, err := sshprovider.NewSSHAgentProvider(configs)
	if err != nil {
		return nil, fmt.Errorf("offer an ssh agent: %w", err)
	}
	return []session.Attachable{p}, nil
}

// frontendInputs are LLB of a file "input" each.
func (c *Case) frontendInputs(ctx context.Context) (map[string]*pbDefinition, error) {
	if len(c.inputs) == 0 {
		return nil, nil
	}
	out := map[string]*pbDefinition{}
	for name, text := range c.inputs {
		def, err := llb.Scratch().File(llb.Mkfile("/input", 0o644, []byte(text))).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		out[name] = def.ToPB()
	}
	return out, nil
}

// watcher gathers what the progress of a build says.
type watcher struct {
	updates  chan *client.SolveStatus
	done     sync.WaitGroup
	vertices map[string]*client.Vertex
	warnings []string
	log      strings.Builder
}

func newWatcher() *watcher {
	w := &watcher{updates: make(chan *client.SolveStatus), vertices: map[string]*client.Vertex{}}
	w.done.Go(func() {
		for s := range w.updates {
			for _, v := range s.Vertexes {
				w.vertices[v.Digest.String()] = v
			}
			for _, l := range s.Logs {
				w.log.Write(l.Data)
			}
			for _, warning := range s.Warnings {
				rule, _, _ := strings.Cut(string(warning.Short), ":")
				w.warnings = append(w.warnings, rule)
			}
		}
	})
	return w
}

func (w *watcher) wait() { w.done.Wait() }

func (w *watcher) end() (steps map[string]string, warnings []string, log string) {
	steps = map[string]string{}
	for _, v := range w.vertices {
		how := "run"
		switch {
		case len(v.Inputs) == 0: // how these say that there was nothing to fetch differs
			how = "source"
		case v.Error != "":
			how = "failed"
		case v.Cached:
			how = "cached"
		case v.Started == nil:
			how = "not started"
		}
		if before := steps[v.Name]; before != "" && how != "source" && before != "source" && before != how {
			how = before + " and " + how
		}
		if steps[v.Name] == "" || how != "source" { // an ADD and the source that it adds have one name
			steps[v.Name] = how
		}
	}
	return steps, w.warnings, w.log.String()
}
