package local

import (
	"context"
	"encoding/json"
	"time"

	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/files"
)

// handedLife is how long a directory can be had after its client has left: a
// program that hands a state from one of its builds to another may end the first
// before the second has come to it.
const handedLife = time.Minute

// handed are the directories that clients have sent lately, by what names them.
// A state can be handed to a build whose client does not have the directory; what
// then counts as the right to it is "local.unique", which is random, and which
// nobody knows but those who have the state. Only ids of layers are kept: nothing
// is held back from being pruned.
type handed map[string]string

// handedKey names a directory; "" if it can not be handed over.
func (r *request) handedKey() string {
	if r.unique == "" {
		return ""
	}
	key, err := json.Marshal([]any{r.name, r.unique, r.Include, r.Exclude, r.FollowPaths, r.metadataOnly, r.exceptions})
	if err != nil { // strings alone: it can not be
		return ""
	}
	return string(key)
}

// handOver notes what a client has sent.
func (s *Source) handOver(r *request, c *session.Caller, layer string) {
	key := r.handedKey()
	if key == "" || layer == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.handed == nil {
		s.handed = handed{}
	}
	_, known := s.handed[key]
	s.handed[key] = layer
	if known {
		return
	}
	context.AfterFunc(c.Context(), func() {
		time.AfterFunc(handedLife, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.handed, key)
		})
	})
}

// takeOver returns the layer of a directory that another client has sent, if
// this one shares none at all; "" if there is none.
func (s *Source) takeOver(r *request, c *session.Caller) string {
	key := r.handedKey()
	if key == "" || c.Supports(files.MethodDiffCopy) {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.handed[key]
}
