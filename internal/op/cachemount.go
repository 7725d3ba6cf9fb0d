package op

import (
	"fmt"
	"path"

	"github.com/kiln-build/kiln/internal/cachemount"
	"github.com/kiln-build/kiln/llb"
)

// CacheMountIDs are the ids of the cache mounts that a graph's steps use.
// renewed are those of steps that ignore the cache.
func CacheMountIDs(g *llb.Graph) (used, renewed []string) {
	seen := map[string]bool{}
	fresh := map[string]bool{}
	for _, v := range g.Vertices() {
		run, ok := v.Op.(*llb.ExecOp)
		if !ok {
			continue
		}
		for _, m := range run.Mounts {
			if m.Kind != llb.MountCache {
				continue
			}
			id := cacheID(m)
			if !seen[id] {
				seen[id] = true
				used = append(used, id)
			}
			if v.Meta.IgnoreCache && !fresh[id] {
				fresh[id] = true
				renewed = append(renewed, id)
			}
		}
	}
	return used, renewed
}

// cacheID is what a mount's cache is known by.
func cacheID(m llb.Mount) string {
	if m.CacheID == "" {
		return path.Clean(m.Dest)
	}
	return m.CacheID
}

func cacheSharing(s llb.CacheSharing) (cachemount.Sharing, error) {
	switch s {
	case llb.CacheShared:
		return cachemount.Shared, nil
	case llb.CachePrivate:
		return cachemount.Private, nil
	case llb.CacheLocked:
		return cachemount.Locked, nil
	}
	return 0, fmt.Errorf("unknown sharing of a cache mount %d: expected 0 (shared), 1 (private) or 2 (locked)", s)
}
