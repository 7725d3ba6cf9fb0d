package store

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/kiln-build/kiln/internal/solver"
)

// Step is what is known of a step that was made once, whether its result is
// still kept or not.
type Step struct {
	Name      string            `json:"name"`
	Operation string            `json:"operation"` // digest of what it does
	Parts     []StepPart        `json:"parts,omitempty"`
	Args      map[string]string `json:"args,omitempty"` // build arguments that its parts may come from
	Inputs    []StepInput       `json:"inputs,omitempty"`
	Build     string            `json:"build,omitempty"` // ref of the build that made it
	// Made is set if a result was there once: else the step was merely looked at,
	// because one on top of it was wanted.
	Made      bool          `json:"made,omitempty"`
	MadeAt    time.Time     `json:"madeAt"`
	Took      time.Duration `json:"took,omitempty"`
	Size      int64         `json:"size,omitempty"` // bytes of the result's files
	EvictedAt time.Time     `json:"evictedAt,omitzero"`
	EvictedBy string        `json:"evictedBy,omitempty"` // why its result was removed, in words
}

// StepPart is a part of what a step does, such as a variable.
type StepPart struct {
	Kind  string `json:"kind"`
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
}

// StepInput is what a step reads: some files by their content, or all that
// another step makes by how it is made.
type StepInput struct {
	Key      string `json:"key"`
	Selector string `json:"selector,omitempty"`
	Content  string `json:"content,omitempty"` // digest, where that is what counts
}

// Step returns what is known of the step that has a key.
func (s *Store) Step(key string) (Step, bool) {
	var st Step
	ok := s.getJSON(bucketSteps, key, &st)
	return st, ok
}

// PutStep keeps what is known of a step.
func (s *Store) PutStep(key string, st Step) error {
	return s.putJSON(bucketSteps, key, st)
}

// DeleteSteps forgets steps.
func (s *Store) DeleteSteps(keys ...string) error { return s.delete(bucketSteps, keys...) }

// ResultOf is [Store.Result] for those who know steps only.
func (s *Store) ResultOf(step string) (Result, bool) { return s.Result(solver.Key(step)) }

// Steps calls f with every step, in no order.
func (s *Store) Steps(f func(string, Step) error) error {
	return s.each(bucketSteps, func(key string, value []byte) error {
		var st Step
		if json.Unmarshal(value, &st) != nil {
			return nil
		}
		return f(key, st)
	})
}

// Evict forgets results, and keeps when and why with what is known of their steps.
func (s *Store) Evict(why string, keys ...solver.Key) error {
	now := time.Now().UTC()
	for _, key := range keys {
		if st, ok := s.Step(string(key)); ok {
			st.EvictedAt, st.EvictedBy = now, why
			if err := s.PutStep(string(key), st); err != nil {
				return fmt.Errorf("note the eviction of a result: %w", err)
			}
		}
	}
	return s.DeleteResults(keys...)
}

// EvictResults is [Store.Evict] of the results that stale is true for.
func (s *Store) EvictResults(why string, stale func(Result) bool) error {
	var keys []solver.Key
	err := s.Results(func(key solver.Key, r Result) error {
		if stale(r) {
			keys = append(keys, key)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list results: %w", err)
	}
	return s.Evict(why, keys...)
}

// mostFiles bounds what is kept of the files that steps read, in bytes: what
// was kept first goes first.
const mostFiles = 32 << 20

// stampSize is the size of the time that lists of files begin with.
const stampSize = 8

// Files returns the list of files, as its owner encoded it, that a content
// digest is of.
func (s *Store) Files(content string) ([]byte, bool) {
	b, ok := s.get(bucketFiles, content)
	if !ok || len(b) < stampSize {
		return nil, false
	}
	return b[stampSize:], true
}

// PutFiles keeps the list of files that a content digest is of, and forgets
// the oldest ones if there are too many.
func (s *Store) PutFiles(content string, data []byte) error {
	value := append(binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano())), data...)
	s.files.Lock()
	defer s.files.Unlock()
	// To read all that is kept takes time in proportion to it, so it is done once,
	// and when there is too much.
	if !s.files.counted || s.files.total+len(value) > mostFiles {
		if err := s.forgetFiles(len(value)); err != nil {
			return err
		}
	}
	s.files.total += len(value)
	return s.put(bucketFiles, content, value)
}

// fileLists counts the lists of files that are kept. One that is put twice counts
// twice until they are counted anew.
type fileLists struct {
	sync.Mutex
	counted bool
	total   int // bytes
}

// forgetFiles counts what is kept. If there is no room for a further list, it
// makes room for many.
func (s *Store) forgetFiles(size int) error {
	type kept struct {
		content string
		at      uint64
		size    int
	}
	var all []kept
	total := 0
	err := s.each(bucketFiles, func(key string, value []byte) error {
		k := kept{content: key, size: len(value)}
		if len(value) >= stampSize {
			k.at = binary.BigEndian.Uint64(value)
		}
		all = append(all, k)
		total += len(value)
		return nil
	})
	if err != nil {
		return fmt.Errorf("list kept files: %w", err)
	}
	slices.SortFunc(all, func(a, b kept) int { return cmp.Compare(a.at, b.at) })
	if total+size > mostFiles {
		for _, k := range all {
			if total+size <= mostFiles*7/8 {
				break
			}
			if err := s.delete(bucketFiles, k.content); err != nil {
				return err
			}
			total -= k.size
		}
	}
	s.files.counted, s.files.total = true, total
	return nil
}
