package layer

import (
	"strings"

	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// chainLocked returns the chain id that an image of r has, where it is known:
// for layers of images, and for those of which blobs were made that have their
// files as they are. The empty state has the empty id. The caller holds the
// store's mu.
func (r *Ref) chainLocked() (id digest.Digest, known bool) {
	switch {
	case r == nil:
		return "", true
	case r.rec.ChainID != "":
		return r.rec.ChainID, true
	case r.rec.DiffID == "" || r.rec.Loose:
		return "", false
	case r.chained != "":
		return r.chained, true
	}
	below, known := r.parent.chainLocked()
	if !known {
		return "", false
	}
	r.chained = r.rec.DiffID
	if below != "" {
		r.chained = identity.ChainID([]digest.Digest{below, r.rec.DiffID})
	}
	return r.chained, true
}

// nameChainLocked lets images with the chain id of r have its snapshot: a build
// on an image that was built here need not unpack it.
func (s *Store) nameChainLocked(r *Ref) {
	if r.dir == "" || r.rec.Loose {
		return
	}
	if id, known := r.chainLocked(); known && s.chains[id] == "" {
		s.chains[id] = r.rec.Snapshot
	}
}

// Is tells whether id is a name of r: its ID, or "chain:" and the chain id of its
// layers, where that is known.
func (r *Ref) Is(id string) bool {
	if r == nil || id == r.id {
		return r != nil
	}
	chain, ok := strings.CutPrefix(id, ChainName)
	return ok && chain != "" && r.Chain().String() == chain
}

// Chain is the chain id of the layers of r, or "" where it is not known.
func (r *Ref) Chain() digest.Digest {
	if r == nil {
		return ""
	}
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	id, _ := r.chainLocked()
	return id
}

// ChainName begins names of layers by their chain ids.
const ChainName = "chain:"
