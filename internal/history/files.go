package history

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Folders of the history.
const (
	blobsDir = "blobs" // by the hex digits of their SHA-256
	liveDir  = "live"  // logs of builds under way, and blobs half written
)

type blobs = []ocispecs.Descriptor

// files are the blobs and logs. Writing one costs no wait for the disk: what a
// power loss takes is noticed at the next start.
type files struct {
	root *os.Root

	mu   sync.Mutex
	held map[digest.Digest]held
}

// held is a blob that is needed.
type held struct {
	by   int // records and others that need it
	size int64
}

func openFiles(dir string) (*files, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of the history: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open folder of the history: %w", err)
	}
	for _, name := range []string{blobsDir, liveDir} {
		if err := root.MkdirAll(name, 0o700); err != nil {
			return nil, errors.Join(fmt.Errorf("make folder of the history: %w", err), root.Close())
		}
	}
	return &files{root: root, held: map[digest.Digest]held{}}, nil
}

func (f *files) close() error { return f.root.Close() }

// path is where a blob is: its digest has been checked.
func path(d digest.Digest) string { return blobsDir + "/" + d.Encoded() }

// create makes a file for what is not whole yet. Its name is below the live folder.
func (f *files) create() (*os.File, string, error) {
	name := rand.Text()
	file, err := f.root.OpenFile(liveDir+"/"+name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("make file in the history: %w", err)
	}
	return file, name, nil
}

func (f *files) openLive(name string) (*os.File, error) {
	if name == "" || strings.ContainsRune(name, '/') {
		return nil, fmt.Errorf("open log %q: %w", name, fs.ErrNotExist)
	}
	return f.root.OpenFile(liveDir+"/"+name, os.O_RDWR, 0)
}

func (f *files) removeLive(name string) error {
	if err := f.root.Remove(liveDir + "/" + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove file of the history: %w", err)
	}
	return nil
}

// adopt makes a whole live file a blob and holds it. The live file stays, too.
func (f *files) adopt(name string, d digest.Digest, size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.held[d].by == 0 {
		if err := f.link(name, d); err != nil {
			return err
		}
	}
	f.held[d] = held{f.held[d].by + 1, size}
	return nil
}

// link makes a live file a blob that nobody holds.
func (f *files) link(name string, d digest.Digest) error {
	err := f.root.Link(liveDir+"/"+name, path(d))
	if errors.Is(err, fs.ErrExist) { // a rest of a crash, perhaps not whole
		err = errors.Join(f.root.Remove(path(d)), f.root.Link(liveDir+"/"+name, path(d)))
	}
	if err != nil {
		return fmt.Errorf("keep blob in the history: %w", err)
	}
	return nil
}

// write makes a blob of data and holds it.
func (f *files) write(data []byte) (digest.Digest, error) {
	file, name, err := f.create()
	if err != nil {
		return "", err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("write blob of the history: %w", err), f.removeLive(name))
	}
	d := digest.FromBytes(data)
	return d, errors.Join(f.adopt(name, d, int64(len(data))), f.removeLive(name))
}

// hold keeps blobs that are there.
func (f *files) hold(all blobs) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range all {
		f.held[d.Digest] = held{f.held[d.Digest].by + 1, d.Size}
	}
}

// takes is how many bytes of the disk are free when one of those who need the
// blobs lets go of them.
func (f *files) takes(all blobs) (n int64) {
	const block = 4096 // what files are rounded up to by most file systems
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range all {
		if h := f.held[d.Digest]; h.by == 1 {
			n += (h.size + block - 1) / block * block
		}
	}
	return n
}

// drop lets go of blobs; what nobody needs is removed.
func (f *files) drop(all blobs) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range all {
		h, ok := f.held[d.Digest]
		if !ok {
			continue
		}
		if h.by--; h.by > 0 {
			f.held[d.Digest] = h
			continue
		}
		delete(f.held, d.Digest)
		_ = f.root.Remove(path(d.Digest)) // the next start removes it otherwise
	}
}

// there tells whether a blob is whole, as far as its size can tell.
func (f *files) there(d ocispecs.Descriptor) bool {
	if d.Digest.Validate() != nil || d.Digest.Algorithm() != digest.Canonical {
		return false
	}
	fi, err := f.root.Lstat(path(d.Digest))
	return err == nil && fi.Mode().IsRegular() && fi.Size() == d.Size
}

// open opens a blob that is held.
func (f *files) open(d digest.Digest) (*os.File, int64, error) {
	f.mu.Lock()
	h, ok := f.held[d]
	f.mu.Unlock()
	if !ok {
		return nil, 0, fmt.Errorf("open blob %s of the history: %w", d, fs.ErrNotExist)
	}
	file, err := f.root.Open(path(d))
	if err != nil {
		return nil, 0, fmt.Errorf("open blob of the history: %w", err)
	}
	return file, h.size, nil
}

// list returns what is held, in no order.
func (f *files) list() []digest.Digest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.held))
}

// sweep removes the files that nobody needs. Only the start may call it.
func (f *files) sweep() error {
	err := f.eachName(blobsDir, func(name string) error {
		if _, ok := f.held[digest.NewDigestFromEncoded(digest.Canonical, name)]; ok {
			return nil
		}
		return f.root.RemoveAll(blobsDir + "/" + name)
	})
	return errors.Join(err, f.eachName(liveDir, func(name string) error { return f.root.RemoveAll(liveDir + "/" + name) }))
}

func (f *files) eachName(dir string, do func(string) error) error {
	d, err := f.root.Open(dir)
	if err != nil {
		return fmt.Errorf("list files of the history: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("list files of the history: %w", err)
	}
	for _, name := range names {
		if err := do(name); err != nil {
			return fmt.Errorf("remove file of the history: %w", err)
		}
	}
	return nil
}
