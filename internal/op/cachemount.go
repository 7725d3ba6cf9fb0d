package op

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kiln-build/kiln/llb"
)

// CacheMounts keeps the directories of RUN --mount=type=cache between builds.
// Each id has one directory, and further ones while steps that do not share
// run at the same time.
type CacheMounts struct {
	dir string

	mu    sync.Mutex
	inUse map[string]*cacheUse // by directory
	freed chan struct{}        // closed and replaced whenever a directory is given back
}

type cacheUse struct {
	opening   sync.Mutex // held while the directory is made, or found made
	users     int
	exclusive bool
	outdated  bool // given to nobody any more, and removed after its last user
}

// infoFile is beside a cache mount's files; a directory without it is new.
const infoFile = "info.json"

// cacheInfo is kept beside a cache mount's files.
type cacheInfo struct {
	ID       string    `json:"id"`
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed"`
	Uses     int       `json:"uses"`
}

// cacheKey tells cache mounts apart: those of one id that begin with the files
// of different layers are different, as BuildKit's are.
type cacheKey struct {
	id   string // as in the build file
	base string // id of the layer it begins with, or ""
}

// slots is what the names of the directories begin with.
func (k cacheKey) slots() string {
	return slotsOf(k.id) + "-" + slotsOf(k.base)
}

func slotsOf(name string) string {
	if name == "" {
		return ""
	}
	hash := sha256.Sum256([]byte(name))
	return hex.EncodeToString(hash[:16])
}

// CacheMountUsage is what one cache mount's directory takes.
type CacheMountUsage struct {
	Name     string // the directory's, unique
	ID       string // as in the build file
	Size     int64  // bytes
	InUse    bool
	Created  time.Time
	LastUsed time.Time
	Uses     int
}

// NewCacheMounts keeps cache mounts below dir, which it makes.
func NewCacheMounts(dir string) (*CacheMounts, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of cache mounts: %w", err)
	}
	return &CacheMounts{dir: dir, inUse: map[string]*cacheUse{}, freed: make(chan struct{})}, nil
}

// acquire returns the files' directory of a cache mount. fill is called with a
// directory that is new. Only CacheLocked waits for other steps.
func (c *CacheMounts) acquire(ctx context.Context, key cacheKey, sharing llb.CacheSharing, fill func(dir string) error) (dir string, release func(), err error) {
	for {
		c.mu.Lock()
		slot, ok := c.pick(key.slots(), sharing)
		use, freed := c.inUse[slot], c.freed
		c.mu.Unlock()
		if ok {
			use.opening.Lock()
			dir, err := c.open(slot, key.id, fill)
			use.opening.Unlock()
			if err != nil {
				c.release(slot)
				return "", nil, err
			}
			return dir, sync.OnceFunc(func() { c.release(slot) }), nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return "", nil, ctx.Err()
		}
	}
}

// renew lets steps that come find all cache mounts of an id empty, or as their
// base has them. Steps that are under way keep what they have.
func (c *CacheMounts) renew(id string) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return fmt.Errorf("list cache mounts: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), slotsOf(id)+"-") {
			continue
		}
		c.mu.Lock()
		use := c.inUse[e.Name()]
		if use == nil {
			use = &cacheUse{}
			c.inUse[e.Name()] = use
		}
		use.outdated = true
		use.users++
		c.mu.Unlock()
		c.release(e.Name())
	}
	return nil
}

// RenewCacheMounts empties the cache mounts of a graph's steps that ignore
// the cache, once for all of them, as BuildKit does when a graph is loaded.
func (w *Worker) RenewCacheMounts(g *llb.Graph) error {
	renewed := map[string]bool{}
	for _, v := range g.Vertices() {
		run, ok := v.Op.(*llb.ExecOp)
		if !ok || !v.Meta.IgnoreCache {
			continue
		}
		for _, m := range run.Mounts {
			if id := cacheID(m); m.Kind == llb.MountCache && !renewed[id] {
				renewed[id] = true
				if err := w.CacheMounts.renew(id); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// cacheID is what a mount's cache is known by.
func cacheID(m llb.Mount) string {
	if m.CacheID == "" {
		return path.Clean(m.Dest)
	}
	return m.CacheID
}

// pick takes a directory for use, or tells that there is none for now.
func (c *CacheMounts) pick(name string, sharing llb.CacheSharing) (slot string, ok bool) {
	for n := 0; ; n++ {
		slot = fmt.Sprintf("%s-%d", name, n)
		use := c.inUse[slot]
		switch {
		case use == nil:
			c.inUse[slot] = &cacheUse{users: 1, exclusive: sharing != llb.CacheShared}
			return slot, true
		case use.outdated:
		case sharing == llb.CacheShared && !use.exclusive:
			use.users++
			return slot, true
		case sharing == llb.CacheLocked, sharing == llb.CacheShared:
			return "", false
		}
	}
}

func (c *CacheMounts) release(slot string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if use := c.inUse[slot]; use != nil {
		if use.users--; use.users == 0 {
			if use.outdated {
				// What cannot be removed is not what it was: open fills it anew.
				_ = os.Remove(filepath.Join(c.dir, slot, infoFile))
				_ = os.RemoveAll(filepath.Join(c.dir, slot))
			}
			delete(c.inUse, slot)
			close(c.freed)
			c.freed = make(chan struct{})
		}
	}
}

func (c *CacheMounts) open(slot, id string, fill func(dir string) error) (string, error) {
	base := filepath.Join(c.dir, slot)
	files := filepath.Join(base, "files")
	info, err := c.info(slot)
	if err != nil { // new, or cut off while it was filled
		info = cacheInfo{ID: id, Created: time.Now()}
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
	info.LastUsed = time.Now()
	info.Uses++
	return files, c.putInfo(slot, info)
}

func (c *CacheMounts) info(slot string) (info cacheInfo, err error) {
	b, err := os.ReadFile(filepath.Join(c.dir, slot, infoFile))
	if err == nil {
		err = json.Unmarshal(b, &info)
	}
	return info, err
}

func (c *CacheMounts) putInfo(slot string, info cacheInfo) error {
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	tmp := filepath.Join(c.dir, slot, infoFile+".new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("note use of cache mount %q: %w", info.ID, err)
	}
	return os.Rename(tmp, filepath.Join(c.dir, slot, infoFile))
}

// Usage tells of all cache mounts.
func (c *CacheMounts) Usage() (all []CacheMountUsage, err error) {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return nil, fmt.Errorf("list cache mounts: %w", err)
	}
	for _, e := range entries {
		info, err := c.info(e.Name())
		if err != nil {
			continue // in the making
		}
		c.mu.Lock()
		used := c.inUse[e.Name()] != nil
		c.mu.Unlock()
		all = append(all, CacheMountUsage{
			Name: e.Name(), ID: info.ID, Size: treeSize(filepath.Join(c.dir, e.Name())), InUse: used,
			Created: info.Created, LastUsed: info.LastUsed, Uses: info.Uses,
		})
	}
	return all, nil
}

// Remove deletes a cache mount by its usage name, unless a step uses it or there
// is none.
func (c *CacheMounts) Remove(name string) (removed bool, err error) {
	c.mu.Lock()
	if c.inUse[name] != nil {
		c.mu.Unlock()
		return false, nil
	}
	c.inUse[name] = &cacheUse{users: 1, exclusive: true}
	c.mu.Unlock()
	defer c.release(name)
	if _, err := c.info(name); err != nil {
		return false, nil //nolint:nilerr // what is not there needs no removing
	}
	if err := os.RemoveAll(filepath.Join(c.dir, name)); err != nil {
		return false, fmt.Errorf("remove cache mount: %w", err)
	}
	return true, nil
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
