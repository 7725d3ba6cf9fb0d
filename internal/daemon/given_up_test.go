package daemon

import (
	"context"
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	gatewaypb "github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// watched is an executor that tells when a step that sleeps begins, and when it is over.
type watched struct {
	executor.Executor
	began, over chan struct{}
}

func (w *watched) Start(ctx context.Context, spec executor.Spec, io executor.IO) (executor.Container, error) {
	c, err := w.Executor.Start(ctx, spec, io)
	if err != nil || spec.Process.Args[0] != "sleep" {
		return c, err
	}
	w.began <- struct{}{}
	return &watchedContainer{c, w}, nil
}

type watchedContainer struct {
	executor.Container
	w *watched
}

func (c *watchedContainer) Close() error {
	err := c.Container.Close()
	c.w.over <- struct{}{}
	return err
}

// TestGivenUpBuildEndsSteps gives builds up while a step runs that a frontend has
// asked for, itself or through another: the step ends, though the frontend does not.
func TestGivenUpBuildEndsSteps(t *testing.T) {
	text := textGraph(t, "image")
	sleeping := sleepGraph(t)
	stays := make(chan struct{})
	evaluate := func(ctx context.Context, f *inContainer) error {
		_, err := f.Solve(context.WithoutCancel(ctx), &gatewaypb.SolveRequest{Definition: sleeping, AllowResultReturn: true, AllowResultArrayRef: true, Evaluate: true})
		<-stays
		return err
	}
	g := serveFrontends(t, map[string]program{
		"evaluates": evaluate,
		"reads later": func(ctx context.Context, f *inContainer) error {
			return f.give(context.WithoutCancel(ctx), sleeping)
		},
		"calls another": func(ctx context.Context, f *inContainer) error {
			_, err := f.Solve(context.WithoutCancel(ctx), &gatewaypb.SolveRequest{
				Frontend: "gateway.v0", FrontendOpt: imageOpts("evaluates"), AllowResultReturn: true, AllowResultArrayRef: true,
				FrontendInputs: map[string]*pb.Definition{"image": text},
			})
			<-stays
			return err
		},
	})
	w := &watched{g.worker.Executor, make(chan struct{}, 1), make(chan struct{}, 1)}
	g.worker.Executor = w
	defer close(stays)
	for _, mode := range []string{"evaluates", "reads later", "calls another"} {
		t.Run(mode, func(t *testing.T) {
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()
			ended := make(chan error, 1)
			go func() { ended <- g.runFrontend(ctx, t, mode) }()
			if err := waitFor(w.began, ended); err != nil {
				t.Fatalf("the step did not begin: %v", err)
			}
			giveUp()
			if err := <-ended; status.Code(err) != codes.Canceled {
				t.Errorf("got %v, want a cancelled build", err)
			}
			if err := waitFor(w.over, nil); err != nil {
				t.Errorf("the step goes on: %v", err)
			}
		})
	}
}

func waitFor(what <-chan struct{}, ended <-chan error) error {
	select {
	case <-what:
		return nil
	case err := <-ended:
		return errors.Join(errors.New("the build ended"), err)
	case <-time.After(time.Minute):
		return errors.New("nothing happened for a minute")
	}
}

// sleepGraph is a graph of one step, which does not end by itself.
func sleepGraph(t *testing.T) *pb.Definition {
	t.Helper()
	st := llb.Scratch().Run(llb.Args([]string{"sleep", "100000"})).Root()
	def, err := st.Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return def.ToPB()
}
