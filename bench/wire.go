package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/log"
	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"golang.org/x/sync/errgroup"
)

// The cases here go to both daemons through BuildKit's client: its program for
// graphs of containers, its library for single calls and builds at once.

const (
	containerSteps   = 100
	concurrentBuilds = 40
	manyBuilds       = 1000
	fewBuilds        = 10
)

func wireCases() []benchCase {
	return []benchCase{
		{name: "exec-100", rows: []string{"exec-100-cold", "exec-100-warm"}, rounds: 3, run: runContainers},
		{name: "rpc", rows: rpcRows(), rounds: 150, run: runCalls},
		{name: "concurrent-40", rows: []string{"concurrent-40"}, rounds: 3, run: runConcurrent},
		{name: "builds-1000", rows: []string{"builds-1000", "builds-1000/growth"}, rounds: 1, run: runMany},
	}
}

// baseState is the base image, which the client serves.
func (r *roundRun) baseState() llb.State {
	return llb.OCILayout("bench/base@"+r.base.Digest, llb.OCIStore("", "base"))
}

// runContainers times a chain of steps that each run in a container.
func runContainers(ctx context.Context, r *roundRun) error {
	s := r.baseState().AddEnv("N", r.nonce)
	for range containerSteps {
		s = s.Run(llb.Args([]string{"/bin/true"})).Root()
	}
	def, err := s.Marshal(ctx, llb.LinuxAmd64)
	if err != nil {
		return fmt.Errorf("marshal graph: %w", err)
	}
	var wire bytes.Buffer
	if err := llb.WriteTo(def, &wire); err != nil {
		return fmt.Errorf("write graph: %w", err)
	}
	for _, row := range r.c.rows {
		if err := r.timed(ctx, row, buildSpec{llb: wire.Bytes(), ociLayouts: []string{"base=" + r.base.Dir}}); err != nil {
			return err
		}
	}
	return nil
}

// solve builds a State with the client library, and makes nothing of it.
func (r *roundRun) solve(ctx context.Context, c *client.Client, s llb.State) error {
	def, err := s.Marshal(ctx, llb.LinuxAmd64)
	if err != nil {
		return err
	}
	opt, err := r.solveOpt()
	if err != nil {
		return err
	}
	_, err = c.Solve(ctx, def, opt, nil)
	return err
}

// solveOpt has the client serve the base image.
func (r *roundRun) solveOpt() (client.SolveOpt, error) {
	// It warns for each store that the file system has no fs-verity.
	if err := log.SetLevel("error"); err != nil {
		return client.SolveOpt{}, err
	}
	store, err := local.NewStore(r.base.Dir)
	if err != nil {
		return client.SolveOpt{}, err
	}
	return client.SolveOpt{OCIStores: map[string]content.Store{"base": store}}, nil
}

// call is one call of the API, made on a connection of its own.
type call struct {
	name string
	do   func(context.Context, *client.Client) error
}

func controlCalls() []call {
	return []call{
		{"info", func(ctx context.Context, c *client.Client) error {
			_, err := c.Info(ctx)
			return err
		}},
		{"list-workers", func(ctx context.Context, c *client.Client) error {
			_, err := c.ListWorkers(ctx)
			return err
		}},
		{"disk-usage", func(ctx context.Context, c *client.Client) error {
			_, err := c.DiskUsage(ctx)
			return err
		}},
		{"prune", func(ctx context.Context, c *client.Client) error {
			return c.Prune(ctx, nil, client.WithKeepOpt(time.Hour, 0, 0, 0))
		}},
		{"listen-build-history", func(ctx context.Context, c *client.Client) error {
			events, err := c.ControlClient().ListenBuildHistory(ctx, &control.BuildHistoryRequest{EarlyExit: true})
			if err != nil {
				return err
			}
			if _, err := events.Recv(); !errors.Is(err, io.EOF) {
				return err
			}
			return nil
		}},
	}
}

// bridgeCall is one call of a client that acts as a frontend.
type bridgeCall struct {
	name string
	do   func(context.Context, gateway.Client, gateway.Reference) error
}

func bridgeCalls(r *roundRun) []bridgeCall {
	return []bridgeCall{
		{"solve", func(ctx context.Context, c gateway.Client, _ gateway.Reference) error {
			_, err := solveFile(ctx, c, "solve", r)
			return err
		}},
		{"read-file", func(ctx context.Context, _ gateway.Client, ref gateway.Reference) error {
			_, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/f"})
			return err
		}},
		{"read-dir", func(ctx context.Context, _ gateway.Client, ref gateway.Reference) error {
			_, err := ref.ReadDir(ctx, gateway.ReadDirRequest{Path: "/"})
			return err
		}},
		{"stat-file", func(ctx context.Context, _ gateway.Client, ref gateway.Reference) error {
			_, err := ref.StatFile(ctx, gateway.StatRequest{Path: "/f"})
			return err
		}},
		{"resolve-image-config", func(ctx context.Context, c gateway.Client, _ gateway.Reference) error {
			_, _, _, err := c.ResolveImageConfig(ctx, "bench/base@"+r.base.Digest, sourceresolver.Opt{
				OCILayoutOpt: &sourceresolver.ResolveOCILayoutOpt{Store: sourceresolver.ResolveImageConfigOptStore{StoreID: "base"}},
			})
			return err
		}},
		{"new-container", func(ctx context.Context, c gateway.Client, _ gateway.Reference) error {
			return runContainer(ctx, c, r)
		}},
	}
}

// rpcRows name the rows of the case rpc.
func rpcRows() (rows []string) {
	for _, c := range controlCalls() {
		rows = append(rows, "rpc-"+c.name)
	}
	rows = append(rows, "rpc-ping")
	for _, c := range bridgeCalls(nil) {
		rows = append(rows, "rpc-"+c.name)
	}
	return rows
}

// runCalls times the first answer to each call, from connecting on for the
// daemon's own, from the call on for those of a frontend.
func runCalls(ctx context.Context, r *roundRun) error {
	note := func(name string, began time.Time) {
		r.results.add("rpc-"+name, "ms", r.engine.Name, float64(time.Since(began).Microseconds())/1000)
	}
	for _, call := range controlCalls() {
		began := time.Now()
		c, err := client.New(ctx, r.engine.Addr())
		if err != nil {
			return err
		}
		err = call.do(ctx, c)
		note(call.name, began)
		if err := errors.Join(err, c.Close()); err != nil {
			return fmt.Errorf("%s: %s: %w", r.engine.Name, call.name, err)
		}
	}
	c, err := client.New(ctx, r.engine.Addr())
	if err != nil {
		return err
	}
	defer c.Close()
	opt, err := r.solveOpt()
	if err != nil {
		return err
	}
	began := time.Now()
	_, err = c.Build(ctx, opt, "", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		note("ping", began) // the library calls Ping before this function
		ref, err := solveFile(ctx, c, "first", r)
		if err != nil {
			return nil, err
		}
		for _, call := range bridgeCalls(r) {
			began := time.Now()
			if err := call.do(ctx, c, ref); err != nil {
				return nil, fmt.Errorf("%s: %w", call.name, err)
			}
			note(call.name, began)
		}
		return gateway.NewResult(), nil
	}, nil)
	if err != nil {
		return fmt.Errorf("%s: %w", r.engine.Name, err)
	}
	return nil
}

// solveFile makes a file that no build has made before.
func solveFile(ctx context.Context, c gateway.Client, name string, r *roundRun) (gateway.Reference, error) {
	def, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte(r.nonce+r.engine.Name+name))).Marshal(ctx, llb.LinuxAmd64)
	if err != nil {
		return nil, err
	}
	res, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

func runContainer(ctx context.Context, c gateway.Client, r *roundRun) error {
	def, err := r.baseState().Marshal(ctx, llb.LinuxAmd64)
	if err != nil {
		return err
	}
	res, err := c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true})
	if err != nil {
		return err
	}
	ctr, err := c.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{{Dest: "/", Ref: res.Ref}}})
	if err != nil {
		return err
	}
	process, err := ctr.Start(ctx, gateway.StartRequest{Args: []string{"/bin/true"}, Cwd: "/"})
	if err != nil {
		return errors.Join(err, ctr.Release(ctx))
	}
	return errors.Join(process.Wait(), ctr.Release(ctx))
}

// runConcurrent times builds at once of which each has a step of its own on top
// of one that all have.
func runConcurrent(ctx context.Context, r *roundRun) error {
	c, err := client.New(ctx, r.engine.Addr())
	if err != nil {
		return err
	}
	defer c.Close()
	shared := r.baseState().AddEnv("N", r.nonce).Run(llb.Args([]string{"/bin/true"})).Root()
	if err := r.engine.resetPeak(); err != nil {
		return err
	}
	began := time.Now()
	eg, buildCtx := errgroup.WithContext(ctx)
	for i := range concurrentBuilds {
		eg.Go(func() error {
			return r.solve(buildCtx, c, shared.Run(llb.Args([]string{"/bin/echo", fmt.Sprint(i)})).Root())
		})
	}
	err = eg.Wait()
	m := measured{wall: time.Since(began)}
	if err == nil {
		m.daemonPeak, err = r.engine.memory("VmHWM")
	}
	return r.results.keep(ctx, r.engine, r.c.rows[0], m, err)
}

// runMany builds a thousand times and compares the daemon's memory after ten
// builds with that in the end.
func runMany(ctx context.Context, r *roundRun) error {
	c, err := client.New(ctx, r.engine.Addr())
	if err != nil {
		return err
	}
	defer c.Close()
	var early int64
	began := time.Now()
	for i := range manyBuilds {
		s := llb.Scratch().File(llb.Mkfile("/f", 0o644, fmt.Append(nil, r.nonce, i)))
		if err := r.solve(ctx, c, s); err != nil {
			return fmt.Errorf("%s: build %d: %w", r.engine.Name, i, err)
		}
		if i+1 == fewBuilds {
			if early, err = r.engine.memory("VmRSS"); err != nil {
				return err
			}
		}
	}
	r.results.add(r.c.rows[0], "s", r.engine.Name, time.Since(began).Seconds())
	late, err := r.engine.memory("VmRSS")
	if err != nil {
		return err
	}
	r.results.add(r.c.rows[1], "late/early", r.engine.Name, float64(late)/float64(early))
	return nil
}
