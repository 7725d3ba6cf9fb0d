package sdk_test

import (
	"context"
	"fmt"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/frontendtest"
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// A whole frontend. Its language has one command a line, the first word of the
// file being the base image; of a program, main would be: sdk.Main(sdk.Func(steps)).
func steps(ctx context.Context, req frontend.Request, gw frontend.Gateway) (*frontend.Result, error) {
	b, err := sdk.Open(ctx, req, gw)
	if err != nil {
		return nil, err
	}
	return b.Images(ctx, func(ctx context.Context, p ocispecs.Platform) (img *sdk.Image, err error) {
		for i, line := range b.File.Lines() {
			at := sdk.Lines(i+1, i+1)
			switch {
			case line == "" || strings.HasPrefix(line, "#"):
			case img == nil:
				if img, err = b.Image(ctx, line, p); err != nil {
					return nil, b.File.Errorf(at, "find base image: %w", err)
				}
			default:
				img.State = img.State.Run(llb.Args([]string{"/bin/sh", "-c", line}), b.Step(at, "%s", line)).Root()
			}
		}
		return img, nil
	})
}

func Example() {
	// In place of a daemon, a gateway that has a build file and an image.
	gw := &frontendtest.Gateway{
		Files:  map[string]string{"local://dockerfile/Dockerfile": "# syntax=example/steps\nalpine\napk add curl\n"},
		Images: map[string]ocispecs.ImageConfig{"docker.io/library/alpine:latest": {Env: []string{"PATH=/bin"}}},
	}
	req := frontend.Request{Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"}}
	res, err := sdk.Func(steps).Build(context.Background(), req, gw)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, v := range res.Platforms[0].Graph.Vertices() {
		name, _, _ := strings.Cut(v.Meta.Description["llb.customname"], "@")
		fmt.Println(v.Op.Kind(), name)
	}
	// Output:
	// source FROM docker.io/library/alpine:latest
	// exec apk add curl
}
