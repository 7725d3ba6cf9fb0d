package git

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/kiln-build/kiln/internal/layer"
)

// Repos keeps what was fetched: one bare repository per remote and format of its
// objects. It has no references but refs/kiln/<object>, one for each object that
// was fetched whole.
type Repos struct {
	dir string

	mu    sync.Mutex
	users map[string]int // by directory
	locks locks
}

// repoInfo is kept beside a repository.
type repoInfo struct {
	Remote   string    `json:"remote"`
	Created  time.Time `json:"created"`
	LastUsed time.Time `json:"lastUsed"`
	Uses     int       `json:"uses"`
}

// OpenRepos keeps repositories below dir, which it makes.
func OpenRepos(dir string) (*Repos, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of git repositories: %w", err)
	}
	rs := &Repos{dir: dir, users: map[string]int{}, locks: newLocks()}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("list git repositories: %w", err)
	}
	for _, e := range entries {
		if _, err := rs.info(e.Name()); err == nil && !strings.HasPrefix(e.Name(), removed) {
			continue
		}
		// Cut off while it was made or removed.
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return nil, fmt.Errorf("remove git repository: %w", err)
		}
	}
	return rs, nil
}

// removed begins the names of what is being removed.
const removed = ".removed-"

// repoKey is what tells one repository from another.
type repoKey struct {
	remote string
	sha256 bool // the format of its objects, sha1 otherwise
	whole  bool // no history is left out
}

func (k repoKey) name() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\x00%t\x00%t", k.remote, k.sha256, k.whole))
	return hex.EncodeToString(sum[:16])
}

// repo is a repository in use.
type repo struct {
	repoKey
	dir  string // the git directory
	name string
}

// use returns a repository and protects it from removal until release. It may
// not exist yet, see [repo.exists].
func (rs *Repos) use(k repoKey) (*repo, func()) {
	name := k.name()
	rs.mu.Lock()
	rs.users[name]++
	rs.mu.Unlock()
	r := &repo{repoKey: k, name: name, dir: filepath.Join(rs.dir, name, "repo.git")}
	return r, sync.OnceFunc(func() {
		rs.mu.Lock()
		defer rs.mu.Unlock()
		if rs.users[name]--; rs.users[name] == 0 {
			delete(rs.users, name)
		}
	})
}

// exists tells whether the repository was made whole.
func (rs *Repos) exists(r *repo) bool {
	_, err := rs.info(r.name)
	return err == nil
}

// make makes an empty repository in place of whatever is there.
func (rs *Repos) make(ctx context.Context, run *runner, r *repo) error {
	base := filepath.Join(rs.dir, r.name)
	if err := os.RemoveAll(base); err != nil {
		return fmt.Errorf("clear git repository of %s: %w", r.remote, err)
	}
	if err := os.Mkdir(base, 0o700); err != nil {
		return fmt.Errorf("make git repository of %s: %w", r.remote, err)
	}
	if err := initRepo(ctx, run, command{gitDir: r.dir}, r.sha256, "--bare"); err != nil {
		return fmt.Errorf("make git repository of %s: %w", r.remote, err)
	}
	now := time.Now()
	return rs.putInfo(r.name, repoInfo{Remote: r.remote, Created: now, LastUsed: now})
}

// initRepo makes an empty repository.
func initRepo(ctx context.Context, run *runner, c command, sha256 bool, more ...string) error {
	format := "sha1"
	if sha256 {
		format = "sha256"
	}
	c.args = append([]string{"init", "-q", "--template=", "--object-format=" + format}, more...)
	_, err := run.run(ctx, c)
	return err
}

// used notes that a repository was used.
func (rs *Repos) used(r *repo) error {
	info, err := rs.info(r.name)
	if err != nil {
		return fmt.Errorf("note use of git repository %s: %w", r.remote, err)
	}
	info.LastUsed = time.Now()
	info.Uses++
	return rs.putInfo(r.name, info)
}

func (rs *Repos) info(name string) (info repoInfo, err error) {
	b, err := os.ReadFile(filepath.Join(rs.dir, name, "info.json"))
	if err == nil {
		err = json.Unmarshal(b, &info)
	}
	return info, err
}

func (rs *Repos) putInfo(name string, info repoInfo) error {
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	tmp := filepath.Join(rs.dir, name, "info.json.new")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return fmt.Errorf("note use of git repository %s: %w", info.Remote, err)
	}
	return os.Rename(tmp, filepath.Join(rs.dir, name, "info.json"))
}

// Usage describes the repositories, as if they were layers.
func (rs *Repos) Usage() (all []layer.Usage, err error) {
	entries, err := os.ReadDir(rs.dir)
	if err != nil {
		return nil, fmt.Errorf("list git repositories: %w", err)
	}
	for _, e := range entries {
		info, err := rs.info(e.Name())
		if err != nil || strings.HasPrefix(e.Name(), removed) {
			continue // in the making, or going
		}
		rs.mu.Lock()
		used := rs.users[e.Name()] > 0
		rs.mu.Unlock()
		all = append(all, layer.Usage{
			Record: layer.Record{
				ID: e.Name(), Type: "regular", Description: "shared git repo for " + info.Remote,
				CreatedAt: info.Created, LastUsed: info.LastUsed, UsageCount: info.Uses,
			},
			InUse: used, Size: treeSize(filepath.Join(rs.dir, e.Name())),
		})
	}
	return all, nil
}

// Remove deletes a repository by its id, unless it is in use or is not there.
func (rs *Repos) Remove(id string) (done bool, err error) {
	gone, err := rs.hide(id)
	if gone == "" || err != nil {
		return false, err
	}
	if err := os.RemoveAll(gone); err != nil {
		return false, fmt.Errorf("remove git repository: %w", err)
	}
	return true, nil
}

// hide takes a repository away from who would use it from now on, and returns
// where it is; "" if it may not be removed.
func (rs *Repos) hide(id string) (string, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.users[id] > 0 || id != filepath.Base(id) || strings.HasPrefix(id, ".") {
		return "", nil
	}
	if _, err := rs.info(id); err != nil {
		return "", nil //nolint:nilerr // what is not there needs no removing
	}
	gone := filepath.Join(rs.dir, removed+id+"-"+rand.Text())
	if err := os.Rename(filepath.Join(rs.dir, id), gone); err != nil {
		return "", fmt.Errorf("remove git repository: %w", err)
	}
	return gone, nil
}

// treeSize is what the files below dir take on disk, in bytes.
func treeSize(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // gone meanwhile: it takes nothing
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

// locks are locks by name that a waiter may give up waiting for.
type locks struct{ s *lockState }

type lockState struct {
	mu   sync.Mutex
	held map[string]*namedLock
}

// namedLock is held by whoever has put something into slot.
type namedLock struct {
	slot  chan struct{}
	users int
}

func newLocks() locks { return locks{&lockState{held: map[string]*namedLock{}}} }

// lock waits for a lock until ctx ends.
func (l locks) lock(ctx context.Context, name string) (unlock func(), err error) {
	l.s.mu.Lock()
	n := l.s.held[name]
	if n == nil {
		n = &namedLock{slot: make(chan struct{}, 1)}
		l.s.held[name] = n
	}
	n.users++
	l.s.mu.Unlock()
	leave := func() {
		l.s.mu.Lock()
		defer l.s.mu.Unlock()
		if n.users--; n.users == 0 {
			delete(l.s.held, name)
		}
	}
	select {
	case n.slot <- struct{}{}:
		return sync.OnceFunc(func() { <-n.slot; leave() }), nil
	case <-ctx.Done():
		leave()
		return nil, context.Cause(ctx)
	}
}
