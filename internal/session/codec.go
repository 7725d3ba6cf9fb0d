package session

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/filesync"
	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/api/upload"
)

// Codec is gRPC's codec for protobuf messages, but one that copies the content
// of bulk messages (a session's bytes, file packets) once where gRPC's own does
// it twice, into buffers that fit. Any client or server of such messages may use
// it; what is on the wire is the same.
func Codec() encoding.CodecV2 { return newCodec(newBuffers()) }

func newCodec(pool *buffers) codec { return codec{encoding.GetCodecV2(grpcproto.Name), pool} }

type codec struct {
	encoding.CodecV2
	pool *buffers
}

// Marshal encodes a message, a large one into a buffer that is used again.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	if h, ok := v.(*Held); ok {
		return c.hold(h)
	}
	m, ok := v.(proto.Message)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	size := proto.Size(m)
	if mem.IsBelowBufferPoolingThreshold(size) {
		return c.CodecV2.Marshal(v)
	}
	return encodeInto(c.pool, m, size)
}

// encodeInto encodes a message of a size that was just asked for into a buffer of a pool.
func encodeInto(pool mem.BufferPool, m proto.Message, size int) (mem.BufferSlice, error) {
	buf := pool.Get(size)
	if _, err := (proto.MarshalOptions{UseCachedSize: true}).MarshalAppend((*buf)[:0], m); err != nil {
		pool.Put(buf)
		return nil, err
	}
	return mem.BufferSlice{mem.NewBuffer(buf, pool)}, nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	switch m := v.(type) {
	case *pieces:
		return unmarshalPieces(data, m)
	case *control.BytesMessage:
		return unmarshalBytes(data, m, &m.Data)
	case *filesync.BytesMessage:
		return unmarshalBytes(data, m, &m.Data)
	case *upload.BytesMessage:
		return unmarshalBytes(data, m, &m.Data)
	case *fsutil.Packet:
		return unmarshalPacket(data.Materialize(), m)
	case *Packet:
		return m.unmarshal(data)
	case proto.Message:
		buffer := data.MaterializeToBuffer(c.pool)
		defer buffer.Free()
		raw := buffer.ReadOnlyData()
		if err := checkWeight(raw, m.ProtoReflect().Descriptor()); err != nil {
			return err
		}
		return proto.Unmarshal(raw, m)
	default:
		return c.CodecV2.Unmarshal(data, v)
	}
}

// unmarshalBytes decodes a message whose one field, number 1, is content.
func unmarshalBytes(data mem.BufferSlice, m proto.Message, content *[]byte) error {
	raw := data.Materialize()
	num, typ, n := protowire.ConsumeTag(raw)
	if n > 0 && num == 1 && typ == protowire.BytesType {
		if b, size := protowire.ConsumeBytes(raw[n:]); size > 0 && n+size == len(raw) {
			*content = b
			return nil
		}
	}
	return proto.Unmarshal(raw, m)
}

// unmarshalPacket decodes a packet; its content is a part of raw.
func unmarshalPacket(raw []byte, p *fsutil.Packet) error {
	for rest := raw; len(rest) > 0; {
		num, typ, n := protowire.ConsumeTag(rest)
		if n < 0 {
			return fmt.Errorf("decode packet: %w", protowire.ParseError(n))
		}
		rest = rest[n:]
		switch {
		case num == 1 && typ == protowire.VarintType:
			v, size := protowire.ConsumeVarint(rest)
			p.Type, n = fsutil.Packet_PacketType(v), size
		case num == 2 && typ == protowire.BytesType && p.Stat == nil:
			b, size := protowire.ConsumeBytes(rest)
			if n = size; n > 0 {
				p.Stat = &fsutil.Stat{}
				if err := proto.Unmarshal(b, p.Stat); err != nil {
					return err
				}
			}
		case num == 3 && typ == protowire.VarintType:
			v, size := protowire.ConsumeVarint(rest)
			p.ID, n = uint32(v), size
		case num == 4 && typ == protowire.BytesType:
			p.Data, n = protowire.ConsumeBytes(rest)
		default:
			proto.Reset(p)
			return proto.Unmarshal(raw, p)
		}
		if n < 0 {
			return fmt.Errorf("decode packet: %w", protowire.ParseError(n))
		}
		rest = rest[n:]
	}
	return nil
}
