package session

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/fsutil"
)

func TestBuffersOfAllSizes(t *testing.T) {
	b := newBuffers()
	for _, size := range append([]int{0, 1, maxWrite * 2}, b.sizes...) {
		for _, n := range []int{size, size + 1} {
			p := b.Get(n)
			if len(*p) != n {
				t.Errorf("a buffer of %d bytes has %d", n, len(*p))
			}
			if n > 0 && n <= maxWrite && cap(*p) > 3*n+2<<10 {
				t.Errorf("a buffer of %d bytes takes %d", n, cap(*p))
			}
			b.Put(p)
		}
	}
	odd := make([]byte, 5000)
	b.Put(&odd) // not its own
	if p := b.Get(5001); cap(*p) < 5001 {
		t.Errorf("a strange buffer of %d bytes was given out for 5001", cap(*p))
	}
}

func TestCodecWritesWhatProtobufDoes(t *testing.T) {
	c := Codec()
	r := rand.NewChaCha8([32]byte{})
	for _, size := range []int{0, 1, 900, 1100, 4 << 10, LargeChunk, 3 << 20} {
		data := make([]byte, size)
		if _, err := r.Read(data); err != nil {
			t.Fatal(err)
		}
		for _, m := range []proto.Message{
			&control.BytesMessage{Data: data},
			&fsutil.Packet{Type: fsutil.Packet_PACKET_DATA, ID: 7, Data: data},
		} {
			want, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time in a used buffer
				got, err := c.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(got.Materialize(), want) {
					t.Errorf("%T of %d bytes is not as protobuf writes it", m, size)
				}
				got.Free()
			}
		}
	}
}
