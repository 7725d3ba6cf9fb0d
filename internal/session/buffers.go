package session

import (
	"sort"
	"sync"

	"google.golang.org/grpc/mem"
)

// buffers is a pool of buffers of a few sizes. gRPC's own pool has few sizes and
// clears a buffer whenever it is used again: a message of a file of 4 KiB takes
// 16 KiB there, and one of 256 KiB the clearing of 1 MiB. Nothing here reads of
// a buffer what it has not written.
type buffers struct {
	sizes []int       // ascending
	pools []sync.Pool // of *[]byte with at least the capacity of sizes
}

// newBuffers returns an empty pool of the sizes that are in use: what small
// messages take, what a small file of 4 KiB takes, pages of HTTP/2, and the
// chunks of BuildKit's and Kiln's clients.
func newBuffers() *buffers {
	const head = 1 << 10 // room for what goes before content
	sizes := []int{2 << 10, 3 << 10, 4<<10 + head, 8<<10 + head, 16 << 10, smallChunk + head, 64 << 10, 128 << 10, LargeChunk + head, maxWrite/2 + head, maxWrite + head}
	return &buffers{sizes, make([]sync.Pool, len(sizes))}
}

// smallChunk is the most content that BuildKit's clients put into a message, bytes.
const smallChunk = 32 << 10

// Get returns a buffer of a length, whose content is anything.
func (b *buffers) Get(length int) *[]byte {
	i := sort.SearchInts(b.sizes, length)
	if i == len(b.sizes) {
		big := make([]byte, length)
		return &big
	}
	if p, ok := b.pools[i].Get().(*[]byte); ok {
		*p = (*p)[:length]
		return p
	}
	p := make([]byte, length, b.sizes[i])
	return &p
}

// Put takes a buffer back. One that is too large for all is left to the
// garbage collector, as is one that is not of this pool.
func (b *buffers) Put(p *[]byte) {
	i := sort.SearchInts(b.sizes, cap(*p))
	if i < len(b.sizes) && b.sizes[i] == cap(*p) {
		b.pools[i].Put(p)
	}
}

var _ mem.BufferPool = (*buffers)(nil)
