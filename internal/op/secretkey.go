package op

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/kiln-build/kiln/llb"
)

// keyedSecret is a secret whose value is part of a key.
type keyedSecret struct {
	ID   string
	Hash string // by [SecretHash]; "" if no client has it
}

// withSecrets makes the values of secrets that count part of the digest d of
// the run. The values themselves go no further than into a keyed hash.
func (o *execOp) withSecrets(ctx context.Context, d string) (string, error) {
	ids := o.secretIDs()
	if len(ids) == 0 {
		return d, nil
	}
	if o.worker.SecretHash == nil || o.worker.Secrets == nil {
		return "", fmt.Errorf("the value of secret %q cannot be part of the cache key: this daemon has no key to hash it with", ids[0])
	}
	o.secrets = nil
	for _, id := range ids {
		value, err := o.worker.Secrets.Secret(withSessions(ctx), id)
		s := keyedSecret{ID: id}
		switch {
		case err == nil:
			s.Hash = o.worker.SecretHash(id, value)
		case !errors.Is(err, fs.ErrNotExist): // one that is missing fails the run, if it is needed
			return "", fmt.Errorf("hash secret %q for the cache key: %w", id, err)
		}
		o.secrets = append(o.secrets, s)
	}
	return digestJSON(struct {
		Type    string
		Exec    string
		Secrets []keyedSecret
	}{"kiln.exec.secrets.v0", d, o.secrets})
}

// secretIDs are the secrets that the run uses and whose values count, in order.
func (o *execOp) secretIDs() (ids []string) {
	uses := func(id string) {
		if slices.Contains(o.keyed, id) {
			ids = append(ids, id)
		}
	}
	for _, m := range o.op.Mounts {
		if m.Kind == llb.MountSecret && m.Secret != nil {
			uses(m.Secret.ID)
		}
	}
	for _, s := range o.op.SecretEnv {
		uses(s.ID)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
