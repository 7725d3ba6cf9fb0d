package contenthash

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/safepath"
)

// maxLinks is how many symlinks one path may go through; BuildKit's number.
const maxLinks = 255

// lookup is one evaluation of selectors: a tree, as it is at the moment, and
// the disk to read what it lacks from, opened when first needed.
type lookup struct {
	ctx    context.Context
	family *family
	root   *node
	dir    string
	once   sync.Once
	disk   *safepath.Root
	err    error
}

func (l *lookup) open() (*safepath.Root, error) {
	l.once.Do(func() { l.disk, l.err = safepath.Open(l.dir) })
	return l.disk, l.err
}

func (l *lookup) close() {
	if l.disk != nil {
		l.disk.Close()
	}
}

// place is a node and where it is; nil is a node that does not exist.
type place struct {
	path string // without symlinks; "" is the root, others begin with "/"
	node *node
}

// resolve finds p, following symlinks as if the tree were the whole file
// system, the last one only if follow. Components that do not exist are passed
// over lexically, as BuildKit does. The family is locked.
func (l *lookup) resolve(p string, follow bool) (place, error) {
	stack := []place{{"", l.root}}
	todo := strings.Split(strings.Trim(p, "/"), "/")
	links := 0
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		if part == "" || part == "." {
			continue
		}
		if part == ".." {
			stack = stack[:max(1, len(stack)-1)]
			continue
		}
		top := stack[len(stack)-1]
		next := place{path: top.path + "/" + part}
		if top.node != nil && top.node.kind == kindDir {
			if next.node = top.node.child(part); next.node == nil {
				if err := l.scan(top); err != nil {
					return place{}, err
				}
				next.node = top.node.child(part)
			}
		}
		isLink := next.node != nil && next.node.kind == kindLink
		if !isLink || !follow && strings.Join(todo, "") == "" {
			stack = append(stack, next)
			continue
		}
		if links++; links > maxLinks {
			return place{}, fmt.Errorf("%q: %w", p, syscall.ELOOP)
		}
		if strings.HasPrefix(next.node.link, "/") {
			stack = stack[:1]
		}
		todo = append(strings.Split(next.node.link, "/"), todo...)
	}
	return stack[len(stack)-1], nil
}

// scan reads the names in a directory unless they are known. The family is locked.
func (l *lookup) scan(at place) error {
	if at.node.scanned {
		return nil
	}
	if err := l.ctx.Err(); err != nil {
		return err
	}
	disk, err := l.open()
	if err != nil {
		return err
	}
	entries, err := disk.ReadDir(at.path)
	if err != nil {
		return fmt.Errorf("scan for checksum: %w", err)
	}
	merged := make([]entry, 0, len(entries))
	for _, e := range entries {
		n := at.node.child(e.Name())
		if n == nil {
			n = &node{edit: at.node.edit}
			switch e.Type() {
			case fs.ModeDir:
				n.kind = kindDir
			case fs.ModeSymlink:
				n.kind = kindLink
				if n.link, err = disk.Readlink(at.path + "/" + e.Name()); err != nil {
					return fmt.Errorf("scan for checksum: %w", err)
				}
			}
		}
		merged = append(merged, entry{e.Name(), n})
	}
	if len(at.node.entries) == 0 {
		at.node.entries = merged
	} else {
		// Some were put; those that are not on disk (yet) stay.
		for _, e := range merged {
			at.node.set(e.name, e.node)
		}
	}
	at.node.scanned = true
	return nil
}

// unknown collects what has no header digest in the tree below at, reading
// directories as needed. The family is locked.
func (l *lookup) unknown(at place, todo []place) ([]place, error) {
	if at.node.sum != "" {
		return todo, nil
	}
	if at.node.header == "" {
		todo = append(todo, at)
	}
	if at.node.kind != kindDir {
		return todo, nil
	}
	if err := l.scan(at); err != nil {
		return nil, err
	}
	for _, e := range at.node.entries {
		var err error
		if todo, err = l.unknown(place{at.path + "/" + e.name, e.node}, todo); err != nil {
			return nil, err
		}
	}
	return todo, nil
}

// total is the digest of a file, or of a directory with all in it. All headers
// are known; the family is locked.
func total(n *node) digest.Digest {
	if n.kind != kindDir {
		return n.header
	}
	if n.sum != "" {
		return n.sum
	}
	h := sha256.New()
	h.Write([]byte("\x00" + n.header))
	for _, e := range n.entries {
		h.Write([]byte("\x00" + e.name))
		h.Write([]byte(total(e.node)))
	}
	n.sum = Sum(h)
	return n.sum
}

// fill hashes what has no header yet. Each file is hashed once even if several
// lookups want it. The family is locked, but not while files are read.
func (l *lookup) fill(todo []place) error {
	for {
		var mine []place
		var theirs chan struct{}
		done := make(chan struct{})
		for _, at := range todo {
			if at.node.header != "" {
				continue
			}
			if busy, ok := l.family.hashing[at.node]; !ok {
				l.family.hashing[at.node] = done
				mine = append(mine, at)
			} else if busy != done {
				theirs = busy
			}
		}
		if len(mine) == 0 && theirs == nil {
			return nil
		}
		l.family.mu.Unlock()
		err := l.hashAll(mine)
		if err == nil && len(mine) == 0 {
			select {
			case <-theirs:
			case <-l.ctx.Done():
				err = l.ctx.Err()
			}
		}
		l.family.mu.Lock()
		for _, at := range mine {
			delete(l.family.hashing, at.node)
		}
		close(done)
		if err != nil {
			return err
		}
	}
}

// hashAll hashes files in parallel. Nodes are set under the family's lock, in batches.
func (l *lookup) hashAll(todo []place) error {
	if len(todo) == 0 {
		return nil
	}
	disk, err := l.open()
	if err != nil {
		return err
	}
	const batch = 64
	workers := min(runtime.GOMAXPROCS(0)*2, 16, (len(todo)+batch-1)/batch)
	var next atomic.Int64
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			buf := make([]byte, 128<<10)
			var found [batch]digest.Digest
			for {
				from := int(next.Add(batch)) - batch
				if from >= len(todo) {
					return
				}
				part := todo[from:min(from+batch, len(todo))]
				for i, at := range part {
					if found[i], errs[w] = hashFile(l.ctx, disk, at, buf); errs[w] != nil {
						next.Store(int64(len(todo))) // the others may stop, too
						return
					}
				}
				l.family.mu.Lock()
				for i, at := range part {
					if at.node.header == "" {
						at.node.header = found[i]
					}
				}
				l.family.mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// hashFile is the digest of one entry on disk, of a directory without what is in it.
func hashFile(ctx context.Context, disk *safepath.Root, at place, buf []byte) (digest.Digest, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if at.node.kind != kindLink {
		f, err := disk.OpenFile(at.path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		if err == nil {
			defer f.Close()
			return hashOpen(ctx, f, at.path, buf)
		}
		if !errors.Is(err, safepath.ErrSpecial) {
			return "", fmt.Errorf("checksum: %w", err)
		}
	}
	fi, err := disk.Lstat(at.path)
	if err != nil {
		return "", fmt.Errorf("checksum: %w", err)
	}
	xattrs, err := disk.LXattrs(at.path)
	if err != nil {
		return "", fmt.Errorf("checksum: %w", err)
	}
	st := statOf(fi, at.node.link, xattrs)
	if at.node.kind == kindLink {
		st.Mode |= 0o777 // some file systems tell other modes, none uses them
	}
	return Sum(NewHash(st)), nil
}

func hashOpen(ctx context.Context, f *os.File, name string, buf []byte) (digest.Digest, error) {
	fi, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("checksum %s: %w", name, err)
	}
	xattrs, err := safepath.Xattrs(f)
	if err != nil {
		return "", fmt.Errorf("checksum: %w", err)
	}
	h := NewHash(statOf(fi, "", xattrs))
	if fi.IsDir() {
		return Sum(h), nil
	}
	for {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return Sum(h), nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return "", fmt.Errorf("checksum %s: %w", path.Clean(name), err)
		}
	}
}
