package layer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/moby/sys/mountinfo"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	blobs "github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/snapshot"
)

// Config is what a Store is made of.
type Config struct {
	Dir       string // a directory of its own, for mounts and files under way
	Snapshots *snapshot.Store
	Content   *blobs.Store
	Records   Records
	Fetcher   Fetcher
	// References returns the blobs that others than layers need. Without it,
	// only blobs that layers have had are ever removed.
	References func(context.Context) (map[digest.Digest]bool, error)
}

const (
	downloadsAtOnce = 8
	flatEvery       = 200 // layers; more would not fit in a mount's options (one page)
	saveUsesEvery   = 30 * time.Second
)

// Store keeps layers.
type Store struct {
	c      Config
	native bool
	marks  marks
	dir    struct{ mounts, tmp, empty string }

	mu     sync.Mutex // guards what follows and the mutable fields of refs
	refs   map[string]*Ref
	chains map[digest.Digest]string // snapshot of an image's chain id
	seq    uint64                   // counts touches
	uses   map[*uint64]struct{}     // seq at the begin of each Use
	closed bool

	pulls, unpacks, flats, makes, merges flights

	waiting struct { // snapshots to be removed, see removeCopies
		sync.Mutex
		names []string
	}

	downloads, cores chan struct{}
	trees            treeCache
	stop             chan struct{}
	done             chan struct{}
}

// Ref is an immutable file system state. A nil Ref is the empty one.
type Ref struct {
	store  *Store
	id     string
	parent *Ref
	depth  int // layers, this one included
	mount  mountpoint

	// Guarded by store.mu:
	rec     Record
	dir     string // of the snapshot; "" while there is none
	flatDir string
	touched uint64
	pins    int // mounts, and states in the making on top
	unsaved bool
	chained digest.Digest // see chainLocked
}

// NewStore opens a store: it sweeps what a crash has left.
func NewStore(ctx context.Context, c Config) (*Store, error) {
	cores := max(runtime.GOMAXPROCS(0), 1)
	s := &Store{
		c: c, native: c.Snapshots.Kind == snapshot.Native, marks: marksFor(c.Snapshots.UserXattr),
		refs: map[string]*Ref{}, chains: map[digest.Digest]string{}, uses: map[*uint64]struct{}{},
		downloads: make(chan struct{}, downloadsAtOnce), cores: make(chan struct{}, min(cores, 16)),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	s.dir.mounts = filepath.Join(c.Dir, "mounts")
	s.dir.tmp = filepath.Join(c.Dir, "tmp")
	s.dir.empty = filepath.Join(c.Dir, "empty")
	if err := s.clearDirs(); err != nil {
		return nil, err
	}
	if err := s.load(ctx); err != nil {
		return nil, fmt.Errorf("load layers: %w", err)
	}
	go s.saveUses()
	return s, nil
}

// clearDirs undoes the mounts that a killed process has left, and empties the
// directories for what is under way.
func (s *Store) clearDirs() error {
	if err := os.MkdirAll(s.c.Dir, 0o711); err != nil {
		return fmt.Errorf("create layer directory: %w", err)
	}
	root, err := filepath.EvalSymlinks(s.c.Dir)
	if err != nil {
		return fmt.Errorf("resolve layer directory: %w", err)
	}
	stale, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	for _, m := range slices.Backward(stale) {
		if !strings.HasPrefix(m.Mountpoint, root+"/") {
			continue // the directory itself may be a mount
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("undo mount left at %s: %w", m.Mountpoint, err)
		}
	}
	for _, dir := range []string{s.dir.mounts, s.dir.tmp, s.dir.empty} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clear layer directory: %w", err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("create layer directory: %w", err)
		}
	}
	return nil
}

// load takes in the records that are whole, and removes all else.
func (s *Store) load(ctx context.Context) error {
	dirs, strays, err := s.c.Snapshots.FrozenDirs(ctx)
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	records := map[string]Record{}
	err = s.c.Records.Layers(func(r Record) error {
		records[r.ID] = r
		return nil
	})
	if err != nil {
		return fmt.Errorf("list records: %w", err)
	}
	l := loader{s, ctx, records, dirs, map[string]bool{}}
	var broken []string
	for id := range records {
		if l.ref(id) == nil {
			broken = append(broken, id)
		}
	}
	if len(broken) > 0 {
		if err := s.c.Records.DeleteLayers(broken...); err != nil {
			return fmt.Errorf("remove broken records: %w", err)
		}
	}
	named := s.namedSnapshots()
	for name := range dirs {
		if !named[name] {
			strays = append(strays, name)
		}
	}
	if err := s.removeSnapshots(ctx, strays); err != nil {
		return err
	}
	return s.sweepBlobs(ctx)
}

// loader makes refs of records.
type loader struct {
	s       *Store
	ctx     context.Context
	records map[string]Record
	dirs    map[string]string
	busy    map[string]bool // against a record that is its own ancestor
}

// ref returns the ref of a record, or nil if it or what is below is broken.
func (l *loader) ref(id string) *Ref {
	if r := l.s.refs[id]; r != nil {
		return r
	}
	rec, ok := l.records[id]
	if !ok || l.busy[id] {
		return nil
	}
	l.busy[id] = true
	var parent *Ref
	if rec.Parent != "" {
		if parent = l.ref(rec.Parent); parent == nil {
			return nil
		}
	}
	r := &Ref{store: l.s, id: id, parent: parent, depth: depthOf(parent) + 1, rec: rec}
	if r.dir = l.dirs[rec.Snapshot]; r.dir == "" {
		r.rec.Snapshot, r.rec.Size = "", 0
		if !l.s.restorable(l.ctx, r) {
			return nil
		}
	}
	if r.flatDir = l.dirs[rec.Flat]; r.flatDir == "" {
		r.rec.Flat = ""
	}
	l.s.refs[id] = r
	l.s.nameChainLocked(r)
	return r
}

// restorable says whether the files of a layer can be had from a blob.
func (s *Store) restorable(ctx context.Context, r *Ref) bool {
	if _, ok := r.rec.Blobs[imageVariant]; ok && r.rec.Origin != "" {
		return true
	}
	_, ok := s.sourceBlob(ctx, r.rec)
	return ok
}

func depthOf(r *Ref) int {
	if r == nil {
		return 0
	}
	return r.depth
}

// Close releases the store. Layers are kept.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	for _, g := range s.work() {
		g.close()
	}
	close(s.stop)
	<-s.done
	return s.saveUsesNow()
}

// work is all that is done for several callers at once.
func (s *Store) work() []*flights {
	return []*flights{&s.merges, &s.flats, &s.makes, &s.unpacks, &s.pulls}
}

// Settle waits for work that nobody waits for any more, such as the compression
// of a layer whose export was canceled: until it ends it holds layers.
func (s *Store) Settle(ctx context.Context) error {
	for _, g := range s.work() {
		if err := g.settle(ctx); err != nil {
			return fmt.Errorf("wait for what was abandoned: %w", err)
		}
	}
	return nil
}

func (s *Store) saveUses() {
	defer close(s.done)
	tick := time.NewTicker(saveUsesEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-tick.C:
			_ = s.saveUsesNow() // times of use are worth no more than another try
		}
	}
}

func (s *Store) saveUsesNow() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, r := range s.refs {
		if r.unsaved {
			errs = append(errs, s.saveLocked(r))
		}
	}
	return errors.Join(errs...)
}

// saveLocked writes the record of r.
func (s *Store) saveLocked(r *Ref) error {
	if s.refs[r.id] != r {
		return fmt.Errorf("keep layer: %w: %s was pruned meanwhile", ErrNotFound, r.id)
	}
	r.unsaved = false
	if err := s.c.Records.PutLayer(r.rec); err != nil {
		return fmt.Errorf("keep layer: %w", err)
	}
	return nil
}

// Get returns the layer kept under id, or ErrNotFound; a layer whose snapshot or
// parents are gone is not found.
func (s *Store) Get(_ context.Context, id string) (*Ref, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.refs[id]
	if r == nil {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	s.touch(r)
	return r, nil
}

// touch notes that r is used. What is below it is protected with it.
func (s *Store) touch(r *Ref) {
	s.seq++
	r.touched = s.seq
	r.rec.LastUsed = time.Now()
	r.rec.UsageCount++
	r.unsaved = true
}

// Use protects every layer touched from now on, until release, from Prune.
func (s *Store) Use() (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	begin := s.seq
	s.uses[&begin] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.uses, &begin)
	}
}

// pin protects r until unpin.
func (s *Store) pin(r *Ref) error {
	if r == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refs[r.id] != r {
		return fmt.Errorf("%w: %s was pruned", ErrNotFound, r.id)
	}
	r.pins++
	return nil
}

func (s *Store) unpin(r *Ref) {
	if r == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.pins--
	s.seq++
	r.touched = s.seq
}

// add keeps a new ref.
func (s *Store) add(r *Ref) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.parent != nil && s.refs[r.parent.id] != r.parent {
		return fmt.Errorf("keep layer: %w: the one below, %s, was pruned", ErrNotFound, r.parent.id)
	}
	s.refs[r.id] = r
	s.touch(r)
	return s.saveLocked(r)
}

// ID is the name under which the layer is kept; "" for nil.
func (r *Ref) ID() string {
	if r == nil {
		return ""
	}
	return r.id
}

// Parent is the layer below, or nil.
func (r *Ref) Parent() *Ref {
	if r == nil {
		return nil
	}
	return r.parent
}

// Record is what is kept of the layer. Its maps are shared, not copied, and must
// not be changed.
func (r *Ref) Record() Record {
	if r == nil {
		return Record{}
	}
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return r.rec
}

// snapshotDir is where the layer's own files are; "" while it has no snapshot.
func (r *Ref) snapshotDir() string {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return r.dir
}

// chain returns r and what is below, base first.
func (r *Ref) chain() []*Ref {
	out := make([]*Ref, depthOf(r))
	for ; r != nil; r = r.parent {
		out[r.depth-1] = r
	}
	return out
}

func newID() string { return strings.ToLower(rand.Text()) }

func has(ctx context.Context, s content.Store, d digest.Digest) bool { return blobs.Has(ctx, s, d) }
