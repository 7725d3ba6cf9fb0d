//go:build ignore

// This program is the server of caches of GitHub Actions, for tests in modules
// that cannot import it: go run internal/cache/cachetest/actions_program.go. It
// prints its address and a job's token on a line, and ends with its standard input.

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/kiln-build/kiln/internal/cache/cachetest"
)

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		fmt.Println("http://"+l.Addr().String(), cachetest.Token("refs/heads/main"))
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin) // it only has to end
			cancel()
		}()
		err = cachetest.ServeActions(ctx, l)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
