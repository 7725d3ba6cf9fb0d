package cache

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Trust is a reader's policy: whose records count, and where builds may write.
// The zero value takes the records of everybody who can write to the place, as
// BuildKit does; a signature that is there must hold in any case.
type Trust struct {
	// Writers are those whose records count; none is everybody.
	Writers []TrustedWriter
	// Unsigned lets records without a writer count, and caches in BuildKit's
	// format, beside those of Writers.
	Unsigned bool
	// ReadScopes and WriteScopes are patterns ("pr-*") of the scopes that builds
	// may read and write; nil is all.
	ReadScopes, WriteScopes []string
}

// TrustedWriter is somebody whose records count.
type TrustedWriter struct {
	Name   string   // for people
	Key    string   // public, see [Identity.Public]
	Scopes []string // patterns of the scopes that it may write; nil is all
}

// Check finds keys and patterns of the policy that are malformed.
func (t Trust) Check() error {
	for _, w := range t.Writers {
		if _, err := parsePublic(w.Key); err != nil {
			return fmt.Errorf("trusted writer %q: %w", w.Name, err)
		}
		if err := checkPatterns(w.Scopes); err != nil {
			return fmt.Errorf("trusted writer %q: %w", w.Name, err)
		}
	}
	return errors.Join(checkPatterns(t.ReadScopes), checkPatterns(t.WriteScopes))
}

func checkPatterns(patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("pattern of scopes %q: expected names with * and ?", p)
		}
	}
	return nil
}

// Signed tells whether only what is signed counts.
func (t Trust) Signed() bool { return len(t.Writers) > 0 && !t.Unsigned }

// Reads tells whether builds may read a scope.
func (t Trust) Reads(scope string) bool { return t.ReadScopes == nil || matches(t.ReadScopes, scope) }

// Writes tells whether builds may write a scope.
func (t Trust) Writes(scope string) bool {
	return t.WriteScopes == nil || matches(t.WriteScopes, scope)
}

func matches(patterns []string, scope string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, scope)
		return ok && err == nil
	})
}

// accepts tells why a record, whose signature holds, does not count.
func (t Trust) accepts(r *Record) error { return t.acceptsFrom(r.Writer, r.Scope) }

// acceptsFrom is the same for whatever a writer, "" is nobody, wrote in a scope.
func (t Trust) acceptsFrom(writer, scope string) error {
	if len(t.Writers) == 0 {
		return nil
	}
	if writer == "" {
		if t.Unsigned {
			return nil
		}
		return errors.New("record has no signature, which the policy of trust asks for")
	}
	for _, w := range t.Writers {
		if w.Key == writer && (w.Scopes == nil || matches(w.Scopes, scope)) {
			return nil
		}
	}
	return fmt.Errorf("record was written by %s, whom the policy of trust does not let write scope %q", writer, scope)
}

// writersOf are the public keys of those whose records of a scope count because the
// policy names them, in its order; none if it names nobody.
func (t Trust) writersOf(scope string) (keys []string) {
	for _, w := range t.Writers {
		if w.Key != "" && (w.Scopes == nil || matches(w.Scopes, scope)) {
			keys = append(keys, w.Key)
		}
	}
	return keys
}

// with is the policy under which a writer's own records count as well.
func (t Trust) with(id *Identity) Trust {
	if len(t.Writers) > 0 && id != nil {
		t.Writers = append(slices.Clone(t.Writers), TrustedWriter{Name: "this daemon", Key: id.Public()})
	}
	return t
}

// narrowed is the policy with only those of its writers that a user names, or
// just these where it has none.
func (t Trust) narrowed(keys []string) Trust {
	if len(keys) == 0 {
		return t
	}
	var writers []TrustedWriter
	for _, key := range keys {
		if len(t.Writers) == 0 {
			writers = append(writers, TrustedWriter{Name: key, Key: key})
		}
		for _, w := range t.Writers {
			if w.Key == key || w.Name == key {
				writers = append(writers, w)
			}
		}
	}
	if writers == nil { // nobody is left, which must not mean everybody
		writers = []TrustedWriter{{Name: "nobody"}}
	}
	t.Writers, t.Unsigned = writers, false
	return t
}

// Attributes of caches by key.
const (
	attrTrust = "trust"
	attrScope = "scope"
)

// Formats that a cache is written in. The default is records, and an index for
// BuildKit.
const (
	FormatV0   = "v0"   // BuildKit's alone
	FormatKiln = "kiln" // records alone
)

// Narrow is the policy for a cache that attrs name. Their "trust" has the keys
// or names of those whose records count, with spaces or semicolons between; a
// user can narrow the daemon's policy and not widen it.
func (t Trust) Narrow(attrs map[string]string) (Trust, error) {
	keys := strings.FieldsFunc(attrs[attrTrust], func(r rune) bool { return r == ' ' || r == ';' || r == ',' })
	n := t.narrowed(keys)
	if len(t.Writers) == 0 {
		if err := n.Check(); err != nil {
			return t, fmt.Errorf("cache option trust: %w", err)
		}
	}
	return n, nil
}

// Scope is what records of a cache that attrs name are shared by.
func Scope(attrs map[string]string) string { return attrs[attrScope] }

// SharesIndex tells whether the index in BuildKit's format belongs to the scope
// that attrs name. A place has one for all, except that of GitHub Actions.
func SharesIndex(kind string, attrs map[string]string) bool {
	return attrs[attrScope] == "" || kind == "gha"
}
