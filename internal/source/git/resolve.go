package git

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/kiln-build/kiln/internal/source"
)

// resolve finds out which object a request's reference names.
func (s *Source) resolve(ctx context.Context, r *request) (source.Git, error) {
	switch {
	case isCommit(r.ref):
		return source.Git{Ref: r.ref, Checksum: r.ref}, nil
	case r.bundle != "" && r.ref == "":
		return s.resolveBundled(ctx, r)
	case r.fetchByCommit:
		return r.trusted(), nil
	}
	pinned, err := s.answers.Ask(ctx, r.question(), func(ctx context.Context) (source.Git, error) {
		run, closeRun, err := s.open(ctx, r)
		if err != nil {
			return source.Git{}, err
		}
		defer closeRun()
		if r.bundle == "" {
			return run.lookUp(ctx, r)
		}
		staged, err := s.stage(ctx, run, r)
		if err != nil {
			return source.Git{}, err
		}
		return run.lookUpAt(ctx, staged, "file", r)
	})
	if err != nil {
		return source.Git{}, err
	}
	if err := r.checkSum(pinned); err != nil {
		return source.Git{}, err
	}
	if r.keepGitDir {
		pinned.CommitChecksum = "" // the tag itself is part of the files
	}
	return pinned, nil
}

// question is what makes the answer of a remote. Within one build it is one client
// who asks, so with which credentials is no part of it.
func (r *request) question() string { return strings.Join([]string{r.remote, r.ref, r.bundle}, "\x00") }

// trusted is what the request itself says that its reference is.
func (r *request) trusted() source.Git {
	ref := r.ref
	if ref != "" && !strings.HasPrefix(ref, "refs/") {
		ref = "refs/heads/" + ref
	}
	if ref == "" {
		ref = r.checksum
	}
	return source.Git{Ref: ref, Checksum: r.checksum}
}

// resolveBundled is the commit that a request for a bundle gives as its checksum.
func (s *Source) resolveBundled(ctx context.Context, r *request) (source.Git, error) {
	if isCommit(r.checksum) {
		return source.Git{Ref: r.checksum, Checksum: r.checksum}, nil
	}
	run, closeRun, err := s.open(ctx, r)
	if err != nil {
		return source.Git{}, err
	}
	defer closeRun()
	staged, err := s.stage(ctx, run, r)
	if err != nil {
		return source.Git{}, err
	}
	sum, err := run.text(ctx, command{gitDir: staged, args: []string{"rev-parse", "--verify", "-q", "--end-of-options", r.checksum + "^{commit}"}})
	if err != nil {
		return source.Git{}, fmt.Errorf("commit %s not found in bundle %s: %w", r.checksum, r.bundle, err)
	}
	return source.Git{Ref: sum, Checksum: sum}, nil
}

// checkSum holds what was found against what was expected.
func (r *request) checkSum(p source.Git) error {
	if r.checksum == "" || strings.HasPrefix(p.Checksum, r.checksum) || strings.HasPrefix(p.CommitChecksum, r.checksum) {
		return nil
	}
	got := p.Checksum
	if p.CommitChecksum != "" {
		got += " or " + p.CommitChecksum
	}
	return fmt.Errorf("expected checksum to match %s, got %s", r.checksum, got)
}

// lookUp asks a remote what a reference names.
func (r *runner) lookUp(ctx context.Context, q *request) (pinned source.Git, err error) {
	err = r.remotely(ctx, q, func(url string) (err error) {
		pinned, err = r.lookUpAt(ctx, url, "", q)
		return err
	})
	return pinned, err
}

// remotely does something with the remote's address, and again where a server
// that wants credentials has moved the repository to.
func (r *runner) remotely(ctx context.Context, q *request, do func(url string) error) error {
	err := do(q.remote)
	if r.header == "" || !says(err, "returned error: 30", "unable to update url base") {
		return err
	}
	moved, ferr := r.follow(ctx, q.remote)
	if ferr != nil {
		return errors.Join(err, ferr)
	}
	return do(moved)
}

func (r *runner) lookUpAt(ctx context.Context, url, protocols string, q *request) (source.Git, error) {
	if q.ref == "" {
		return r.defaultBranch(ctx, url, protocols, q)
	}
	out, err := r.run(ctx, command{protocols: protocols, args: []string{"ls-remote", "-q", "--", url, q.ref, q.ref + "^{}"}})
	if err != nil {
		return source.Git{}, fmt.Errorf("failed to fetch remote %s: %w", q.remote, hint(q, err))
	}
	found, err := choose(q.ref, string(out))
	if err == nil && found.Checksum == "" {
		err = fmt.Errorf("repository does not contain ref %s, output: %q", q.ref, clip(string(out)))
	}
	return found, err
}

// choose finds a reference in the output of git ls-remote. As git checkout does,
// it takes a branch before a tag, and a name that begins with "refs/" literally.
func choose(ref, output string) (source.Git, error) {
	literal := "refs/" + strings.TrimPrefix(ref, "refs/")
	branch := "refs/heads/" + strings.TrimPrefix(ref, "refs/heads/")
	tag := "refs/tags/" + strings.TrimPrefix(ref, "refs/tags/")
	found := map[string]string{}
	for line := range strings.SplitSeq(output, "\n") {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\r"), "\t")
		if !ok {
			continue
		}
		switch name {
		case literal, branch, tag, tag + "^{}":
			if !isCommit(sum) {
				return source.Git{}, fmt.Errorf("invalid commit sha %q", clip(sum))
			}
			found[name] = sum
		}
	}
	for _, name := range []string{literal, branch, tag} {
		if sum := found[name]; sum != "" {
			p := source.Git{Ref: name, Checksum: sum}
			if name == tag {
				p.CommitChecksum = found[tag+"^{}"]
			}
			return p, nil
		}
	}
	return source.Git{}, nil
}

// defaultBranch is what the remote's HEAD names.
func (r *runner) defaultBranch(ctx context.Context, url, protocols string, q *request) (source.Git, error) {
	out, err := r.run(ctx, command{protocols: protocols, args: []string{"ls-remote", "-q", "--symref", "--", url, "HEAD"}})
	if err != nil {
		return source.Git{}, fmt.Errorf("error fetching default branch for repository %s: %w", q.remote, hint(q, err))
	}
	p, err := head(string(out))
	if err == nil && p.Checksum == "" {
		err = fmt.Errorf("could not find default branch for repository: %s", q.remote)
	}
	return p, err
}

// head reads the output of git ls-remote --symref HEAD.
func head(output string) (p source.Git, err error) {
	for line := range strings.SplitSeq(output, "\n") {
		value, name, _ := strings.Cut(strings.TrimSuffix(line, "\r"), "\t")
		if name != "HEAD" {
			continue
		}
		if ref, ok := strings.CutPrefix(value, "ref: "); ok {
			branch, ok := strings.CutPrefix(ref, "refs/heads/")
			if !ok {
				continue
			}
			if err := checkRef(branch); err != nil {
				return source.Git{}, err // the server's word, and it gets far
			}
			p.Ref = ref
		} else if isCommit(value) {
			p.Checksum = value
		}
	}
	if p.Ref == "" || p.Checksum == "" {
		return source.Git{}, nil
	}
	return p, nil
}

// hint tells what to do about some failures.
func hint(r *request, err error) error {
	if r.scheme == "ssh" && says(err, "Permission denied", "Host key verification failed") {
		return fmt.Errorf("%w\ncheck the keys of the forwarded ssh agent, and the server's in the known hosts", err)
	}
	if says(err, "could not read Username", "could not read Password", "Authentication failed", "returned error: 401", "returned error: 403") {
		return fmt.Errorf("%w\nif the repository is private, give the secret GIT_AUTH_TOKEN or GIT_AUTH_HEADER", err)
	}
	return err
}

// clip shortens what another side said, for a message.
func clip(s string) string {
	const most = 400
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}
