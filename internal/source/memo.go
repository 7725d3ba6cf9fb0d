package source

import "sync"

// Memo remembers small things across builds and restarts, such as what a tag
// meant or how a file can be revalidated. To lose one costs time and no more.
type Memo interface {
	// Memo returns nil if nothing is remembered under key.
	Memo(key string) ([]byte, error)
	SetMemo(key string, value []byte) error
}

// MemoryMemo is a Memo that lasts as long as the process.
type MemoryMemo struct{ m sync.Map }

// Memo returns what was set last.
func (m *MemoryMemo) Memo(key string) ([]byte, error) {
	v, _ := m.m.Load(key)
	b, _ := v.([]byte)
	return b, nil
}

// SetMemo remembers value.
func (m *MemoryMemo) SetMemo(key string, value []byte) error {
	m.m.Store(key, append([]byte(nil), value...))
	return nil
}
