package cachetest

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/kiln-build/kiln/internal/cache"
)

// shelfSigned: what a daemon writes has its signature in every place, and is
// passed over by whoever does not trust it.
func shelfSigned(t *testing.T, f *ShelfFixture) {
	id, err := cache.NewIdentity(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	u := cache.NewUploader(f.ctx(t), cache.UploaderConfig{Shelf: f.open(t, true), Identity: id})
	defer u.Close()
	if err := u.Mount("npm", json.RawMessage(`"a snapshot"`), nil); err != nil {
		t.Fatal(err)
	}
	name := cache.RecordName(cache.MountSubject("npm"), "")
	s := f.open(t, false)
	found, err := s.Records(f.ctx(t), []string{name})
	if err != nil {
		t.Fatal(err)
	}
	r, err := cache.OpenRecord(found[name])
	if err != nil || r.Writer != id.Public() {
		t.Fatalf("record %+v (%v), expected one that %s has signed", r, err, id.Public())
	}
	for key, want := range map[string]bool{id.Public(): true, "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA": false} {
		reader := cache.NewFinder(f.ctx(t), cache.FinderConfig{Shelf: s, Trust: cache.Trust{Writers: []cache.TrustedWriter{{Key: key}}}})
		if _, err := reader.Mount(f.ctx(t), "npm"); (err == nil) != want {
			t.Errorf("who trusts %s: got %v, expected a hit: %t", key, err, want)
		}
	}
}
