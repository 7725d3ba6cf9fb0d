package session

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/kiln-build/kiln/internal/api/control"
)

// pieces is a message whose one field, number 1, is content: in the buffers it
// came in, which go back to their pool once they are read. A codec other than
// [Codec] decodes the message in it.
type pieces struct {
	control.BytesMessage
	skip int // bytes before the content
	data mem.BufferSlice
}

// piece is the content in buffer i.
func (m *pieces) piece(i int) []byte {
	if i == 0 {
		return m.data[0].ReadOnlyData()[m.skip:]
	}
	return m.data[i].ReadOnlyData()
}

// unmarshalPieces keeps a message's content in the buffers it came in, unless
// its head is not all in the first one.
func unmarshalPieces(data mem.BufferSlice, m *pieces) error {
	if len(data) == 0 {
		return nil // the empty message
	}
	head := data[0].ReadOnlyData()
	num, typ, n := protowire.ConsumeTag(head)
	if n <= 0 || num != 1 || typ != protowire.BytesType {
		return unmarshalBytes(data, &m.BytesMessage, &m.Data)
	}
	size, k := protowire.ConsumeVarint(head[n:])
	if k <= 0 || size != uint64(data.Len()-n-k) {
		return unmarshalBytes(data, &m.BytesMessage, &m.Data)
	}
	data.Ref() // for who reads it: gRPC lets go of it when this returns
	m.data, m.skip = slices.Clone(data), n+k
	return nil
}

// CopyContent writes to w what the messages of a stream hold, which must have
// one field, number 1, of bytes. It returns at the end of the stream.
func CopyContent(w io.Writer, stream interface{ RecvMsg(m any) error }) error {
	to := bufio.NewWriterSize(w, Buffer)
	for {
		var m pieces
		if err := stream.RecvMsg(&m); errors.Is(err, io.EOF) {
			return to.Flush()
		} else if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		_, err := to.Write(m.GetData())
		for i := range m.data {
			if err == nil {
				_, err = to.Write(m.piece(i))
			}
			m.data[i].Free()
		}
		if err != nil {
			return err
		}
	}
}
