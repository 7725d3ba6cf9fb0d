package client_test

import (
	"context"
	"fmt"
	"os"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/llb"
)

// A program that drives its build: it looks at what one step made before it decides on
// the next.
func ExampleClient_Build() {
	ctx := context.Background()
	c, err := client.New(client.AddressFromEnv(os.Getenv), client.Options{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	opt := client.SolveOpt{
		Attach:  client.Attach{Dirs: map[string]string{"context": "."}},
		Exports: []client.Export{{Type: "local", Dir: "out"}},
	}
	display, err := client.NewDisplay(client.DisplayOptions{Mode: client.DisplayAuto, Out: os.Stderr, Getenv: os.Getenv})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = c.Build(ctx, opt, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		tools := llb.Image("docker.io/library/alpine:latest").Run(llb.Shlex("apk add --no-cache make")).Root()
		source, err := llb.Local("context").Marshal(ctx)
		if err != nil {
			return nil, err
		}
		files, err := g.Solve(ctx, client.SolveRequest{Definition: source.ToPB()})
		if err != nil {
			return nil, err
		}
		target := "all"
		if _, err := files.Ref.StatFile(ctx, "release.mk"); err == nil {
			target = "release"
		}
		run := tools.Dir("/src").Run(llb.Shlexf("make %s DEST=/out", target))
		run.AddMount("/src", llb.Local("context"))
		def, err := run.AddMount("/out", llb.Scratch()).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		return g.Solve(ctx, client.SolveRequest{Definition: def.ToPB()})
	}, display)
	var failure *client.Failure
	if err != nil {
		failure = &client.Failure{Message: err.Error()}
	}
	if err := display.Finish(failure); err != nil {
		fmt.Println(err)
	}
}
