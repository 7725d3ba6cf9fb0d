package history

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kiln-build/kiln/internal/store"
)

// Reason is why a step runs though one like it ran before.
type Reason struct {
	Differences []Difference // at least one
	Near        string       // ref of the build that had the step it was compared with
}

// Sentence is the reason in one line.
func (r *Reason) Sentence() string { return reason(r.Differences) }

// mostRead bounds the steps of earlier builds that explanations of one build keep.
const mostRead = 1000

// Explainer tells why steps of one build run. It keeps the steps of earlier builds
// that it compared with: those that many others are built on count for each.
type Explainer struct {
	ledger *Ledger

	mu   sync.Mutex
	read map[string]store.Step // by key, which says all of them that is compared
}

// Explainer returns one for a build.
func (l *Ledger) Explainer() *Explainer {
	return &Explainer{ledger: l, read: map[string]store.Step{}}
}

// step is the step of an earlier build that has a key.
func (e *Explainer) step(key string) (store.Step, bool) {
	e.mu.Lock()
	st, ok := e.read[key]
	e.mu.Unlock()
	if ok {
		return st, true
	}
	if st, ok = e.ledger.Get(key); !ok {
		return st, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.read) < mostRead {
		e.read[key] = st
	}
	return st, true
}

// Explain tells why a step runs and was not found in the cache: all of its key
// that differs from the nearest step that any build had, the first part first.
// What it is built on is looked through down to the step that has changed
// itself. other finds steps of the same build by their keys. It is nil for a
// step that is new, and for one that no other build could have had.
func (e *Explainer) Explain(s Step, other func(key string) (Step, bool)) *Reason {
	l := e.ledger
	if s.Local {
		return nil
	}
	if old, ok := l.Get(s.Key); ok && old.Made {
		return &Reason{Differences: []Difference{l.lost(s, old)}, Near: old.Build}
	}
	key, ok := l.nearest(s)
	if !ok {
		return nil
	}
	near, ok := l.Get(key)
	if !ok {
		return nil
	}
	ds := l.compare(s, near, e.step, other)
	if s.Fresh {
		ds = append([]Difference{{Kind: KindNoCache}}, ds...)
	}
	if len(ds) == 0 {
		ds = []Difference{{Kind: KindUnnamed}}
	}
	return &Reason{Differences: ds, Near: near.Build}
}

// Compare tells in what the key of one known step differs from that of another.
func (l *Ledger) Compare(a, b string) []Difference {
	now, ok := l.Get(b)
	near, also := l.Get(a)
	if !ok || !also || a == b {
		return nil
	}
	ds := l.compare(stepOf(b, now), near, l.Get, func(string) (Step, bool) { return Step{}, false })
	if len(ds) == 0 {
		ds = []Difference{{Kind: KindUnnamed}}
	}
	return ds
}

// lost tells why a result that was there cannot be used.
func (l *Ledger) lost(s Step, old store.Step) Difference {
	switch {
	case s.Fresh:
		return Difference{Kind: KindNoCache}
	case !old.EvictedAt.IsZero():
		return Difference{Kind: KindEvicted, Name: old.EvictedBy, Was: old.EvictedAt.Local().Format(time.DateTime)}
	}
	return Difference{Kind: KindResult}
}

func stepOf(key string, st store.Step) Step {
	return Step{
		Name: st.Name, Key: key, Operation: st.Operation, Parts: st.Parts, Args: st.Args, Inputs: st.Inputs, Made: st.Made, Took: st.Took,
	}
}

// comparison is of a step, and all below it, with one of an earlier build.
type comparison struct {
	ledger  *Ledger
	earlier func(key string) (store.Step, bool)
	other   func(key string) (Step, bool)
	seen    map[[2]string]bool // pairs of keys
	found   []Difference
	cut     bool // not all that is below was looked at
}

// enough differences are not followed by those of steps further below. Where every
// step of a chain has changed, each would tell of all that are below it.
const enough = 16

// compare compares two steps with all below them. earlier and other find steps of
// earlier builds, and of this one, by their keys.
func (l *Ledger) compare(s Step, near store.Step, earlier func(string) (store.Step, bool), other func(string) (Step, bool)) []Difference {
	c := comparison{ledger: l, earlier: earlier, other: other, seen: map[[2]string]bool{}}
	c.steps(s, near, "")
	if c.cut {
		c.found = append(c.found, Difference{Kind: KindFurther})
	}
	return c.found
}

// note adds differences of the step that below names.
func (c *comparison) note(below string, ds ...Difference) {
	for _, d := range ds {
		d.Step = below
		c.found = append(c.found, d)
	}
}

// find returns the step with a key, of this build or of another.
func (c *comparison) find(key string) (Step, bool) {
	if s, ok := c.other(key); ok {
		return s, true
	}
	if st, ok := c.earlier(key); ok {
		return stepOf(key, st), true
	}
	return Step{}, false
}

// steps compares; below is the name of s if it is below the step in question.
func (c *comparison) steps(s Step, near store.Step, below string) {
	if s.Operation != near.Operation {
		c.note(below, c.parts(s, near)...)
	}
	if len(s.Inputs) != len(near.Inputs) {
		c.note(below, Difference{
			Kind: KindInput, Name: "other steps than before",
			Was: fmt.Sprint(len(near.Inputs)), Now: fmt.Sprint(len(s.Inputs)),
		})
		return
	}
	for i, in := range s.Inputs {
		c.input(in, near.Inputs[i], below)
	}
}

// parts compares what two steps do.
func (c *comparison) parts(s Step, near store.Step) (out []Difference) {
	was, now := byName(near.Parts), byName(s.Parts)
	ids := make([][2]string, 0, len(s.Parts)+len(near.Parts))
	for _, p := range append(slices.Clone(s.Parts), near.Parts...) { // in the order of the key
		if id := partID(p); !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		a, b := was[id], now[id]
		if a.Value == b.Value && a.Name == b.Name {
			continue
		}
		d := Difference{Kind: id[0], Name: cmp.Or(b.Name, a.Name), Was: a.Value, Now: b.Value}
		if id[0] == KindEnv && (a.Kind == KindBuildArg || b.Kind == KindBuildArg) {
			d.Kind = KindBuildArg
		}
		if id[0] == KindImage && a.Name != b.Name && a.Name != "" {
			d.Was = a.Name + "@" + a.Value
		}
		out = append(out, d)
	}
	return append(argsIn(out, s.Args, near.Args), out...)
}

// partID names a part across builds.
func partID(p Part) [2]string {
	switch p.Kind {
	case KindBuildArg:
		return [2]string{KindEnv, p.Name} // in one build given, in the other as the file has it
	case KindImage:
		return [2]string{p.Kind, ""} // there is one, whose name may change
	}
	return [2]string{p.Kind, p.Name}
}

func byName(parts []Part) map[[2]string]Part {
	m := make(map[[2]string]Part, len(parts))
	for _, p := range parts {
		m[partID(p)] = p
	}
	return m
}

// argsIn are the build arguments that differ and that differences come from:
// their values are in what was and in what is.
func argsIn(ds []Difference, now, was map[string]string) (out []Difference) {
	for _, name := range slices.Sorted(maps.Keys(now)) {
		before, ok := was[name]
		if !ok || before == now[name] {
			continue
		}
		if slices.ContainsFunc(ds, func(d Difference) bool {
			return d.Kind != KindBuildArg && strings.Contains(d.Now, now[name]) && strings.Contains(d.Was, before)
		}) {
			out = append(out, Difference{Kind: KindBuildArg, Name: name, Was: before, Now: now[name]})
		}
	}
	return out
}

// unlike tells whether comparing the parts of two steps would say nothing, for
// they bring files in by different ways, or one of them does not at all.
func unlike(s Step, o store.Step) bool {
	brings := func(parts []Part) string {
		i := slices.IndexFunc(parts, func(p Part) bool { return p.Kind == KindImage || p.Kind == kindSource })
		if i < 0 {
			return ""
		}
		return parts[i].Kind
	}
	return brings(s.Parts) != brings(o.Parts)
}

// input compares what is read.
func (c *comparison) input(in, was StepInput, below string) {
	name := "an input"
	s, known := c.find(in.Key)
	if known {
		name = s.Name
	}
	if in.Content != "" && was.Content != "" {
		if in.Content == was.Content {
			return
		}
		ds := c.ledger.changedFiles(was.Content, in.Content)
		if len(ds) == 0 {
			ds = []Difference{{Kind: KindFiles, Name: name, Was: was.Content, Now: in.Content}}
		}
		c.note(below, ds...)
		return
	}
	if in.Key == was.Key {
		if in.Selector != was.Selector {
			c.note(below, Difference{Kind: "mount", Name: "of a part of " + name, Was: was.Selector, Now: in.Selector})
		}
		return
	}
	before, also := c.earlier(was.Key)
	pair := [2]string{was.Key, in.Key}
	switch {
	case known && also && unlike(s, before):
		c.note(below, Difference{Kind: KindInput, Name: name, Was: before.Name, Now: name})
		return
	case c.seen[pair]:
		return // told already
	case known && also && len(c.found) >= enough:
		c.cut = true
		return
	case known && also:
		c.seen[pair] = true
		told := len(c.found)
		if c.steps(s, before, s.Name); len(c.found) > told || c.cut {
			return
		}
	}
	c.note(below, Difference{Kind: KindInput, Name: name, Was: was.Key, Now: in.Key})
}
