package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/buildkit/client"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"golang.org/x/sync/errgroup"
)

// The case here has both daemons run the same frontend, from the same image,
// which they have already.

const (
	frontendStarts   = 5 // a round
	frontendSolves   = 100
	frontendBuilds   = 20
	frontendProgram  = "asfrontend"
	frontendFirstKey = "bench.first"

	// frontendPause is between builds of one who reads what the last has said, as
	// against builds back to back.
	frontendPause = time.Second / 2
)

func frontendCases() []benchCase {
	return []benchCase{{
		name: "frontends", rows: []string{"frontend-start", "frontend-solves-100", "frontend-builds-20", "frontend-start-paused"},
		rounds: 5, prepare: prepareFrontend, run: runFrontends,
	}}
}

// prepareFrontend builds the program, once.
func prepareFrontend(r *roundRun) error {
	at := filepath.Join(r.tmp, frontendProgram)
	if _, err := os.Stat(at); err == nil {
		return nil
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", at, "./"+frontendProgram)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the frontend: %w: %s", err, out)
	}
	return nil
}

// frontendImage is the program as an image.
func (r *roundRun) frontendImage() (v1.Image, error) {
	program, err := os.ReadFile(filepath.Join(r.tmp, frontendProgram))
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: frontendProgram, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, err
	}
	img, err := mutate.AppendLayers(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON), l)
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{
		Entrypoint: []string{"/" + frontendProgram}, Env: []string{"PATH=/bin"},
		Labels: map[string]string{"moby.buildkit.frontend.network.none": "true"},
	}
	return mutate.ConfigFile(img, config)
}

// pushTo pushes an image and returns its name with the digest.
func pushTo(ctx context.Context, host string, img v1.Image) (string, error) {
	d, err := img.Digest()
	if err != nil {
		return "", err
	}
	ref, err := name.NewDigest(host+"/bench/frontend@"+d.String(), name.Insecure)
	if err != nil {
		return "", err
	}
	return ref.String(), remote.Write(ref, img, remote.WithContext(ctx))
}

// frontendRun is a frontend in a daemon's store.
type frontendRun struct {
	client *client.Client
	image  string
}

// build has the frontend make files, and returns how long it took to ask for the
// first, from the request on, and how long in all.
func (f *frontendRun) build(ctx context.Context, nonce string, solves int) (first, all time.Duration, err error) {
	_, err = f.client.Build(ctx, client.SolveOpt{}, "", func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
		began := time.Now()
		res, err := c.Solve(ctx, gateway.SolveRequest{Frontend: "gateway.v0", FrontendOpt: map[string]string{
			"source": f.image, "solves": strconv.Itoa(solves), "nonce": nonce,
		}})
		if err != nil {
			return nil, err
		}
		all = time.Since(began)
		at, err := strconv.ParseInt(string(res.Metadata[frontendFirstKey]), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("when the frontend asked first: %w", err)
		}
		first = time.Unix(0, at).Sub(began)
		return res, nil
	}, nil)
	return first, all, err
}

// runFrontends times the start of a frontend, many solves of one, and many at once.
func runFrontends(ctx context.Context, r *roundRun) (err error) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	img, err := r.frontendImage()
	if err != nil {
		return fmt.Errorf("make the frontend's image: %w", err)
	}
	f := &frontendRun{}
	if f.image, err = pushTo(ctx, strings.TrimPrefix(server.URL, "http://"), img); err != nil {
		return fmt.Errorf("push the frontend's image: %w", err)
	}
	if f.client, err = client.New(ctx, r.engine.Addr()); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { err = errors.Join(err, f.client.Close()) }()
	nonce := r.nonce + r.engine.Name
	if _, _, err := f.build(ctx, nonce+"warm", 1); err != nil { // which pulls it
		return fmt.Errorf("%s: %w", r.engine.Name, err)
	}
	for i := range 2 * frontendStarts {
		row := r.c.rows[0]
		if i >= frontendStarts {
			row = r.c.rows[3]
			time.Sleep(frontendPause)
		}
		first, _, err := f.build(ctx, fmt.Sprint(nonce, "start", i), 1)
		if err != nil {
			return fmt.Errorf("%s: %w", r.engine.Name, err)
		}
		r.results.add(row, "s", r.engine.Name, first.Seconds())
	}
	_, all, err := f.build(ctx, nonce+"many", frontendSolves)
	if err != nil {
		return fmt.Errorf("%s: %w", r.engine.Name, err)
	}
	r.results.add(r.c.rows[1], "s", r.engine.Name, all.Seconds())
	began := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for i := range frontendBuilds {
		group.Go(func() error {
			_, _, err := f.build(ctx, fmt.Sprint(nonce, "at once", i), 1)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("%s: builds at once: %w", r.engine.Name, err)
	}
	r.results.add(r.c.rows[2], "s", r.engine.Name, time.Since(began).Seconds())
	return nil
}
