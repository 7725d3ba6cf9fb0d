package fileop

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/llb"
)

// Copy copies from src to dst. Directories merge with directories that exist.
func Copy(ctx context.Context, dst, src *safepath.Root, a *llb.DoCopy, owner *Owner) error {
	if src == nil {
		return fmt.Errorf("copy %s: %w", a.Src, &notFoundError{path.Join("/", a.Src)})
	}
	c, err := newCopier(ctx, dst, src, a, owner)
	if err != nil {
		return fmt.Errorf("copy %s: %w", a.Src, err)
	}
	if !a.CreateDest {
		to, err := dst.Resolve(a.Dest)
		if err == nil {
			_, err = dst.Lstat(path.Dir(to))
		}
		if err != nil {
			return failed("copy to", a.Dest, err)
		}
	}
	names := []string{withTail(a.Src)}
	if a.Wildcard {
		if names, err = glob(src, a.Src, a.FollowSymlink); err != nil {
			return failed("copy", a.Src, err)
		}
		if len(names) == 0 && !a.AllowEmptyWildcard {
			return fmt.Errorf("copy: %w", &notFoundError{path.Join("/", a.Src)})
		}
	}
	for _, name := range names {
		if a.Unpack {
			if unpacked, err := c.unpack(name); err != nil || unpacked {
				if err != nil {
					return err
				}
				continue
			}
		}
		if err := c.from(name); err != nil {
			return err
		}
	}
	if err := c.finishParents(); err != nil {
		return err
	}
	for _, r := range c.required {
		if !r.seen.Load() {
			return fmt.Errorf("copy: %w", &notFoundError{r.path})
		}
	}
	return nil
}

// withTail cleans a path, but keeps what its end says: "/" or "/." .
func withTail(p string) string {
	clean := path.Join("/", p)
	switch {
	case strings.HasSuffix(p, "/."):
		return strings.TrimSuffix(clean, "/") + "/."
	case strings.HasSuffix(p, "/") && clean != "/":
		return clean + "/"
	}
	return clean
}

// copier is one copy action under way.
type copier struct {
	ctx      context.Context
	src, dst *safepath.Root
	action   *llb.DoCopy
	owner    *Owner
	mode     modeChange // nil keeps the source's
	made     fs.FileMode
	time     *time.Time

	include, exclude *patternmatcher.PatternMatcher
	required         []*requirement

	parents []string // of the destination, made on the way there

	mu    sync.Mutex
	links map[inode]*linked
	clone atomic.Bool // reflinks are worth trying

	buffers sync.Pool // of *[smallFile]byte
}

// requirement is a path that must be among what is copied.
type requirement struct {
	path string
	seen atomic.Bool
}

type inode struct{ dev, ino uint64 }

// linked is a file with several names in the source; done is closed once the
// first of them is copied, to path.
type linked struct {
	done chan struct{}
	path string
}

func newCopier(ctx context.Context, dst, src *safepath.Root, a *llb.DoCopy, owner *Owner) (c *copier, err error) {
	c = &copier{
		ctx: ctx, src: src, dst: dst, action: a, owner: owner, time: timeOf(a.Timestamp),
		made: 0o755,
	}
	c.clone.Store(true)
	switch {
	case a.ModeStr != "":
		if c.mode, err = parseMode(a.ModeStr); err != nil {
			return nil, err
		}
	case a.Mode >= 0:
		c.mode = modeChange{{who: uint32(a.Mode) & 0o7777, op: '#'}}
		c.made = fs.FileMode(a.Mode) & fs.ModePerm
	}
	if len(a.Include) > 0 {
		if c.include, err = patternmatcher.New(a.Include); err != nil {
			return nil, fmt.Errorf("include patterns %q: %w", a.Include, err)
		}
	}
	if len(a.Exclude) > 0 {
		if c.exclude, err = patternmatcher.New(a.Exclude); err != nil {
			return nil, fmt.Errorf("exclude patterns %q: %w", a.Exclude, err)
		}
	}
	for _, r := range a.Required {
		c.required = append(c.required, &requirement{path: path.Join("/", r)})
	}
	return c, nil
}

func (c *copier) copied(srcPath string) {
	for _, r := range c.required {
		if strings.HasPrefix(srcPath, r.path) {
			r.seen.Store(true)
		}
	}
}

// from copies one source, which may end in "/" or "/.".
func (c *copier) from(name string) error {
	// A later source may replace what an earlier one made.
	c.links = map[inode]*linked{}
	from, err := c.source(name)
	if err != nil {
		return failed("copy", name, err)
	}
	fi, err := c.src.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return fmt.Errorf("copy: %w", &notFoundError{path.Clean(name)})
	} else if err != nil {
		return failed("copy", name, err)
	}
	to, err := c.target(name, fi.IsDir())
	if err != nil {
		return err
	}
	top := &dir{srcPath: path.Dir(path.Clean(name)), dstPath: path.Dir(to)}
	if top.src, err = c.src.Sub(path.Dir(from)); err != nil {
		return failed("copy", name, err)
	}
	defer top.close()
	if top.dst, err = c.dst.Sub(top.dstPath); err != nil {
		return failed("copy to", top.dstPath, err)
	}
	e := entry{dir: top, src: path.Base(from), dst: path.Base(to), name: path.Clean(name), info: fi, wanted: true}
	if fi.IsDir() {
		return c.directory(e)
	}
	c.copied(e.name)
	return c.file(e)
}

// source evaluates the symlinks on the way to a source, and in its place only
// if asked to.
func (c *copier) source(name string) (string, error) {
	clean := path.Join("/", name)
	if c.action.FollowSymlink || clean == "/" {
		return c.src.Resolve(clean)
	}
	up, err := c.src.Resolve(path.Dir(clean))
	return path.Join(up, path.Base(clean)), err
}

// target decides where a source goes, as cp(1) would, and makes directories
// down to there. The result has no symlinks but perhaps the last component.
func (c *copier) target(name string, isDir bool) (string, error) {
	dest := withTail(c.action.Dest)
	down := dest
	if base := dest[strings.LastIndexByte(dest, '/')+1:]; base != "" && base != "." {
		down = path.Dir(dest)
	}
	if err := c.parent(down); err != nil {
		return "", err
	}
	to, err := c.dst.Resolve(dest)
	if err != nil {
		return "", failed("copy to", dest, err)
	}
	fi, err := c.dst.Lstat(to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", failed("copy to", dest, err)
	}
	exists := err == nil
	if isDir && !c.action.DirContents && exists || !isDir && exists && fi.IsDir() {
		to = path.Join(to, path.Base(name))
	}
	down = path.Dir(to)
	if isDir && c.action.DirContents && !exists {
		down = to
	}
	return to, c.parent(down)
}

// parent makes a directory of the destination, if it is not there.
func (c *copier) parent(name string) error {
	made, err := mkdirAll(c.dst, name, c.made, c.owner, c.time)
	c.parents = append(c.parents, made...)
	return err
}

// finishParents sets the times of the directories made for the destination
// again: what was copied into them changed them.
func (c *copier) finishParents() error {
	if c.time == nil {
		return nil
	}
	for _, name := range c.parents {
		if err := c.dst.Utimes(name, *c.time, *c.time); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return failed("copy to", name, err)
		}
	}
	return nil
}

// dir is a directory being copied. What is in it comes through its handles.
type dir struct {
	up               *dir
	src, dst         *safepath.Root // dst is nil while nothing in it is wanted
	srcName, dstName string         // in the directories above
	srcPath, dstPath string         // from the roots
	info             fs.FileInfo
	// merge says that the metadata of a directory that exists is replaced.
	merge bool
	fresh bool // made by this copy: nothing can be in the way in it
	dress bool // gets the source's metadata when all is in it
	// of the patterns, for what is in it
	included, excluded patternmatcher.MatchInfo
}

func (d *dir) close() {
	for _, r := range []*safepath.Root{d.src, d.dst} {
		if r != nil {
			r.Close()
		}
	}
}

// entry is something to copy: src in the source of dir, dst in its destination.
type entry struct {
	dir      *dir
	src, dst string
	name     string // in the source, from the root
	below    string // in the directory that is copied, for patterns; "" is itself
	info     fs.FileInfo
	wanted   bool // by the patterns
	pruned   bool // nothing below it is wanted
	regular  bool // so the listing says
	included patternmatcher.MatchInfo
	excluded patternmatcher.MatchInfo
}

func (e *entry) target() string { return path.Join(e.dir.dstPath, e.dst) }

// directory copies a directory with what is wanted in it.
func (c *copier) directory(e entry) (err error) {
	d := &dir{
		up: e.dir, srcName: e.src, dstName: e.dst, srcPath: e.name, dstPath: e.target(), info: e.info,
		merge: e.below != "", included: e.included, excluded: e.excluded,
	}
	if d.src, err = e.dir.src.LSub(e.src); err != nil {
		return failed("copy", e.name, err)
	}
	defer d.close()
	if e.wanted {
		c.copied(e.name)
		if err := c.makeDir(d); err != nil {
			return err
		}
		d.dress = d.fresh || d.merge
	}
	if e.pruned {
		return c.finish(d)
	}
	entries, err := d.src.ReadDir("")
	if err != nil {
		return failed("copy", e.name, err)
	}
	var files []entry
	for _, de := range entries {
		child := entry{
			dir: d, src: de.Name(), dst: de.Name(),
			name: path.Join(e.name, de.Name()), below: path.Join(e.below, de.Name()),
			regular: de.Type().IsRegular(),
		}
		if err := c.match(&child); err != nil {
			return err
		}
		switch {
		case de.IsDir() && !child.pruned:
			if child.info, err = d.src.Lstat(child.src); err != nil {
				return failed("copy", child.name, err)
			}
			err = c.directory(child)
		case !de.IsDir() && child.wanted:
			c.copied(child.name)
			files = append(files, child)
			err = c.makeDir(d)
		}
		if err != nil {
			return err
		}
	}
	if err := c.files(files); err != nil {
		return err
	}
	return c.finish(d)
}

// match applies the patterns to an entry below the source.
func (c *copier) match(e *entry) (err error) {
	e.wanted = true
	if c.include != nil {
		e.wanted, e.included, err = c.include.MatchesUsingParentResults(e.below, e.dir.included)
		if err != nil {
			return fmt.Errorf("match include patterns: %w", err)
		}
	}
	if c.exclude != nil {
		var out bool
		out, e.excluded, err = c.exclude.MatchesUsingParentResults(e.below, e.dir.excluded)
		if err != nil {
			return fmt.Errorf("match exclude patterns: %w", err)
		}
		e.wanted = e.wanted && !out
		e.pruned = out && !c.exclude.Exclusions()
	}
	return nil
}

// makeDir makes the destination of d, and those above that were put off
// because nothing in them was wanted yet.
func (c *copier) makeDir(d *dir) error {
	if d.dst != nil {
		return nil
	}
	if err := c.makeDir(d.up); err != nil {
		return err
	}
	fi, err := d.up.dst.Lstat(d.dstName)
	if err == nil && !fi.IsDir() && c.action.ReplaceExistingDest {
		if err := d.up.dst.RemoveAll(d.dstName); err != nil {
			return failed("replace", d.dstPath, err)
		}
		err = fs.ErrNotExist
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := d.up.dst.Mkdir(d.dstName, 0o700); err != nil {
			return failed("make directory", d.dstPath, err)
		}
		d.fresh, d.dress = true, true
	case err != nil:
		return failed("copy to", d.dstPath, err)
	case !fi.IsDir():
		return fmt.Errorf("cannot copy to non-directory: %s", d.dstPath)
	case d.merge:
		if err := d.up.dst.Lchmod(d.dstName, d.info.Mode()); err != nil {
			return failed("copy to", d.dstPath, err)
		}
	}
	if d.dst, err = d.up.dst.LSub(d.dstName); err != nil {
		return failed("copy to", d.dstPath, err)
	}
	return nil
}

// finish gives a directory its metadata, last of all: what was made in it
// changed its times.
func (c *copier) finish(d *dir) error {
	if d.dst == nil {
		return nil
	}
	if !d.dress {
		if d.merge {
			return nil
		}
		// The top directory, which was there before, keeps all but its times.
		at, mod := c.times(d.info)
		if err := d.dst.Utimes("", at, mod); err != nil {
			return failed("copy to", d.dstPath, err)
		}
		return nil
	}
	if err := c.metadata(d.up.src, d.srcName, d.up.dst, d.dstName, d.info); err != nil {
		return failed("copy to", d.dstPath, err)
	}
	return nil
}

// overlayMarks are xattrs by which overlay file systems mark what they hide:
// an image must not be able to bring them along.
func overlayMark(key string) bool {
	return slices.ContainsFunc([]string{"trusted.overlay.", "user.overlay."}, func(p string) bool { return strings.HasPrefix(key, p) })
}
