package gc

import (
	"cmp"
	"slices"
	"time"

	"github.com/kiln-build/kiln/internal/layer"
)

// choose picks what a policy removes of all that is kept, in an order in which
// nothing goes before what is on top of it: the least recently used first, until
// no more than keep bytes of used are left. A keep of 0 takes all that may go, even
// what has no bytes, such as layers that were not pulled yet. What is used, and all
// that it is built on, stays. It does nothing but compute.
func choose(all []layer.Usage, p Policy, match func(layer.Usage) bool, keep, used int64, now time.Time) (out []layer.Usage) {
	items := arrange(all)
	for _, it := range items { // of one time, those on top come first
		if keep > 0 && used <= keep {
			break
		}
		if it.children > 0 || it.inUse || !p.takes(it, now) || !match(it.Usage) {
			continue
		}
		out = append(out, it.Usage)
		used -= it.Size
		for _, below := range it.below {
			below.children--
		}
	}
	return out
}

// item is something that is kept, as a candidate for removal.
type item struct {
	layer.Usage
	below    []*item
	children int
	depth    int
	inUse    bool      // it or what is on top
	lastUsed time.Time // of it or what is on top
}

// arrange sorts by the last use, those on top before those below.
func arrange(all []layer.Usage) []*item {
	byID := make(map[string]*item, len(all))
	items := make([]*item, len(all))
	for i, u := range all {
		items[i] = &item{Usage: u, inUse: u.InUse, lastUsed: u.LastUsed}
		byID[u.ID] = items[i]
	}
	for _, it := range items {
		for _, id := range it.Parents {
			if p := byID[id]; p != nil && p != it {
				it.below = append(it.below, p)
				p.children++
			}
		}
	}
	var depth func(it *item) int
	depth = func(it *item) int {
		if it.depth == 0 {
			it.depth = 1
			for _, p := range it.below {
				it.depth = max(it.depth, depth(p)+1)
			}
		}
		return it.depth
	}
	for _, it := range items {
		depth(it)
	}
	slices.SortStableFunc(items, func(a, b *item) int { return cmp.Compare(b.depth, a.depth) })
	for _, it := range items {
		for _, p := range it.below {
			p.inUse = p.inUse || it.inUse
			if it.lastUsed.After(p.lastUsed) {
				p.lastUsed = it.lastUsed
			}
		}
	}
	slices.SortStableFunc(items, func(a, b *item) int { return a.lastUsed.Compare(b.lastUsed) })
	return items
}

// takes tells whether the policy may remove it.
func (p Policy) takes(it *item, now time.Time) bool {
	if !p.All && (it.Type == "internal" || it.Type == "frontend") {
		return false
	}
	return p.KeepFor == 0 || now.Sub(it.lastUsed) >= p.KeepFor
}
