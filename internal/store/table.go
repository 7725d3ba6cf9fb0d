package store

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
)

// table is what is not in the file yet: by bucket and key, the value, or nil
// for a deleted one.
type table map[string]map[string][]byte

func (t table) put(bucket, key string, value []byte) {
	b := t[bucket]
	if b == nil {
		b = map[string][]byte{}
		t[bucket] = b
	}
	b[key] = value
}

// longestKey bounds keys in the file; longer ones are stored by their digest.
const longestKey = 512

func fileKey(key string) string {
	if len(key) <= longestKey {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// get returns a copy of a value.
func (s *Store) get(bucket, key string) ([]byte, bool) {
	key = fileKey(key)
	s.mu.Lock()
	for _, t := range []table{s.pending, s.flushing} {
		if v, ok := t[bucket][key]; ok {
			s.mu.Unlock()
			return v, v != nil
		}
	}
	s.mu.Unlock()
	var value []byte
	err := s.view(func(tx *bolt.Tx) error {
		if v := tx.Bucket([]byte(bucket)).Get([]byte(key)); v != nil {
			value = append([]byte{}, v...)
		}
		return nil
	})
	return value, err == nil && value != nil
}

// put stores value, which the caller must not change any more. It fails only
// where earlier writes have failed and this one most likely would.
func (s *Store) put(bucket, key string, value []byte) error {
	if value == nil {
		value = []byte{}
	}
	return s.write(bucket, key, value)
}

func (s *Store) delete(bucket string, keys ...string) error {
	for _, key := range keys {
		if err := s.write(bucket, key, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) write(bucket, key string, value []byte) error {
	key = fileKey(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("write %s: database is closed", bucket)
	}
	if s.pending == nil {
		s.pending = table{}
	}
	s.pending.put(bucket, key, value)
	s.wakeUp()
	return s.failed
}

// each calls f with every entry of a bucket. f must not keep the value.
func (s *Store) each(bucket string, f func(key string, value []byte) error) error {
	if err := s.Flush(); err != nil {
		return err
	}
	return s.view(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(bucket)).ForEach(func(k, v []byte) error { return f(string(k), v) })
	})
}

// Flush writes what is pending to the file. Nobody needs to call it for others
// to see what was put; it tells whether it could be written.
func (s *Store) Flush() error {
	s.flush.Lock()
	defer s.flush.Unlock()
	s.mu.Lock()
	batch := s.pending
	s.pending, s.flushing = nil, batch
	s.mu.Unlock()
	if len(batch) == 0 {
		return nil
	}
	err := s.guard(func() error {
		return s.db.Update(func(tx *bolt.Tx) error { return batch.writeTo(tx) })
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushing, s.failed, s.unsynced = nil, err, true
	if err == nil {
		return nil
	}
	// Nothing is forgotten: what came meanwhile is newer and stays on top.
	for bucket, entries := range s.pending {
		if batch[bucket] == nil {
			batch[bucket] = map[string][]byte{}
		}
		maps.Copy(batch[bucket], entries)
	}
	s.pending = batch
	s.failed = fmt.Errorf("write metadata database: %w", err)
	return s.failed
}

func (t table) writeTo(tx *bolt.Tx) error {
	for bucket, entries := range t {
		b := tx.Bucket([]byte(bucket))
		for key, value := range entries {
			var err error
			if value == nil {
				err = b.Delete([]byte(key))
			} else {
				err = b.Put([]byte(key), value)
			}
			if err != nil {
				return fmt.Errorf("%s %q: %w", bucket, key, err)
			}
		}
	}
	return nil
}

func (s *Store) view(f func(*bolt.Tx) error) error {
	return s.guard(func() error { return s.db.View(f) })
}

// guard turns what a damaged file does to its reader into an error, and sees
// to it that the next Open looks closely.
func (s *Store) guard(f func() error) (err error) {
	return guarded(f, func() {
		s.mu.Lock()
		s.damaged = true
		s.mu.Unlock()
	})
}

func guarded(f func() error, damaged func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("database is damaged: %v", r)
			damaged()
		}
	}()
	return f()
}

// openDatabase opens or makes the file. With check it reads all of it first.
func openDatabase(path string, check bool) (db *bolt.DB, err error) {
	err = guarded(func() error {
		db, err = bolt.Open(path, 0o600, &bolt.Options{
			NoSync: true, FreelistType: bolt.FreelistMapType, NoStatistics: true, Timeout: 5 * time.Second,
		})
		if err != nil {
			return err
		}
		if err := checkSize(db, path); err != nil {
			return err
		}
		if check {
			if err := checkPages(db); err != nil {
				return err
			}
		}
		return db.Update(prepare)
	}, func() {})
	if err != nil && db != nil {
		_ = guarded(db.Close, func() {})
	}
	return db, err
}

// checkSize finds a file that is shorter than it says: reading its mapping
// would kill the process.
func checkSize(db *bolt.DB, path string) error {
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	return db.View(func(tx *bolt.Tx) error {
		if tx.Size() > fi.Size() {
			return fmt.Errorf("file has %d bytes, should have %d", fi.Size(), tx.Size())
		}
		return nil
	})
}

func checkPages(db *bolt.DB) error {
	return db.View(func(tx *bolt.Tx) error {
		// Only one error counts, but the channel must be emptied.
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = err
			}
		}
		return first
	})
}

func prepare(tx *bolt.Tx) error {
	for _, name := range buckets {
		if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
			return err
		}
	}
	meta := tx.Bucket([]byte(bucketMeta))
	switch v := meta.Get([]byte("version")); {
	case v == nil:
		return meta.Put([]byte("version"), []byte(schemaVersion))
	case string(v) != schemaVersion:
		return fmt.Errorf("it has schema version %q, this program writes %q", v, schemaVersion)
	}
	return nil
}
