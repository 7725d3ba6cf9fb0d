// Command silo is an S3 server in memory, for BuildKit's own tests, which look for
// a server and its client by the names "silo" and "mc". It is gofakes3 behind the
// few arguments that they give; called by the name mc, it is the client.
//
// What it stores and answers is what gofakes3 does; it believes every signature.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := serve
	if filepath.Base(os.Args[0]) == "mc" {
		run = client
	}
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}

// serve is "silo server --json --address HOST:PORT DIR". DIR stays empty.
func serve(ctx context.Context, args []string) error {
	if len(args) != 5 || args[0] != "server" || args[1] != "--json" || args[2] != "--address" {
		return fmt.Errorf("expected server --json --address HOST:PORT DIR, got %q", args)
	}
	s := &http.Server{Addr: args[3], Handler: gofakes3.New(s3mem.New()).Server(), ReadHeaderTimeout: time.Minute}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if err := s.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// client is "mc alias set NAME URL KEY SECRET", "mc alias rm NAME", "mc mb --region
// REGION NAME/BUCKET", and "mc admin trace --json NAME", which has nothing to tell.
func client(ctx context.Context, args []string) error {
	switch command := strings.Join(args[:min(2, len(args))], " "); {
	case command == "alias set" && len(args) == 6:
		return inAlias(args[2], func(file string) error { return os.WriteFile(file, []byte(args[3]), 0o600) })
	case command == "alias rm" && len(args) == 3:
		return inAlias(args[2], os.Remove)
	case command == "mb --region" && len(args) == 4:
		name, bucket, _ := strings.Cut(args[3], "/")
		return inAlias(name, func(file string) error { return makeBucket(ctx, file, bucket) })
	case command == "admin trace":
		<-ctx.Done()
		return nil
	}
	return fmt.Errorf("expected alias set, alias rm, mb --region or admin trace, got %q", args)
}

// inAlias calls f with the file that has an alias's address.
func inAlias(name string, f func(file string) error) error {
	if !regexp.MustCompile(`^[a-zA-Z0-9]+$`).MatchString(name) {
		return fmt.Errorf("alias %q: expected letters and digits", name)
	}
	return f(filepath.Join(os.TempDir(), "mc-alias-"+name))
}

func makeBucket(ctx context.Context, file, bucket string) error {
	address, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, string(address)+"/"+bucket, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("make bucket %s: %s", bucket, resp.Status)
	}
	return nil
}
