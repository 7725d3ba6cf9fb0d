package session

import (
	"google.golang.org/grpc/mem"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// Packets takes packets of files from a stream. The buffers that their content
// lies in are used again, so that a large transfer needs no more memory than a
// small one.
type Packets struct{ buffers mem.BufferPool }

// NewPackets returns a taker with no buffers yet.
func NewPackets() *Packets { return &Packets{newBuffers()} }

// Packet is a packet whose content may lie in a buffer that is used again:
// whoever has done with the content calls Free.
type Packet struct {
	fsutil.Packet
	pool   mem.BufferPool
	buffer mem.Buffer // nil if the content is nobody else's
}

// Recv takes the next packet of a stream, which must hold packets of files.
func (p *Packets) Recv(stream interface{ RecvMsg(m any) error }) (*Packet, error) {
	m := &Packet{pool: p.buffers}
	if err := stream.RecvMsg(m); err != nil {
		return nil, err
	}
	return m, nil
}

// Free gives the content's buffer back: Data must not be used any more.
func (p *Packet) Free() {
	if p.buffer != nil {
		p.buffer.Free()
		p.buffer, p.Data = nil, nil
	}
}

// unmarshal decodes a packet that came in pieces.
func (p *Packet) unmarshal(data mem.BufferSlice) error {
	buffer := data.MaterializeToBuffer(p.pool)
	err := unmarshalPacket(buffer.ReadOnlyData(), &p.Packet)
	if err != nil || len(p.Data) == 0 {
		buffer.Free()
		return err
	}
	p.buffer = buffer
	return nil
}
