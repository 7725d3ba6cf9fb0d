package session_test

import (
	"bytes"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/session"
)

// TestHeld encodes messages that tell when they are sent: once, when all who hold
// their bytes have let go.
func TestHeld(t *testing.T) {
	c := session.Codec()
	for name, m := range map[string]proto.Message{
		"nothing":    &gateway.ReadFileResponse{},
		"small file": &gateway.ReadFileResponse{Data: []byte("text")},
		"large file": &gateway.ReadFileResponse{Data: bytes.Repeat([]byte("text"), 1<<20)},
		"small":      &gateway.ResolveImageConfigResponse{Ref: "ref"},
		"large":      &gateway.ResolveImageConfigResponse{Ref: strings.Repeat("ref", 1<<20)},
	} {
		var sent atomic.Int32
		data, err := c.Marshal(&session.Held{Message: m, Sent: func() { sent.Add(1) }})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want, err := proto.Marshal(m); err != nil || !bytes.Equal(data.Materialize(), want) {
			t.Errorf("%s is not as protobuf writes it (%v)", name, err)
		}
		data.Ref()
		data.Free()
		if n := sent.Load(); data.Len() > 1<<10 && n != 0 {
			t.Errorf("%s was said to be sent %d times while its bytes are held", name, n)
		}
		data.Free()
		if n := sent.Load(); n != 1 {
			t.Errorf("%s was said to be sent %d times", name, n)
		}
	}
}

// TestHeldAndDropped has somebody forget to let go of a message.
func TestHeldAndDropped(t *testing.T) {
	sent := make(chan struct{})
	func() {
		m := &gateway.ReadFileResponse{Data: make([]byte, 1<<20)}
		if _, err := session.Codec().Marshal(&session.Held{Message: m, Sent: func() { close(sent) }}); err != nil {
			t.Fatal(err)
		}
	}()
	for end := time.After(time.Minute); ; {
		runtime.GC()
		select {
		case <-sent:
			return
		case <-time.After(time.Millisecond):
		case <-end:
			t.Fatal("its bytes are garbage and it was never said to be sent")
		}
	}
}
