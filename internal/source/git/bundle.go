package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// stage makes a repository of a request's bundle and returns its directory. It
// lasts as long as run.
func (s *Source) stage(ctx context.Context, run *runner, r *request) (string, error) {
	dir := filepath.Join(run.scratch, "staged.git")
	if _, err := os.Lstat(dir); err == nil {
		return dir, nil
	}
	file := filepath.Join(run.scratch, "bundle.pack")
	if err := s.download(ctx, r, file); err != nil {
		return "", fmt.Errorf("failed to fetch git bundle %s: %w", r.bundle, err)
	}
	format, err := run.bundleFormat(ctx, file)
	if err != nil {
		return "", fmt.Errorf("failed to inspect git bundle %s: %w", r.bundle, err)
	}
	making := dir + ".new"
	if err := initRepo(ctx, run, command{gitDir: making}, format == 64, "--bare"); err != nil {
		return "", err
	}
	at := command{gitDir: making, protocols: "file", args: []string{"fetch", "-q", "--no-tags", "--", file, "+refs/*:refs/*"}}
	if _, err := run.run(ctx, at); err != nil {
		return "", fmt.Errorf("failed to import git bundle %s: %w", r.bundle, err)
	}
	at.args = []string{"cat-file", "-e", r.checksum + "^{commit}"}
	if _, err := run.run(ctx, at); err != nil {
		return "", fmt.Errorf("commit %s not found in bundle %s: %w", r.checksum, r.bundle, err)
	}
	return dir, os.Rename(making, dir)
}

// bundleFormat is the length of the names of a bundle's objects.
func (r *runner) bundleFormat(ctx context.Context, file string) (int, error) {
	out, err := r.run(ctx, command{protocols: "file", args: []string{"ls-remote", "-q", "--", file}})
	if err != nil {
		return 0, err
	}
	sum, _, _ := strings.Cut(string(out), "\t")
	if !isCommit(sum) {
		return 0, fmt.Errorf("expected references, got %q", clip(string(out)))
	}
	return len(sum), nil
}

// download copies the bundle to a file. It comes from another source.
func (s *Source) download(ctx context.Context, r *request, file string) (err error) {
	want, err := bundleDigest(r.bundle)
	if err != nil {
		return err
	}
	scheme, _, _ := strings.Cut(r.bundle, "://")
	i := slices.IndexFunc(s.cfg.Blobs, func(b source.Source) bool { return slices.Contains(b.Schemes(), scheme) })
	if i < 0 {
		return fmt.Errorf("no source takes %s", scheme)
	}
	op := &llb.SourceOp{Identifier: r.bundle, Attrs: map[string]string{llb.AttrHTTPFilename: bundleFile}}
	if scheme == "oci-layout+blob" {
		if r.bundleSession != "" {
			op.Attrs[llb.AttrOCISession] = r.bundleSession
		}
		_, body, _ := strings.Cut(r.bundle, "://")
		op.Attrs[llb.AttrOCIStore], _, _ = strings.Cut(body, "@")
		if r.bundleStore != "" {
			op.Attrs[llb.AttrOCIStore] = r.bundleStore
		}
	}
	pin, err := s.cfg.Blobs[i].Resolve(ctx, op, source.Options{})
	if err != nil {
		return err
	}
	ref, err := s.cfg.Blobs[i].Fetch(ctx, pin)
	if err != nil {
		return err
	}
	dir, release, err := s.cfg.Layers.Mount(ctx, ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	return copyBundle(dir, file, want)
}

// copyBundle copies the bundle in dir, which must have a digest, to a file.
func copyBundle(dir, file string, want digest.Digest) error {
	root, err := safepath.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	in, err := root.Open(bundleFile)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	hash := want.Algorithm().Hash()
	_, err = io.Copy(io.MultiWriter(out, hash), in)
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	if got := digest.NewDigest(want.Algorithm(), hash); got != want {
		return fmt.Errorf("expected checksum to match %s, got %s", want, got)
	}
	return nil
}
