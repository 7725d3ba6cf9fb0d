package source

import "sync"

// Memo remembers small things across builds and restarts, such as what a tag
// meant or how a file can be revalidated; [store.Store] does. To lose one costs
// time and no more.
//
// [store.Store]: github.com/kiln-build/kiln/internal/store.Store
type Memo interface {
	// Value returns what was put under key. Namespaces are apart.
	Value(namespace, key string) ([]byte, bool)
	// PutValue remembers value, which must not be changed any more.
	PutValue(namespace, key string, value []byte) error
}

// MemoryMemo is a Memo that lasts as long as the process.
type MemoryMemo struct{ m sync.Map }

// Value returns what was put last.
func (m *MemoryMemo) Value(namespace, key string) ([]byte, bool) {
	v, ok := m.m.Load([2]string{namespace, key})
	b, _ := v.([]byte)
	return b, ok
}

// PutValue remembers value.
func (m *MemoryMemo) PutValue(namespace, key string, value []byte) error {
	m.m.Store([2]string{namespace, key}, value)
	return nil
}
