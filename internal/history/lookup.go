package history

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/internal/store"
)

// ErrAmbiguous says that a key that is cut short may be several.
var ErrAmbiguous = errors.New("ambiguous")

// unknownKeyError is a key that is no step's; it is [ErrNotFound].
type unknownKeyError string

func (e unknownKeyError) Error() string {
	return fmt.Sprintf("the cache knows no key %q: see kiln cache ls", string(e))
}

func (e unknownKeyError) Is(target error) bool { return target == ErrNotFound }

// Known is a step that the ledger knows, with what is kept of its result.
type Known struct {
	store.Step
	Key     string
	Kept    bool           // there is a result
	Outputs []store.Output // of the result
}

// List returns the steps whose names have a word in them, those made last first.
func (l *Ledger) List(word string) (all []Known, err error) {
	err = l.db.Steps(func(key string, s store.Step) error {
		if s.Made && strings.Contains(strings.ToLower(s.Name), strings.ToLower(word)) {
			all = append(all, Known{Step: s, Key: key})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list steps: %w", err)
	}
	for i := range all {
		l.complete(&all[i])
	}
	slices.SortFunc(all, func(a, b Known) int { return b.MadeAt.Compare(a.MadeAt) })
	return all, nil
}

// Find returns the step whose key begins with prefix. There is none for
// [ErrNotFound], and more than one for [ErrAmbiguous].
func (l *Ledger) Find(prefix string) (found Known, err error) {
	if s, ok := l.db.Step(prefix); ok {
		found = Known{Step: s, Key: prefix}
		l.complete(&found)
		return found, nil
	}
	err = l.db.Steps(func(key string, s store.Step) error {
		switch {
		case prefix == "" || !strings.HasPrefix(key, prefix):
			return nil
		case found.Key != "":
			return fmt.Errorf("%s may be the key %.16s or %.16s: %w", prefix, found.Key, key, ErrAmbiguous)
		}
		found = Known{Step: s, Key: key}
		return nil
	})
	if err != nil {
		return Known{}, err
	}
	if found.Key == "" {
		return Known{}, unknownKeyError(prefix)
	}
	l.complete(&found)
	return found, nil
}

// complete adds what is kept of the result.
func (l *Ledger) complete(k *Known) {
	r, ok := l.db.ResultOf(k.Key)
	k.Kept, k.Outputs = ok, r.Outputs
	if ok {
		k.Size = l.Size(k.Key)
	}
}

// LayerSize is what a layer's own files take, in bytes.
func (l *Ledger) LayerSize(id string) int64 {
	r, err := l.db.Layer(id)
	if err != nil {
		return 0
	}
	return r.Size
}
