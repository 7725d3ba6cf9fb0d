package gc

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/layer"
)

// forest makes layers, chains of them and others, of random age and size.
func forest(r *rand.Rand, now time.Time) (all []layer.Usage) {
	for i := range 1 + r.IntN(40) {
		u := layer.Usage{
			Record: layer.Record{
				ID: fmt.Sprint("r", i), LastUsed: now.Add(-time.Duration(r.IntN(100)) * time.Hour),
				Type: []string{"regular", "regular", "internal", "source.local", "exec.cachemount", "frontend"}[r.IntN(6)],
			},
			Size: int64(r.IntN(50)), InUse: r.IntN(8) == 0,
		}
		if i > 0 && r.IntN(3) > 0 {
			u.Parents = []string{all[r.IntN(i)].ID}
		}
		all = append(all, u)
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// TestChoose holds what must be so whatever is kept, and whatever the policy is.
func TestChoose(t *testing.T) {
	now := time.Now()
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 1))
		all := forest(r, now)
		p := Policy{All: r.IntN(2) == 0, KeepFor: time.Duration(r.IntN(3)*30) * time.Hour}
		if r.IntN(3) == 0 {
			p.Filters = []string{"type==regular"}
		}
		match, err := ParseFilters(p.Filters)
		if err != nil {
			t.Fatal(err)
		}
		used := sizeOf(all)
		keep := r.Int64N(used + 1)
		if r.IntN(4) == 0 {
			keep = 0
		}
		world := newChecked(all, p, match, now)
		for _, u := range choose(slices.Clone(all), p, match, keep, used, now) {
			if keep > 0 && world.left(used) <= keep {
				t.Errorf("seed %d: %s goes though no more than %d is left", seed, u.ID, keep)
			}
			if why := world.remove(u.ID); why != "" {
				t.Errorf("seed %d: %s goes though %s", seed, u.ID, why)
			}
		}
		if more := world.removable(); (keep == 0 || world.left(used) > keep) && len(more) > 0 {
			t.Errorf("seed %d: %d are left, %d may be, and %v could go", seed, world.left(used), keep, more)
		}
	}
}

// checked is what is kept, as a naive reading of the policy sees it.
type checked struct {
	policy Policy
	match  func(layer.Usage) bool
	now    time.Time
	kept   map[string]layer.Usage
	whole  map[string]layer.Usage
	gone   int64
}

func newChecked(all []layer.Usage, p Policy, match func(layer.Usage) bool, now time.Time) *checked {
	c := &checked{policy: p, match: match, now: now, kept: map[string]layer.Usage{}, whole: map[string]layer.Usage{}}
	for _, u := range all {
		c.kept[u.ID], c.whole[u.ID] = u, u
	}
	return c
}

func (c *checked) left(used int64) int64 { return used - c.gone }

// above are those that are built on id, directly or not, and id itself.
func (c *checked) above(id string, of map[string]layer.Usage) (all []layer.Usage) {
	for _, u := range of {
		if u.ID == id {
			all = append(all, u)
		} else if slices.Contains(u.Parents, id) {
			all = append(all, c.above(u.ID, of)...)
		}
	}
	return all
}

// mayGo says why id must stay, or "".
func (c *checked) mayGo(id string) string {
	u, ok := c.kept[id]
	if !ok {
		return "it has gone"
	}
	for _, a := range c.above(id, c.whole) {
		if a.InUse {
			return a.ID + " is in use"
		}
		if c.policy.KeepFor > 0 && c.now.Sub(a.LastUsed) < c.policy.KeepFor {
			return a.ID + " was used lately"
		}
	}
	switch {
	case len(c.above(id, c.kept)) > 1:
		return "something is built on it"
	case !c.policy.All && (u.Type == "internal" || u.Type == "frontend"):
		return "it is the daemon's own"
	case !c.match(u):
		return "the filter does not match"
	}
	return ""
}

// remove removes id. Nothing that was used earlier may be left that could go.
func (c *checked) remove(id string) string {
	if why := c.mayGo(id); why != "" {
		return why
	}
	for _, other := range c.removable() {
		if c.lastUse(other).Before(c.lastUse(id)) {
			return other + " was not used for longer"
		}
	}
	c.gone += c.kept[id].Size
	delete(c.kept, id)
	return ""
}

func (c *checked) lastUse(id string) (last time.Time) {
	for _, u := range c.above(id, c.whole) {
		if u.LastUsed.After(last) {
			last = u.LastUsed
		}
	}
	return last
}

func (c *checked) removable() (ids []string) {
	for id := range c.kept {
		if c.mayGo(id) == "" {
			ids = append(ids, id)
		}
	}
	return ids
}
