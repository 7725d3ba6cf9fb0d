package cache

import (
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// This file is what an Uploader writes of the contents that steps have read.

// content writes a content digest. One that says something else stays: who has
// written first is right, as with results, unless it is of another run than the
// result that is there. The result is written, too, if so it is said.
func (u *Uploader) content(in solver.Ingredient, withResult bool) error {
	if known, err := u.known(ContentSubject(in)); err != nil || known {
		return err
	}
	k, r, err := u.usable(ContentSubject(in))
	if err != nil {
		return err
	}
	of, err := u.chainOf(in, withResult)
	if err != nil {
		return err
	}
	if r != nil && r.Of != of && of != "" {
		_, result, err := u.usable(ResultSubject(in.Key))
		if err != nil {
			return err
		}
		if result == nil || result.chain(in.Index) != of {
			return nil // it may come
		}
	} else if r != nil {
		u.c.Memory.add(u.place, r.Subject)
		return nil
	}
	return u.put(Record{Subject: ContentSubject(in), Content: in.Content, Of: of}, nil, k)
}

// chainOf is the chain id of the result whose content an ingredient is, or "" where
// nobody can tell, or would have to compress layers that are not handed over.
func (u *Uploader) chainOf(in solver.Ingredient, compress bool) (digest.Digest, error) {
	if chain, ok := strings.CutPrefix(in.Of, layer.ChainName); ok || in.Of == "" {
		return digest.Digest(chain), nil
	}
	ref, err := u.c.Layers.Get(u.ctx, in.Of)
	if err != nil || !Portable(ref) {
		return "", nil //nolint:nilerr // it is not kept any more
	}
	if !compress {
		return ref.Chain(), nil
	}
	blobs, err := u.c.Layers.Blobs(u.ctx, ref, u.c.Variant)
	if err != nil {
		return "", &lostError{fmt.Errorf("make layers for the cache: %w", err)}
	}
	var ids []digest.Digest
	for _, b := range blobs {
		ids = append(ids, b.DiffID)
	}
	return identity.ChainID(ids), nil
}
