package session

import (
	"runtime"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/gateway"
)

// Held is a message that says when its bytes are needed no more. [Codec] encodes
// it as the message.
type Held struct {
	Message proto.Message
	// Sent is called once, from any goroutine: when the bytes are with the peer or
	// will never be. For a call that is cancelled just when it is answered, that is
	// when they have become garbage.
	Sent func()
}

// hold encodes a message, and calls its Sent when gRPC lets go of the bytes.
func (c codec) hold(h *Held) (mem.BufferSlice, error) {
	sent := sync.OnceFunc(h.Sent)
	if file, ok := h.Message.(*gateway.ReadFileResponse); ok && !mem.IsBelowBufferPoolingThreshold(len(file.Data)) {
		head := protowire.AppendTag(nil, 1, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(len(file.Data)))
		return mem.BufferSlice{mem.SliceBuffer(head), mem.NewBuffer(&file.Data, newHold(mem.NopBufferPool{}, sent))}, nil
	}
	size := proto.Size(h.Message)
	if mem.IsBelowBufferPoolingThreshold(size) {
		sent()
		return c.CodecV2.Marshal(h.Message)
	}
	return encodeInto(newHold(c.pool, sent), h.Message, size)
}

// hold is the pool of one buffer: it is told when the buffer is free.
type hold struct {
	mem.BufferPool
	sent func()
}

// newHold returns a pool that calls sent, at the latest when nobody can put
// anything into it any more: gRPC drops what it is given for a call that has ended.
func newHold(pool mem.BufferPool, sent func()) *hold {
	h := &hold{pool, sent}
	runtime.AddCleanup(h, func(sent func()) { sent() }, sent)
	return h
}

// Put takes the buffer back.
func (h *hold) Put(buf *[]byte) {
	h.BufferPool.Put(buf)
	h.sent()
}
