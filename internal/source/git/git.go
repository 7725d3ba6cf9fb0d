// Package git brings in the files of git repositories, by the attributes
// and with the cache keys of BuildKit's source/git.
//
// A reference is pinned by the commit that it names: Resolve asks the remote,
// once for a build, and Fetch checks the commit out. What comes over the network
// is kept in one bare repository per remote ([Repos]), so that the next commit
// costs what is new in it. A checkout has a git directory of its own that borrows
// the objects, so nothing that a repository says about itself reaches another one.
//
// The work is done by the git program, which is given no way out of its task: no
// configuration but ours, no hooks, no prompts, no transports but http, https,
// ssh and git, no arguments from outside that it could take for options, and
// credentials by its environment only. Where it runs too long, all its children
// are killed with it.
package git

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// Layers is what of [layer.Store] is needed here.
type Layers interface {
	Get(ctx context.Context, id string) (*layer.Ref, error)
	New(ctx context.Context, parent *layer.Ref, opt layer.NewOptions) (*layer.Mutable, error)
	Mount(ctx context.Context, r *layer.Ref) (dir string, release func() error, err error)
}

// Config is what a Source is made of.
type Config struct {
	Layers Layers
	Memo   source.Memo
	Repos  *Repos
	// Scratch is a directory for files of work under way; it must exist.
	Scratch string
	// Blobs are the sources that bundles come from: "docker-image+blob" and
	// "oci-layout+blob". Without one, its bundles are refused.
	Blobs []source.Source
	// Program is the git program; "" finds it on the PATH.
	Program string
}

// Source is a source.Source for git repositories.
type Source struct {
	cfg     Config
	answers source.Answers[source.Git]
	busy    locks       // checkouts under way, by memo key
	checked atomic.Bool // git is recent enough
}

// New returns a source.
func New(c Config) *Source { return &Source{cfg: c, busy: newLocks()} }

// Schemes is "git".
func (s *Source) Schemes() []string { return []string{"git"} }

// private is what a pin remembers.
type private struct {
	req    *request
	pinned source.Git
}

// memoCheckouts is where the layers of checkouts are remembered, by key.
const memoCheckouts = "source.git.checkout"

// Resolve finds out which commit is meant.
func (s *Source) Resolve(ctx context.Context, op *llb.SourceOp, opt source.Options) (*source.Pin, error) {
	req, err := decode(op)
	if err != nil {
		return nil, err
	}
	req.writable = opt.WritableFiles
	pinned, err := s.resolve(ctx, req)
	if err != nil {
		return nil, err
	}
	if opt.GitObjects || req.sign != nil {
		if err := s.readObjects(ctx, req, &pinned); err != nil {
			return nil, err
		}
	}
	if req.sign != nil {
		if err := req.sign.check(&pinned); err != nil {
			return nil, fmt.Errorf("verify signature of %s#%s: %w", req.remote, req.ref, err)
		}
	}
	told := pinned
	if !opt.GitObjects {
		told.CommitObject, told.TagObject = nil, nil
	}
	return &source.Pin{
		Op: op, Platform: opt.Platform, Key: req.key(pinned), Digest: objectDigest(pinned.Checksum), Git: &told,
		Private: &private{req, pinned},
	}, nil
}

// objectDigest is the name of an object as a digest: sha1 or sha256.
func objectDigest(sum string) digest.Digest {
	if len(sum) == 64 {
		return digest.NewDigestFromEncoded(digest.SHA256, sum)
	}
	return digest.NewDigestFromEncoded("sha1", sum)
}

// key is the cache key of BuildKit's source/git.
func (r *request) key(p source.Git) string {
	key := p.Checksum
	if p.CommitChecksum != "" && !r.keepGitDir {
		key = p.CommitChecksum
	}
	if r.keepGitDir {
		key += ".git#" + p.Ref
	}
	if r.subdir != "" {
		key += ":" + r.subdir
	}
	if r.skipSubmodules {
		key += "(skip-submodules)"
	}
	if r.mtime != "" && r.mtime != mtimeCheckout {
		key += "(mtime=" + r.mtime + ")"
	}
	if r.checkoutBundle {
		key += "(bundle)"
	}
	return key
}

// memoKey names a checkout. Where the remote's address or the reference is part of
// the files, it is part of the name.
func (r *request) memoKey(p source.Git) string {
	key := r.key(p) + ":" + r.subdir
	if r.keepGitDir {
		key += " " + r.remote
	}
	if r.checkoutBundle {
		key += " " + p.Ref
	}
	if r.writable {
		key += " writable"
	}
	return key
}

// Fetch returns the files of a commit.
func (s *Source) Fetch(ctx context.Context, pin *source.Pin) (*layer.Ref, error) {
	p, ok := pin.Private.(*private)
	if !ok {
		return nil, fmt.Errorf("fetch %s: the pin is not of this source", source.WithoutLogins(pin.Op.Identifier))
	}
	key := p.req.memoKey(p.pinned)
	unlock, err := s.busy.lock(ctx, key)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if id, ok := s.cfg.Memo.Value(memoCheckouts, key); ok {
		if ref, err := s.cfg.Layers.Get(ctx, string(id)); err == nil {
			return ref, nil
		}
	}
	ref, err := s.fetch(ctx, p)
	if err != nil {
		return nil, err
	}
	return ref, s.cfg.Memo.PutValue(memoCheckouts, key, []byte(ref.ID()))
}

func (s *Source) fetch(ctx context.Context, p *private) (*layer.Ref, error) {
	run, closeRun, err := s.open(ctx, p.req)
	if err != nil {
		return nil, err
	}
	defer closeRun()
	repo, release, err := s.repository(ctx, run, p.req, p.pinned)
	if err != nil {
		return nil, err
	}
	defer release()
	m, err := s.cfg.Layers.New(ctx, nil, layer.NewOptions{
		Description: "git snapshot for " + p.req.remote + "#" + p.req.ref, Type: "source.git.checkout",
	})
	if err != nil {
		return nil, err
	}
	defer m.Discard() //nolint:errcheck // does nothing after Commit, and the first error counts
	dir, unmount, err := m.Mount(ctx)
	if err != nil {
		return nil, err
	}
	c := &checkout{run: run, req: p.req, pinned: p.pinned, repo: repo, dir: dir}
	err = errors.Join(c.do(ctx), unmount())
	if err != nil {
		return nil, err
	}
	return m.Commit(ctx)
}

// open makes a runner with the credentials that a request has, and a directory
// for its files.
func (s *Source) open(ctx context.Context, r *request) (run *runner, closeRun func(), err error) {
	dir, err := os.MkdirTemp(s.cfg.Scratch, "git")
	if err != nil {
		return nil, nil, fmt.Errorf("make directory for git: %w", err)
	}
	run = &runner{program: s.cfg.Program, scratch: dir, advice: r.advice}
	err = s.checkVersion(ctx, run)
	if err == nil {
		err = run.authorize(ctx, r)
	}
	if err != nil {
		run.close()
		return nil, nil, err
	}
	return run, run.close, nil
}
