package cache

import (
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
)

// Memory remembers for a while which records places have whole, so that an export
// does not ask for what was put there or seen there a moment ago. What it says of a
// place holds as long as the record about the place is the same: a place that was
// emptied is known by that. A reader who finds something lost makes it forget. A nil
// Memory remembers nothing. Its methods may be called concurrently.
type Memory struct {
	life time.Duration

	mu     sync.Mutex
	places map[string]*placeMemory // by origin and scope
}

type placeMemory struct {
	about digest.Digest // of the record about the place
	seen  map[string]time.Time
}

// Bounds of what is remembered.
const (
	mostPlaces   = 64
	mostSubjects = 20_000 // of a place
)

// NewMemory returns a Memory that forgets what it was told life ago.
func NewMemory(life time.Duration) *Memory {
	return &Memory{life: life, places: map[string]*placeMemory{}}
}

func placeKey(s Shelf, scope string) string { return s.Origin() + "\x00" + scope }

// meet is told how the record about a place reads now.
func (m *Memory) meet(place string, about []byte) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	is := digest.FromBytes(about)
	if p := m.places[place]; p != nil && p.about == is {
		return
	}
	for other := range m.places { // any: a place is only asked more often
		if len(m.places) < mostPlaces {
			break
		}
		delete(m.places, other)
	}
	m.places[place] = &placeMemory{about: is, seen: map[string]time.Time{}}
}

// has tells whether the place had the record of a subject lately, and all that it
// needs.
func (m *Memory) has(place, subject string) bool {
	if m == nil {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.places[place]
	if p == nil {
		return false
	}
	at, ok := p.seen[subject]
	return ok && time.Since(at) < m.life
}

// add remembers that the place has the record of a subject whole.
func (m *Memory) add(place, subject string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.places[place]
	if p == nil {
		return
	}
	for other := range p.seen {
		if len(p.seen) < mostSubjects {
			break
		}
		delete(p.seen, other)
	}
	p.seen[subject] = time.Now()
}

// forget drops all that is remembered of a place.
func (m *Memory) forget(place string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.places, place)
}
