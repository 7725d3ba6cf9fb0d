package files

import (
	"path"
	"sync"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// mostWaiting is how much may wait for one writer, bytes. It is room for the small
// files of a folder, so that the writers of other folders get theirs meanwhile.
const mostWaiting = 1 << 20

// packetCost is what a packet takes beside its content, bytes.
const packetCost = 256

// backlog is what waits for one writer.
type backlog struct {
	mu     sync.Mutex
	cond   sync.Cond // chunks or over changed
	chunks []chunk
	bytes  int // of chunks
	inHand int // bytes that the writer has taken
	over   bool
}

func newBacklog() *backlog {
	b := &backlog{}
	b.cond.L = &b.mu
	return b
}

// push adds a chunk once there is room.
func (b *backlog) push(c chunk) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.bytes >= mostWaiting && !b.over {
		b.cond.Wait()
	}
	b.chunks = append(b.chunks, c)
	b.bytes += len(c.packet.GetData()) + packetCost
	b.cond.Broadcast()
}

// take returns all that waits, in order, in a slice that may be used up to the
// next call, which gives spare back. At the end it returns nothing.
func (b *backlog) take(spare []chunk) []chunk {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.inHand = 0
	for len(b.chunks) == 0 && !b.over {
		b.cond.Wait()
	}
	if b.over {
		return nil
	}
	clear(spare)
	taken := b.chunks
	b.inHand = b.bytes
	b.chunks, b.bytes = spare[:0], 0
	b.cond.Broadcast()
	return taken
}

// load is how much the writer has to do, bytes.
func (b *backlog) load() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes + b.inHand
}

// end lets everybody leave who waits.
func (b *backlog) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	b.cond.Broadcast()
}

// wanted is a file that was asked for and has not ended.
type wanted struct {
	stat   *fsutil.Stat
	writer *backlog // who writes it; nil before its first chunk
}

// shifts says who writes what. Making a file takes its folder's lock, and most of
// the time that a small file takes, so a folder's files go to one writer, as long
// as it keeps up.
type shifts struct {
	writers [writers]*backlog
	folders map[string]*backlog // of the last small files
	turn    int
}

func newShifts() *shifts {
	s := &shifts{folders: map[string]*backlog{}}
	for i := range s.writers {
		s.writers[i] = newBacklog()
	}
	return s
}

// of returns the writer of a new file.
func (s *shifts) of(st *fsutil.Stat) *backlog {
	folder := path.Dir(st.GetPath())
	small := st.GetSize() < mostWaiting/16
	if w := s.folders[folder]; small && w != nil && w.load() < mostWaiting/2 {
		return w
	}
	s.turn++
	free := s.writers[s.turn%writers]
	least := free.load()
	for _, w := range s.writers {
		if n := w.load(); n < least {
			free, least = w, n
		}
	}
	if small {
		if len(s.folders) > 2*writers {
			clear(s.folders)
		}
		s.folders[folder] = free
	}
	return free
}

func (s *shifts) end() {
	for _, w := range s.writers {
		w.end()
	}
}
