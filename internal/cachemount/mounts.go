// Package cachemount keeps the folders of RUN --mount=type=cache between
// builds, and moves them between machines.
//
// Each id has one folder. Steps that share it work in it side by side, a locked
// one alone. Private ones get forks: each starts with the files that the last
// good step left, sees nothing of others, and of several at a time the last to
// end well is kept (see fork.go). To travel, a folder is cut into chunks by its
// content, so that only what has changed is moved (see export.go, import.go).
//
// It sits below op, which mounts the folders into containers, and build, which
// exports and imports them. What it keeps is cache: whatever is lost or cut
// off, the folder is empty, or as it was.
package cachemount

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Sharing is what steps do that use one cache mount at the same time.
type Sharing int

// The ways to share (CacheSharingOpt of ops.proto).
const (
	Shared  Sharing = iota // work in it side by side
	Private                // each has a fork of its own
	Locked                 // wait for one another
)

// Key tells cache mounts apart: those of one id that begin with the files of
// different layers are different, as BuildKit's are.
type Key struct {
	ID   string // as in the build file
	Base string // id of the layer that it begins with, or ""
}

// slots is what the names of the key's folders begin with.
func (k Key) slots() string { return hashed(k.ID) + "-" + hashed(k.Base) }

func hashed(name string) string {
	if name == "" {
		return ""
	}
	hash := sha256.Sum256([]byte(name))
	return hex.EncodeToString(hash[:16])
}

// Limit is how large and how old cache mounts may become.
type Limit struct {
	Name    string        // see [Name]; a pattern as filepath.Match has it, or "*", which is all
	MaxSize int64         // bytes on disk; 0: no limit
	MaxAge  time.Duration // since it was last used; 0: no limit
}

// Mounts are the cache mounts below one folder. Its methods may be called
// concurrently.
type Mounts struct {
	dir    string
	limits []Limit

	mu       sync.Mutex
	slots    map[string]*slot // those in use, by the names of their folders
	incoming map[string]int   // imports under way, by id
	freed    chan struct{}    // closed and replaced whenever somebody may go on

	overlay func() *overlay // nil where folders cannot be forked
}

// Named is the id that people mean by a name. Dockerfiles put a namespace, which
// is empty as a rule, and a slash before theirs: "npm" is the mount of that
// very id if there is one, and else "/npm".
func (m *Mounts) Named(name string) (id string) {
	if m.Has(name) {
		return name
	}
	return "/" + name
}

// Name is what people call the mount of an id.
func Name(id string) string { return strings.TrimPrefix(id, "/") }

// slot is a folder that somebody uses.
type slot struct {
	opening   sync.Mutex // held while the folder is made, or found made
	writers   int        // who work in the folder itself
	exclusive bool       // the writer wants to be alone
	closed    bool       // the writer is no step, and soon ends: all wait for it
	forks     int        // who work in forks of it
	layers    []string   // forks that ended well, which new ones are based on; the last first
	made      int        // forks so far
	outdated  bool       // given to nobody any more, and removed after its last user
}

func (s *slot) unused() bool { return s.writers == 0 && s.forks == 0 }

// What a slot's folder has in it.
const (
	infoName  = "info.json" // a folder without it is new
	filesName = "files"
	forksName = "forks"
)

// mountPoints is the folder that forks are mounted in, beside the slots.
const mountPoints = "mounted"

// info is kept beside a cache mount's files.
type info struct {
	ID       string    `json:"id"`
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed"`
	Uses     int       `json:"uses"`
}

// Usage is what one folder takes.
type Usage struct {
	Name     string // the folder's, unique
	ID       string // as in the build file
	Size     int64  // bytes
	InUse    bool
	Created  time.Time
	LastUsed time.Time
	Uses     int
}

// Open keeps cache mounts below dir, which it makes. Of limits, the first that
// a mount's name matches holds for it. What a crash has left half done is finished or
// undone.
func Open(dir string, limits ...Limit) (*Mounts, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of cache mounts: %w", err)
	}
	for _, l := range limits {
		if _, err := filepath.Match(l.Name, ""); err != nil {
			return nil, fmt.Errorf("limit of cache mounts %q: %w", l.Name, err)
		}
	}
	m := &Mounts{
		dir: dir, limits: limits, slots: map[string]*slot{}, incoming: map[string]int{}, freed: make(chan struct{}),
		overlay: sync.OnceValue(func() *overlay { return probe(dir) }),
	}
	return m, m.recover()
}

// Use is a cache mount in use.
type Use struct {
	Dir     string // where its files are
	release func(good bool) error
}

// Release gives the mount back. If good is false, what was done in a fork is
// dropped. Calls after the first do nothing.
func (u *Use) Release(good bool) error {
	release := u.release
	u.release = func(bool) error { return nil }
	return release(good)
}

// Acquire gives a step the cache mount of a key. fill is called with a folder
// that is new. It waits for an import of the id, for steps that want to be
// alone and, if this one wants to, for all others.
func (m *Mounts) Acquire(ctx context.Context, key Key, sharing Sharing, fill func(dir string) error) (*Use, error) {
	for {
		m.mu.Lock()
		name, ok := "", m.incoming[key.ID] == 0
		if ok {
			name, ok = m.pick(key.slots(), sharing)
		}
		freed := m.freed
		m.mu.Unlock()
		if ok {
			return m.use(name, key.ID, sharing, fill)
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// use opens a slot that was picked.
func (m *Mounts) use(name, id string, sharing Sharing, fill func(dir string) error) (*Use, error) {
	m.mu.Lock()
	s := m.slots[name]
	m.mu.Unlock()
	s.opening.Lock()
	dir, err := m.open(name, id, fill)
	s.opening.Unlock()
	forked := m.forking(sharing)
	if err == nil && forked {
		var u *Use
		if u, err = m.fork(name, s); err == nil {
			return u, nil
		}
	}
	if err != nil {
		return nil, errors.Join(err, m.leave(name, forked))
	}
	return &Use{Dir: dir, release: func(bool) error { return m.leave(name, false) }}, nil
}

func (m *Mounts) forking(sharing Sharing) bool { return sharing == Private && m.overlay() != nil }

// pick takes a slot for use, or tells that there is none for now.
func (m *Mounts) pick(prefix string, sharing Sharing) (name string, ok bool) {
	for n := 0; ; n++ {
		name = fmt.Sprintf("%s-%d", prefix, n)
		s := m.slots[name]
		if s == nil {
			s = &slot{}
			m.slots[name] = s
		}
		switch {
		case s.closed:
			return "", false
		case s.outdated:
		case m.forking(sharing) && s.writers == 0:
			if len(s.layers) >= maxLayers {
				return "", false
			}
			s.forks++
			return name, true
		case s.unused():
			s.writers, s.exclusive = 1, sharing != Shared
			return name, true
		case sharing == Shared && !s.exclusive && s.forks == 0:
			s.writers++
			return name, true
		case sharing != Private:
			return "", false
		}
	}
}

// leave ends a use of a slot, and does what waits for the last one's end.
func (m *Mounts) leave(name string, fork bool) (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.slots[name]
	if fork {
		s.forks--
	} else {
		s.writers--
	}
	if !s.unused() {
		return nil
	}
	// Nobody else can come while this one tidies up.
	s.writers, s.exclusive, s.closed = 1, true, true
	layers, outdated := s.layers, s.outdated
	m.mu.Unlock()
	if !outdated {
		if err = m.fold(name, layers); err != nil || m.outgrown(name) {
			outdated = true
		}
	}
	m.mu.Lock()
	if outdated || s.outdated { // perhaps by now
		err = errors.Join(err, m.discard(name))
	}
	delete(m.slots, name)
	m.wake()
	return err
}

// wake lets all who wait look again; mu is held.
func (m *Mounts) wake() {
	close(m.freed)
	m.freed = make(chan struct{})
}

// discard removes a slot's folder, first what makes it count.
func (m *Mounts) discard(name string) error {
	err := os.Remove(filepath.Join(m.dir, name, infoName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove cache mount: %w", err)
	}
	if err := removeTree(filepath.Join(m.dir, name)); err != nil {
		return fmt.Errorf("remove cache mount: %w", err)
	}
	return nil
}

// outgrown tells that a mount is larger than its limit.
func (m *Mounts) outgrown(name string) bool {
	i, err := m.info(name)
	if err != nil {
		return false // it is empty
	}
	l := m.limit(i.ID)
	return l.MaxSize > 0 && treeSize(filepath.Join(m.dir, name)) > l.MaxSize
}

func (m *Mounts) limit(id string) Limit {
	for _, l := range m.limits {
		if ok, err := filepath.Match(l.Name, Name(id)); err == nil && ok || l.Name == "*" || l.Name == Name(id) {
			return l
		}
	}
	return Limit{}
}

// Expire removes the mounts that nobody has used for longer than their limit.
func (m *Mounts) Expire(now time.Time) error {
	all, err := m.list()
	if err != nil {
		return err
	}
	var errs []error
	for name, i := range all {
		if age := m.limit(i.ID).MaxAge; age > 0 && now.Sub(i.LastUsed) > age {
			_, err := m.Remove(name)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Renew lets steps that come find all cache mounts of an id empty, or as their
// base has them. Steps that are under way keep what they have.
func (m *Mounts) Renew(id string) error {
	names, err := m.named(id)
	if err != nil {
		return err
	}
	for _, name := range names {
		m.mu.Lock()
		s := m.slots[name]
		if s == nil {
			s = &slot{}
			m.slots[name] = s
		}
		s.outdated = true
		s.writers++
		m.mu.Unlock()
		if err := m.leave(name, false); err != nil {
			return err
		}
	}
	return nil
}

// named returns the folders of an id.
func (m *Mounts) named(id string) (names []string, err error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, fmt.Errorf("list cache mounts: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), hashed(id)+"-") {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// open makes a slot's folder, or finds it made.
func (m *Mounts) open(name, id string, fill func(dir string) error) (string, error) {
	base := filepath.Join(m.dir, name)
	files := filepath.Join(base, filesName)
	i, err := m.info(name)
	if err != nil { // new, or cut off while it was filled
		i = info{ID: id, Created: time.Now()}
		if err := os.RemoveAll(base); err != nil {
			return "", fmt.Errorf("clear cache mount %q: %w", id, err)
		}
		if err := os.MkdirAll(files, 0o755); err != nil {
			return "", fmt.Errorf("make cache mount %q: %w", id, err)
		}
		if err := fill(files); err != nil {
			return "", fmt.Errorf("fill cache mount %q: %w", id, err)
		}
	}
	i.LastUsed = time.Now()
	i.Uses++
	return files, m.putInfo(name, i)
}

func (m *Mounts) info(name string) (i info, err error) {
	b, err := os.ReadFile(filepath.Join(m.dir, name, infoName))
	if err == nil {
		err = json.Unmarshal(b, &i)
	}
	return i, err
}

func (m *Mounts) putInfo(name string, i info) error {
	if err := writeJSON(filepath.Join(m.dir, name, infoName), i); err != nil {
		return fmt.Errorf("note use of cache mount %q: %w", i.ID, err)
	}
	return nil
}

// writeJSON writes a file that is there whole or not at all.
func writeJSON(file string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// list returns what is known of all folders, by name.
func (m *Mounts) list() (map[string]info, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, fmt.Errorf("list cache mounts: %w", err)
	}
	all := map[string]info{}
	for _, e := range entries {
		if i, err := m.info(e.Name()); err == nil { // else it is in the making
			all[e.Name()] = i
		}
	}
	return all, nil
}

// Usage tells of all cache mounts, once it has removed those that have expired.
func (m *Mounts) Usage() (all []Usage, err error) {
	if err := m.Expire(time.Now()); err != nil {
		return nil, err
	}
	known, err := m.list()
	if err != nil {
		return nil, err
	}
	for name, i := range known {
		m.mu.Lock()
		used := m.slots[name] != nil
		m.mu.Unlock()
		all = append(all, Usage{
			Name: name, ID: i.ID, Size: treeSize(filepath.Join(m.dir, name)), InUse: used,
			Created: i.Created, LastUsed: i.LastUsed, Uses: i.Uses,
		})
	}
	return all, nil
}

// Remove deletes a cache mount by its usage name, unless somebody uses it or
// there is none.
func (m *Mounts) Remove(name string) (removed bool, err error) {
	m.mu.Lock()
	if m.slots[name] != nil {
		m.mu.Unlock()
		return false, nil
	}
	_, err = m.info(name)
	found := err == nil
	m.slots[name] = &slot{writers: 1, closed: true, outdated: found}
	m.mu.Unlock()
	return found, m.leave(name, false)
}

// treeSize is what the files below dir take on disk, in bytes.
func treeSize(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile: it takes nothing
		}
		if fi, err := d.Info(); err == nil {
			if st, ok := fi.Sys().(*syscall.Stat_t); ok {
				n += st.Blocks * 512
			}
		}
		return nil
	})
	return n
}
