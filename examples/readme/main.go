// Command readme writes the LLB of a small image: a base with README.md of the
// context in it, and what a RUN makes of it. Pipe it into a build:
//
//	go run ./examples/readme | kiln build --local context=. --output type=image,name=localhost:5000/readme,push=true
package main

import (
	"context"
	"flag"
	"fmt"
	"os"

	"github.com/kiln-build/kiln/llb"
)

func main() {
	base := flag.String("base", "docker.io/library/alpine:latest", "`IMAGE` to begin with")
	flag.Parse()
	if err := run(*base); err != nil {
		fmt.Fprintln(os.Stderr, "readme:", err)
		os.Exit(1)
	}
}

func run(base string) error {
	// Only what is copied is sent.
	files := llb.Local("context", llb.FollowPaths([]string{"README.md"}), llb.WithCustomName("load README.md"))
	image := llb.Image(base).
		File(llb.Copy(files, "README.md", "/README.md"), llb.WithCustomName("copy README.md")).
		Run(llb.Args([]string{"/bin/sh", "-c", "wc -l </README.md >/lines"}), llb.WithCustomName("count its lines")).
		Root()
	def, err := image.Marshal(context.Background(), llb.LinuxAmd64)
	if err != nil {
		return fmt.Errorf("marshal: %w", err)
	}
	return llb.WriteTo(def, os.Stdout)
}
