package history

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kiln-build/kiln/internal/store"
)

// Part is a part of what a step does, such as a variable.
type Part = store.StepPart

// StepInput is what a step reads.
type StepInput = store.StepInput

const (
	mostSteps  = 20000 // that are known; of more, those made first are forgotten
	leastSteps = 18000 // that are then left
)

// Ledger knows what keys were made of: of each step that was made once, its
// parts, its inputs and what became of its result. So it can tell why a step
// runs though one like it ran before. It is a part of the database, and is
// kept whether builds are recorded or not.
//
// It lives in this package, beside the builds, whose steps it is told of. Its
// methods may be called concurrently.
type Ledger struct {
	db      *store.Store
	writers sync.Pool // of *flate.Writer, which are large: a list of files is not

	mu     sync.Mutex
	loaded bool
	known  map[string]*entry
	places map[string]map[*entry]struct{} // by what may make steps alike
}

// entry is what is kept in memory of a step.
type entry struct {
	key, name, operation string
	inputs               []StepInput
	made                 time.Time
	size                 int64
}

// NewLedger returns the ledger that is kept in a database.
func NewLedger(db *store.Store) *Ledger {
	return &Ledger{db: db, known: map[string]*entry{}, places: map[string]map[*entry]struct{}{}}
}

// Record notes the steps of a build that has ended.
func (l *Ledger) Record(ref string, steps []Step) error {
	var errs []error
	for _, s := range steps {
		if s.Local {
			continue // no other build can have its key
		}
		old, ok := l.db.Step(s.Key)
		if ok && !s.Ran && (old.Made || !s.Made) {
			continue
		}
		now := store.Step{
			Name: s.Name, Operation: s.Operation, Parts: s.Parts, Args: s.Args, Inputs: s.Inputs, Build: ref,
			Made: s.Made || old.Made, MadeAt: time.Now().UTC(), Took: s.Took, Size: l.Size(s.Key),
		}
		if s.Ran && !s.Made { // it failed: what is known of better days stays
			now.Took, now.Size, now.MadeAt, now.EvictedAt, now.EvictedBy = old.Took, old.Size, old.MadeAt, old.EvictedAt, old.EvictedBy
			if ok {
				now.Build = old.Build
			}
		}
		errs = append(errs, l.db.PutStep(s.Key, now))
		l.mu.Lock()
		if l.loaded {
			l.index(s.Key, now)
		}
		l.mu.Unlock()
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("note steps of build %s: %w", ref, err)
	}
	return l.trim()
}

// load reads the index, once. The caller holds l.mu.
func (l *Ledger) load() error {
	if l.loaded {
		return nil
	}
	err := l.db.Steps(func(key string, s store.Step) error {
		l.index(key, s)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read known steps: %w", err)
	}
	l.loaded = true
	return nil
}

// index makes a step one that others are compared with. The caller holds l.mu.
func (l *Ledger) index(key string, s store.Step) {
	if old := l.known[key]; old != nil {
		l.unindex(old)
	}
	if !s.Made {
		return
	}
	e := &entry{key: key, name: s.Name, operation: s.Operation, inputs: s.Inputs, made: s.MadeAt, size: s.Size}
	l.known[key] = e
	for _, p := range e.places() {
		if l.places[p] == nil {
			l.places[p] = map[*entry]struct{}{}
		}
		l.places[p][e] = struct{}{}
	}
}

func (l *Ledger) unindex(e *entry) {
	delete(l.known, e.key)
	for _, p := range e.places() {
		delete(l.places[p], e)
		if len(l.places[p]) == 0 {
			delete(l.places, p)
		}
	}
}

// trim forgets steps where there are too many.
func (l *Ledger) trim() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.loaded || len(l.known) <= mostSteps {
		return nil
	}
	var all []*entry
	for _, e := range l.known {
		if _, kept := l.db.ResultOf(e.key); !kept { // those go first
			all = append(all, e)
		}
	}
	byAge := func(a, b *entry) int { return a.made.Compare(b.made) }
	slices.SortFunc(all, byAge)
	for _, e := range all {
		if len(l.known) <= leastSteps {
			break
		}
		l.unindex(e)
		if err := l.db.DeleteSteps(e.key); err != nil {
			return fmt.Errorf("forget steps: %w", err)
		}
	}
	return nil
}

// places are words that steps have in common which are likely to be the same
// one at different times: by what it says, where it stands, and what it reads.
func (e *entry) places() []string {
	stage, text := splitName(e.name)
	verb, _, _ := strings.Cut(text, " ")
	out := []string{"text " + text}
	if stage != "" {
		out = append(out, "place "+stage+" "+verb)
	}
	for i, in := range e.inputs {
		out = append(out, fmt.Sprintf("input %d %s of %s", i, cmp.Or(in.Content, in.Key), verb))
	}
	return out
}

// splitName takes a name such as "[build 2/5] RUN make" apart: the stage with
// the number of the step in it, and the rest. How many steps there are does
// not matter.
func splitName(name string) (place, text string) {
	if !strings.HasPrefix(name, "[") {
		return "", name
	}
	place, text, ok := strings.Cut(name[1:], "] ")
	if !ok || strings.HasPrefix(place, "internal") {
		return "", name
	}
	place, _, _ = strings.Cut(place, "/")
	return place, text
}

// nearest finds the step of an earlier build that s has most in common with.
func (l *Ledger) nearest(s Step) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.load() != nil {
		return "", false // a reason less
	}
	me := &entry{key: s.Key, name: s.Name, operation: s.Operation, inputs: s.Inputs}
	var best *entry
	bestScore := 0
	for _, p := range me.places() {
		for e := range l.places[p] {
			if e.key == s.Key {
				continue
			}
			score := me.common(e)
			if best == nil || score > bestScore || score == bestScore && e.made.After(best.made) {
				best, bestScore = e, score
			}
		}
	}
	if best == nil {
		return "", false
	}
	return best.key, true
}

// common says how much steps have in common.
func (e *entry) common(o *entry) (n int) {
	place, text := splitName(e.name)
	otherPlace, otherText := splitName(o.name)
	if text == otherText {
		n += 16
	}
	if place == otherPlace {
		n += 4
	}
	if e.operation == o.operation {
		n += 8
	}
	for i, in := range e.inputs {
		switch {
		case i >= len(o.inputs):
			n--
		case in.Key == o.inputs[i].Key:
			n += 4
		case in.Content != "" && in.Content == o.inputs[i].Content:
			n += 3
		}
	}
	return n
}

// Get returns what is known of the step with a key.
func (l *Ledger) Get(key string) (store.Step, bool) { return l.db.Step(key) }

// Expect is how many bytes a step is likely to make: as many as when it last
// ran, or else as one of this name, or in its place, did. 0 is unknown.
func (l *Ledger) Expect(key, name string) int64 {
	if st, ok := l.Get(key); ok && st.Made {
		return st.Size
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.load() != nil {
		return 0
	}
	for _, p := range (&entry{name: name}).places() {
		var last *entry
		for e := range l.places[p] {
			if last == nil || e.made.After(last.made) {
				last = e
			}
		}
		if last != nil {
			return last.size
		}
	}
	return 0
}

// Cached is what a step's result that was there is worth: the bytes of its
// files, and how long it took when it ran.
func (l *Ledger) Cached(key string) (size int64, took time.Duration) {
	if st, ok := l.Get(key); ok {
		took = st.Took
	}
	return l.Size(key), took
}

// Size is what the results of a step take, in bytes.
func (l *Ledger) Size(key string) (size int64) {
	r, ok := l.db.ResultOf(key)
	if !ok {
		return 0
	}
	for _, o := range r.Outputs {
		if o.Layer == "" {
			continue
		}
		if rec, err := l.db.Layer(o.Layer); err == nil {
			size += rec.Size
		}
	}
	return size
}
