package git

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kiln-build/kiln/internal/source"
)

// repository returns the remote's repository with the pinned object in it. It is
// not changed by others but for additions until release.
func (s *Source) repository(ctx context.Context, run *runner, r *request, p source.Git) (_ *repo, release func(), err error) {
	key := repoKey{remote: r.remote, sha256: len(p.Checksum) == 64, whole: r.checkoutBundle}
	repo, leave := s.cfg.Repos.use(key)
	defer func() {
		if err != nil {
			leave()
		}
	}()
	unlock, err := s.cfg.Repos.locks.lock(ctx, repo.name)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	fresh := !s.cfg.Repos.exists(repo)
	for {
		if fresh {
			if err := s.cfg.Repos.make(ctx, run, repo); err != nil {
				return nil, nil, err
			}
		}
		err := s.obtain(ctx, run, repo, r, p)
		if err == nil {
			return repo, leave, s.cfg.Repos.used(repo)
		}
		if fresh || !damaged(err) || !s.alone(repo) {
			return nil, nil, err
		}
		fresh = true
	}
}

// alone tells whether nobody else uses the repository, so that it may be made anew.
func (s *Source) alone(r *repo) bool {
	s.cfg.Repos.mu.Lock()
	defer s.cfg.Repos.mu.Unlock()
	return s.cfg.Repos.users[r.name] == 1
}

// damaged tells whether an error is of the repository here, not of the remote.
func damaged(err error) bool {
	return says(err, "corrupt", "bad object", "unable to read", "missing blob", "missing tree", "shallow file has changed",
		"not a git repository", "cannot lock ref", "refname conflict",
		"index-pack died", "did not send all necessary objects", "bad config")
}

// kept is the reference that an object is kept by once it is here whole.
func kept(sum string) string { return "refs/kiln/" + sum }

// has tells whether an object was fetched whole.
func (r *repo) has(ctx context.Context, run *runner, sum string) bool {
	_, err := run.run(ctx, command{gitDir: r.dir, args: []string{"rev-parse", "--verify", "-q", "--end-of-options", kept(sum) + "^{commit}"}})
	return err == nil
}

// keep notes that an object is here whole.
func (r *repo) keep(ctx context.Context, run *runner, sum string) error {
	if _, err := run.run(ctx, command{gitDir: r.dir, args: []string{"cat-file", "-e", sum + "^{commit}"}}); err != nil {
		return err
	}
	_, err := run.run(ctx, command{gitDir: r.dir, args: []string{"update-ref", "--no-deref", kept(sum), sum}})
	return err
}

// obtain fetches the pinned object unless it is here.
func (s *Source) obtain(ctx context.Context, run *runner, repo *repo, r *request, p source.Git) error {
	if repo.has(ctx, run, p.Checksum) {
		return nil
	}
	// A run that was killed may have left this.
	if err := os.RemoveAll(filepath.Join(repo.dir, "shallow.lock")); err != nil {
		return fmt.Errorf("clear git repository of %s: %w", r.remote, err)
	}
	if r.bundle != "" {
		staged, err := s.stage(ctx, run, r)
		if err != nil {
			return err
		}
		if err := repo.fetch(ctx, run, "file", "file://"+staged, []string{"--no-tags"}, "+refs/*:refs/kiln/bundled/*"); err != nil {
			return fmt.Errorf("failed to import git bundle %s: %w", r.bundle, err)
		}
		return repo.keep(ctx, run, p.Checksum)
	}
	err := run.remotely(ctx, r, func(url string) error { return repo.obtainFrom(ctx, run, url, r, p) })
	if err != nil {
		return fmt.Errorf("failed to fetch remote %s: %w", r.remote, hint(r, err))
	}
	return nil
}

// obtainFrom fetches as little as the server allows: the commit alone, else the
// commit with all that came before, else all that there is.
func (r *repo) obtainFrom(ctx context.Context, run *runner, url string, q *request, p source.Git) error {
	wants := []string{p.Checksum}
	if !isCommit(p.Ref) && !q.fetchByCommit {
		// By name first: that is what all servers give. But the name may mean
		// something else by now.
		wants = []string{p.Ref, p.Checksum}
	}
	ways := [][]string{{"--depth=1", "--no-tags"}, r.allHistory()}
	if r.whole {
		ways = ways[1:]
	}
	for _, options := range ways {
		for _, want := range wants {
			err := r.fetch(ctx, run, "", url, options, want)
			if err != nil && !says(err, lesserServer...) {
				return err
			}
			if err == nil && r.keep(ctx, run, p.Checksum) == nil {
				return nil
			}
		}
	}
	err := r.fetch(ctx, run, "", url, append(r.allHistory(), "--prune"), "+refs/heads/*:refs/kiln/heads/*", "+refs/tags/*:refs/kiln/tags/*")
	if err != nil {
		return err
	}
	if err := r.keep(ctx, run, p.Checksum); err != nil {
		return fmt.Errorf("fetched ref %s does not match expected commit %s and commit can not be found in the repository: %w", p.Ref, p.Checksum, err)
	}
	return nil
}

// lesserServer is what git says where another way to get an object may succeed:
// the server cannot give parts of a history, or not what it does not advertise,
// or a branch is gone.
var lesserServer = []string{"shallow", "--depth", "not our ref", "unadvertised object", "couldn't find remote ref", "Unable to find"}

// allHistory are the options to fetch what was left out before, too.
func (r *repo) allHistory() []string {
	if _, err := os.Lstat(filepath.Join(r.dir, "shallow")); err == nil {
		return []string{"--no-tags", "--unshallow"}
	}
	return []string{"--no-tags"}
}

// fetch runs git fetch.
func (r *repo) fetch(ctx context.Context, run *runner, protocols, url string, options []string, refspecs ...string) error {
	args := append([]string{"fetch", "--force", "--no-auto-maintenance", "--no-write-commit-graph"}, options...)
	args = append(append(args, "--", url), refspecs...)
	_, err := run.run(ctx, command{gitDir: r.dir, protocols: protocols, args: args})
	return err
}
