package store

import (
	"encoding/json"
	"fmt"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

var _ layer.Records = (*Store)(nil)

// Layer returns a layer's record, or [layer.ErrNotFound].
func (s *Store) Layer(id string) (layer.Record, error) {
	var r layer.Record
	if !s.getJSON(bucketLayers, id, &r) {
		return layer.Record{}, fmt.Errorf("%w: %s", layer.ErrNotFound, id)
	}
	return r, nil
}

// PutLayer stores a layer's record.
func (s *Store) PutLayer(r layer.Record) error { return s.putJSON(bucketLayers, r.ID, r) }

// DeleteLayers forgets layers.
func (s *Store) DeleteLayers(ids ...string) error { return s.delete(bucketLayers, ids...) }

// Layers calls f with every record, in no order. A record that cannot be
// decoded is left out.
func (s *Store) Layers(f func(layer.Record) error) error {
	return s.each(bucketLayers, func(_ string, value []byte) error {
		var r layer.Record
		if json.Unmarshal(value, &r) != nil {
			return nil
		}
		return f(r)
	})
}

// Result is what is kept of a step's outputs.
type Result struct {
	Outputs []Output  `json:"outputs"`
	SavedAt time.Time `json:"savedAt"`
}

// Output is one output of a step: a layer, a value, or, with neither, the
// empty file system.
type Output struct {
	Layer string `json:"layer,omitempty"` // id
	Value []byte `json:"value,omitempty"`
	// Absent is set if the output was not made: nobody wanted it.
	Absent bool `json:"absent,omitempty"`
}

// Result returns what is kept under key.
func (s *Store) Result(key solver.Key) (Result, bool) {
	var r Result
	ok := s.getJSON(bucketResults, string(key), &r)
	return r, ok
}

// PutResult keeps r under key.
func (s *Store) PutResult(key solver.Key, r Result) error {
	return s.putJSON(bucketResults, string(key), r)
}

// DeleteResults forgets results.
func (s *Store) DeleteResults(keys ...solver.Key) error {
	for _, key := range keys {
		if err := s.delete(bucketResults, string(key)); err != nil {
			return err
		}
	}
	return nil
}

// Results calls f with every result, in no order.
func (s *Store) Results(f func(solver.Key, Result) error) error {
	return s.each(bucketResults, func(key string, value []byte) error {
		var r Result
		if json.Unmarshal(value, &r) != nil {
			return nil
		}
		return f(solver.Key(key), r)
	})
}

// Digest returns the content digest kept for part, a piece of a key as the
// solver names it.
func (s *Store) Digest(part string) (string, bool) {
	v, ok := s.get(bucketDigests, part)
	return string(v), ok
}

// DeleteDigests forgets all content digests.
func (s *Store) DeleteDigests() error {
	var parts []string
	err := s.each(bucketDigests, func(part string, _ []byte) error {
		parts = append(parts, part)
		return nil
	})
	if err != nil {
		return fmt.Errorf("list content digests: %w", err)
	}
	return s.delete(bucketDigests, parts...)
}

// PutDigest keeps the content digest of part.
func (s *Store) PutDigest(part, digest string) error {
	return s.put(bucketDigests, part, []byte(digest))
}

// Image returns what a name stands for in the local image store.
func (s *Store) Image(name string) (ocispecs.Descriptor, bool) {
	var d ocispecs.Descriptor
	ok := s.getJSON(bucketImages, name, &d)
	return d, ok
}

// PutImage makes name stand for an image: a manifest or an index.
func (s *Store) PutImage(name string, d ocispecs.Descriptor) error {
	return s.putJSON(bucketImages, name, d)
}

// DeleteImage forgets a name.
func (s *Store) DeleteImage(name string) error { return s.delete(bucketImages, name) }

// Images calls f with every name in the local image store, in order.
func (s *Store) Images(f func(name string, d ocispecs.Descriptor) error) error {
	return s.each(bucketImages, func(key string, value []byte) error {
		var d ocispecs.Descriptor
		if json.Unmarshal(value, &d) != nil {
			return nil
		}
		return f(key, d)
	})
}

// Value returns what a source has kept under key. Namespaces are apart.
func (s *Store) Value(namespace, key string) ([]byte, bool) {
	return s.get(bucketValues, namespace+"\x00"+key)
}

// PutValue keeps a small value; the caller must not change it any more.
func (s *Store) PutValue(namespace, key string, value []byte) error {
	return s.put(bucketValues, namespace+"\x00"+key, value)
}

// DeleteValue forgets a value.
func (s *Store) DeleteValue(namespace, key string) error {
	return s.delete(bucketValues, namespace+"\x00"+key)
}

func (s *Store) getJSON(bucket, key string, to any) bool {
	v, ok := s.get(bucket, key)
	return ok && json.Unmarshal(v, to) == nil
}

func (s *Store) putJSON(bucket, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %q: %w", bucket, key, err)
	}
	return s.put(bucket, key, data)
}

// Record returns the history's record of a build, by the build's ref.
func (s *Store) Record(ref string) ([]byte, bool) { return s.get(bucketHistory, ref) }

// PutRecord keeps the record of a build; the caller must not change data any more.
func (s *Store) PutRecord(ref string, data []byte) error { return s.put(bucketHistory, ref, data) }

// DeleteRecord forgets the record of a build.
func (s *Store) DeleteRecord(ref string) error { return s.delete(bucketHistory, ref) }

// Records calls f with every record of a build, in no order. f must not keep
// the data.
func (s *Store) Records(f func(data []byte) error) error {
	return s.each(bucketHistory, func(_ string, value []byte) error { return f(value) })
}
