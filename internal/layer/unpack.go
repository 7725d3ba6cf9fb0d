package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/progress"
)

// unpacking is a layer on its way from a blob to a snapshot.
type unpacking struct {
	s    *Store
	r    *Ref
	blob ocispecs.Descriptor
	key  string // of the snapshot, "" when there is none to remove
	dir  string // what was extracted
	out  *extracted
}

// extract pulls the blob and writes its files. Nothing that is below counts yet.
func (u *unpacking) extract(ctx context.Context) (err error) {
	s, rec := u.s, u.r.Record()
	u.blob = rec.Blobs[imageVariant] // for errors
	if u.blob, err = s.provide(ctx, rec); err != nil {
		return err
	}
	if s.native && !rec.Loose {
		u.dir = filepath.Join(s.dir.tmp, newID())
		if err := os.Mkdir(u.dir, 0o755); err != nil {
			return fmt.Errorf("make directory to unpack in: %w", err)
		}
	} else {
		u.key = newID()
		if u.dir, err = s.prepare(ctx, u.key, ""); err != nil {
			u.key = ""
			return err
		}
	}
	select { // unpacking is work for the processor
	case s.cores <- struct{}{}:
		defer func() { <-s.cores }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	task := progress.StepFrom(ctx).Task("extracting "+u.blob.Digest.String(), u.blob.Size)
	defer task.Done()
	blob, err := s.c.Content.ReaderAt(ctx, u.blob)
	if err != nil {
		return fmt.Errorf("open blob: %w", err)
	}
	defer blob.Close()
	got, out, err := extractBlob(ctx, task.Reader(content.NewReader(blob)), u.blob.Size, u.dir, rec.Windows)
	if err != nil {
		return err
	}
	if rec.DiffID != "" && got != rec.DiffID {
		return fmt.Errorf("failed to verify layer: its files have digest %s, but the image's config says %s", got, rec.DiffID)
	}
	u.out = out
	return nil
}

// extractBlob extracts a layer blob of size bytes to dir and returns the
// digest of the archive in it, which may be one for Windows.
func extractBlob(ctx context.Context, r io.Reader, size int64, dir string, windows bool) (digest.Digest, *extracted, error) {
	archive, err := decompress(r)
	if err != nil {
		return "", nil, err
	}
	defer archive.Close()
	digester := digest.Canonical.Digester()
	limited := &capped{r: archive, left: largestArchive(size)}
	tee := io.TeeReader(limited, digester.Hash())
	root, err := openRoot(dir)
	if err != nil {
		return "", nil, err
	}
	defer root.Close()
	out, err := extractTar(ctx, tee, root, limited, windows)
	if err != nil {
		return "", nil, err
	}
	// The digest covers what comes after the archive's end, too.
	if _, err := io.Copy(io.Discard, tee); err != nil {
		return "", nil, fmt.Errorf("read archive: %w", err)
	}
	return digester.Digest(), out, nil
}

// finish joins what was extracted with what is below, and keeps it.
func (u *unpacking) finish(ctx context.Context) error {
	s := u.s
	lowers, err := s.lowers(ctx, u.r.parent)
	if err != nil {
		return err
	}
	switch loose := u.r.Record().Loose; {
	case loose:
		err = u.finishMarks(nil, true)
	case s.native:
		err = u.finishNative(ctx)
	default:
		err = u.finishMarks(lowers, false)
	}
	if err != nil {
		return err
	}
	name, size, err := s.freeze(ctx, u.key, u.dir)
	if err != nil {
		return err
	}
	u.key = ""
	s.mu.Lock()
	defer s.mu.Unlock()
	u.r.rec.Snapshot, u.r.rec.Size, u.r.dir = name, size, u.dir
	s.nameChainLocked(u.r)
	return s.saveLocked(u.r)
}

// finishMarks turns deletions into overlay's marks, where there is something
// to delete, and gives directories that the archive only implied the looks of
// those below.
func (u *unpacking) finishMarks(lowers []string, always bool) error {
	b, err := openBelow(lowers, u.s.marks)
	if err != nil {
		return err
	}
	defer b.Close()
	root, err := openRoot(u.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	if !u.out.rootSeen && len(lowers) > 0 {
		if err := likeRoot(lowers[0], u.dir); err != nil {
			return err
		}
	}
	f := &marker{root: root, below: b, always: always, implied: u.out.implied}
	for _, p := range u.out.opaques {
		if err := f.opaque(p); err != nil {
			return err
		}
	}
	for _, p := range u.out.whiteouts {
		if err := f.whiteout(p); err != nil {
			return err
		}
	}
	// Only now, for the marks have changed the directories' times.
	if err := f.dressImplied(); err != nil {
		return err
	}
	return u.out.restoreTimes(root)
}

// finishNative lays what was extracted over a copy of what is below.
func (u *unpacking) finishNative(ctx context.Context) error {
	s, extractedDir := u.s, u.dir
	base := ""
	if u.r.parent != nil {
		base = s.nativeBase(u.r.parent)
	}
	key := newID()
	dir, err := s.prepare(ctx, key, base)
	if err != nil {
		return err
	}
	u.key, u.dir = key, dir
	defer os.RemoveAll(extractedDir)
	to, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	from, err := openRoot(extractedDir)
	if err != nil {
		return err
	}
	defer from.Close()
	b, err := openBelow([]string{dir}, s.marks)
	if err != nil {
		return err
	}
	defer b.Close()
	f := &marker{root: from, below: b, implied: u.out.implied}
	if err := f.dressImplied(); err != nil {
		return err
	}
	if err := u.out.restoreTimes(from); err != nil {
		return err
	}
	w := &treeWriter{root: to}
	for _, p := range u.out.opaques {
		if err := ignoreMissing(w.opaque(p)); err != nil {
			return err
		}
	}
	for _, p := range u.out.whiteouts {
		if err := ignoreMissing(w.remove(p)); err != nil {
			return err
		}
	}
	if err := (applier{marks: s.marks, move: true}).apply(ctx, from, to); err != nil {
		return err
	}
	if u.out.rootSeen {
		return likeRoot(extractedDir, dir)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}

// close removes what was not kept.
func (u *unpacking) close() error {
	var err error
	if u.key != "" {
		err = u.s.removeSnapshots(context.Background(), []string{u.key})
	}
	if strings.HasPrefix(u.dir, u.s.dir.tmp+"/") {
		err = errors.Join(err, os.RemoveAll(u.dir))
	}
	return err
}

// marker makes overlay's marks in an extracted directory.
type marker struct {
	root    *os.File
	below   *below
	always  bool     // even where nothing is below
	implied []string // directories that the archive has no entry for
}

// dressImplied gives directories without an entry the looks of those below;
// others get a time that does not depend on when they were unpacked.
func (f *marker) dressImplied() error {
	for _, p := range f.implied {
		switch found, err := f.likeBelow(p); {
		case err != nil:
			return err
		case found:
			continue
		}
		d, err := beneath(fd(f.root), p)
		if ignoreMissing(err) == nil && err != nil {
			continue // replaced by a later entry
		} else if err != nil {
			return err
		}
		err = setTimes(fd(d), "", unix.Timespec{})
		d.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *marker) whiteout(p string) error {
	if !f.always {
		parent, _, st, err := f.below.find(p)
		if err != nil || st == nil {
			return err
		}
		parent.Close()
	}
	dir, name := path.Split(p)
	d, err := f.directory(strings.TrimSuffix(dir, "/"))
	if d == nil || err != nil {
		return err
	}
	defer d.Close()
	st, err := lstat(fd(d), name)
	if err != nil {
		return err
	}
	switch {
	case st == nil:
		return makeWhiteout(fd(d), name)
	case isDir(st):
		// The layer has a directory of this name, too: only what is below goes.
		own, err := openDir(fd(d), name)
		if err != nil {
			return err
		}
		defer own.Close()
		return f.below.marks.setOpaque(fd(own))
	}
	return nil
}

func (f *marker) opaque(p string) error {
	if !f.always {
		parent, _, st, err := f.below.find(p)
		if err != nil || st == nil {
			return err
		}
		parent.Close()
	}
	d, err := f.directory(p)
	if d == nil || err != nil {
		return err
	}
	defer d.Close()
	return f.below.marks.setOpaque(fd(d))
}

// directory opens the directory p of the extracted files, making it after the
// one below if the archive did not have it. Nil means that a file is in the way.
func (f *marker) directory(p string) (*os.File, error) {
	d, err := beneath(fd(f.root), p)
	switch {
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		return nil, nil
	case !errors.Is(err, unix.ENOENT):
		return d, err
	}
	parentPath, name := path.Split(p)
	parent, err := f.directory(strings.TrimSuffix(parentPath, "/"))
	if parent == nil || err != nil {
		return nil, err
	}
	defer parent.Close()
	if err := unix.Mkdirat(fd(parent), name, 0o755); err != nil {
		return nil, &os.PathError{Op: "make directory", Path: p, Err: err}
	}
	f.implied = append(f.implied, p)
	return openDir(fd(parent), name)
}

// likeBelow gives the directory p the owner and mode of the one below, if
// there is one.
func (f *marker) likeBelow(p string) (found bool, err error) {
	parent, name, st, err := f.below.find(p)
	if err != nil || st == nil {
		return false, err
	}
	defer parent.Close()
	if !isDir(st) {
		return false, nil
	}
	from, err := openDir(fd(parent), name)
	if err != nil {
		return false, err
	}
	defer from.Close()
	to, err := beneath(fd(f.root), p)
	if err != nil {
		return true, ignoreMissing(err) // a later entry has replaced it
	}
	defer to.Close()
	return true, copyMeta(fd(from), st, fd(to))
}
