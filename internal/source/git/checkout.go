package git

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/source"
)

// bundleFile is the name of the file that a checkout as a bundle consists of.
const bundleFile = "bundle"

// checkout makes the files of a commit.
type checkout struct {
	run    *runner
	req    *request
	pinned source.Git
	repo   *repo
	dir    string // where the files are to be
}

func (c *checkout) do(ctx context.Context) error {
	root, err := safepath.Open(c.dir)
	if err != nil {
		return fmt.Errorf("open checkout: %w", err)
	}
	defer root.Close()
	switch {
	case c.req.checkoutBundle:
		err = c.asBundle(ctx, root)
	case c.req.subdir != "":
		err = c.subdir(ctx, root)
	case c.req.keepGitDir:
		err = c.withGitDir(ctx)
	default:
		err = c.files(ctx, root, c.dir)
	}
	if err == nil && c.req.writable && !c.req.checkoutBundle {
		err = makeWritable(root, ".")
	}
	if err == nil && c.req.mtime == mtimeCommit {
		err = c.setTimes(ctx, root)
	}
	if err != nil {
		return fmt.Errorf("failed to checkout remote %s: %w", c.req.remote, err)
	}
	return nil
}

// files checks out into dir, which is below or at root. The git directory is
// another one and does not last.
func (c *checkout) files(ctx context.Context, root *safepath.Root, dir string) error {
	gitDir, err := c.borrow(ctx)
	if err != nil {
		return err
	}
	at := command{gitDir: gitDir, workTree: dir}
	at.args = []string{"read-tree", "--reset", "-u", c.pinned.Checksum + "^{commit}"}
	if _, err := c.run.run(ctx, at); err != nil {
		return err
	}
	if err := c.submodules(ctx, at); err != nil {
		return err
	}
	if c.req.skipSubmodules {
		return nil
	}
	rel, err := filepath.Rel(c.dir, dir)
	if err != nil {
		return err
	}
	return moveGitFiles(root, rel, "")
}

// borrow makes a git directory with the objects of the repository.
func (c *checkout) borrow(ctx context.Context) (string, error) {
	gitDir := filepath.Join(c.run.scratch, borrowed)
	if err := initRepo(ctx, c.run, command{gitDir: gitDir}, c.repo.sha256, "--bare"); err != nil {
		return "", err
	}
	objects := []byte(filepath.Join(c.repo.dir, "objects") + "\n")
	if err := os.MkdirAll(filepath.Join(gitDir, "objects", "info"), 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(gitDir, "objects", "info", "alternates"), objects, 0o600); err != nil {
		return "", err
	}
	shallow, err := os.ReadFile(filepath.Join(c.repo.dir, "shallow"))
	if err == nil {
		err = os.WriteFile(filepath.Join(gitDir, "shallow"), shallow, 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	// Submodules may be named relative to where this one is from.
	for _, s := range []setting{{"core.bare", "false"}, {"remote.origin.url", c.req.remote}} {
		if _, err := c.run.run(ctx, command{gitDir: gitDir, args: []string{"config", s.key, s.value}}); err != nil {
			return "", err
		}
	}
	return gitDir, nil
}

// submodules checks out the submodules, and theirs.
func (c *checkout) submodules(ctx context.Context, at command) error {
	if c.req.skipSubmodules {
		return nil
	}
	if _, err := os.Lstat(filepath.Join(at.workTree, ".gitmodules")); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	at.args = []string{"submodule", "update", "--init", "--recursive", "--depth=1"}
	_, err := c.run.run(ctx, at)
	if says(err, "--depth", "shallow", "not our ref", "unadvertised object") {
		at.args = slices.DeleteFunc(at.args, func(a string) bool { return a == "--depth=1" })
		_, err = c.run.run(ctx, at)
	}
	if err != nil {
		return fmt.Errorf("failed to update submodules for %s: %w", c.req.remote, hint(c.req, err))
	}
	return nil
}

// borrowed is the name of a git directory that does not last.
const borrowed = "checkout.git"

// maxGitFile bounds the files that name a submodule's git directory, in bytes.
const maxGitFile = 64 << 10

// moveGitFiles has the files ".git" of submodules below dir, which is at a path
// in the repository, name the places in its own ".git" that they would have if
// that was kept: it is not, but they stay, as with BuildKit, and tell nothing of
// the daemon's folders.
func moveGitFiles(root *safepath.Root, dir, at string) error {
	entries, err := root.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		switch {
		case e.Name() == ".git" && e.Type().IsRegular():
			err = moveGitFile(root, name, at)
		case e.Name() == ".git":
			err = root.RemoveAll(name) // what else it may be leads to what is gone
		case e.IsDir():
			err = moveGitFiles(root, name, path.Join(at, e.Name()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func moveGitFile(root *safepath.Root, name, at string) error {
	f, err := root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxGitFile))
	if err != nil {
		return err
	}
	_, module, ok := strings.Cut(string(text), "/"+borrowed+"/")
	if !ok {
		return fmt.Errorf("%s of a submodule is %q, expected a folder of the repository", name, clip(string(text)))
	}
	up := strings.Repeat("../", strings.Count(at, "/")+1)
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte("gitdir: "+up+".git/"+module), 0)
	return err
}

// withGitDir makes a checkout that is a repository of its own.
func (c *checkout) withGitDir(ctx context.Context) error {
	at := command{gitDir: filepath.Join(c.dir, ".git"), workTree: c.dir}
	if err := initRepo(ctx, c.run, at, c.repo.sha256); err != nil {
		return err
	}
	// The address is that of the remote from the beginning: nobody who has the
	// files learns of the daemon's folders.
	refspec := kept(c.pinned.Checksum)
	if !isCommit(c.pinned.Ref) {
		refspec = "+" + refspec + ":" + c.pinned.Ref
	}
	for _, step := range [][]string{
		{"remote", "add", "origin", c.req.remote},
		{"fetch", "-q", "-u", "--depth=1", "--no-tags", "--", "file://" + c.repo.dir, refspec},
		{"checkout", "FETCH_HEAD"},
	} {
		at.args, at.protocols = step, ""
		if step[0] == "fetch" {
			at.protocols = "file"
		}
		if _, err := c.run.run(ctx, at); err != nil {
			return err
		}
	}
	if err := c.submodules(ctx, at); err != nil {
		return err
	}
	at.args = []string{"reflog", "expire", "--all", "--expire=now"}
	if _, err := c.run.run(ctx, at); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(at.gitDir, "FETCH_HEAD")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// subdir makes the files of a directory of the commit.
func (c *checkout) subdir(ctx context.Context, root *safepath.Root) error {
	all, err := os.MkdirTemp(c.dir, ".checkout")
	if err != nil {
		return err
	}
	if err := c.files(ctx, root, all); err != nil {
		return err
	}
	at := filepath.Base(all)
	for part := range strings.SplitSeq(c.req.subdir, "/") {
		at = path.Join(at, part)
		info, err := root.Lstat(at)
		if err != nil {
			return fmt.Errorf("invalid subdir %s: failed to lstat %q: %w", c.req.subdir, part, err)
		}
		if !info.IsDir() {
			return fmt.Errorf("invalid subdir %s: git subpath %q contains non-directory %q", c.req.subdir, c.req.subdir, part)
		}
	}
	entries, err := root.ReadDir(at)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := root.Rename(path.Join(at, e.Name()), e.Name()); err != nil {
			return err
		}
	}
	return root.RemoveAll(filepath.Base(all))
}

// setTimes gives all files the time of the commit.
func (c *checkout) setTimes(ctx context.Context, root *safepath.Root) error {
	out, err := c.run.text(ctx, command{gitDir: c.repo.dir, args: []string{"log", "-1", "--no-show-signature", "--format=%ct", c.pinned.Checksum + "^{commit}"}})
	if err != nil {
		return fmt.Errorf("failed to get commit time: %w", err)
	}
	seconds, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		return fmt.Errorf("failed to parse commit timestamp %q: %w", clip(out), err)
	}
	return setTimes(root, ".", time.Unix(seconds, 0))
}

// setTimes sets the times of dir and what is in it, the directories last.
func setTimes(root *safepath.Root, dir string, t time.Time) error {
	entries, err := root.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if e.IsDir() {
			err = setTimes(root, name, t)
		} else {
			err = root.Utimes(name, t, t)
		}
		if err != nil {
			return err
		}
	}
	return root.Utimes(dir, t, t)
}

// makeWritable lets all write the files below dir that are not executable.
func makeWritable(root *safepath.Root, dir string) error {
	entries, err := root.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		info, err := root.Lstat(name)
		switch {
		case err != nil:
		case info.IsDir():
			err = makeWritable(root, name)
		case info.Mode().IsRegular() && info.Mode()&0o111 == 0:
			err = root.Lchmod(name, info.Mode()|0o222)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// asBundle makes a file that is a repository with one reference.
func (c *checkout) asBundle(ctx context.Context, root *safepath.Root) error {
	gitDir, err := c.borrow(ctx)
	if err != nil {
		return err
	}
	ref := bundleRef(c.pinned.Ref)
	at := command{gitDir: gitDir}
	file := filepath.Join(c.run.scratch, "out.bundle")
	for _, args := range [][]string{
		{"update-ref", "--no-deref", ref, c.pinned.Checksum},
		{"bundle", "create", "-q", file, ref},
	} {
		at.args = args
		if _, err := c.run.run(ctx, at); err != nil {
			return fmt.Errorf("failed to create git bundle for %s: %w", c.pinned.Checksum, err)
		}
	}
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := root.OpenFile(bundleFile, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chmod(0o644), out.Close())
}

// bundleRef is the reference that a bundle has.
func bundleRef(ref string) string {
	switch {
	case isCommit(ref):
		return "refs/heads/main"
	case strings.HasPrefix(ref, "refs/tags/"), strings.HasPrefix(ref, "refs/heads/"):
		return ref
	}
	return "refs/heads/" + strings.TrimPrefix(ref, "refs/")
}
