package session_test

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/llb/pb"
)

// A message that takes far more room than its bytes is refused before it takes it.
func TestHeavyMessages(t *testing.T) {
	for name, part := range map[string][]byte{
		"empty mounts":    {0x12, 0},             // NewContainerRequest.Mounts
		"empty hosts":     {0x32, 0},             // .extraHosts
		"nested nothings": {0x12, 3, 0xa2, 1, 0}, // .Mounts, each with a .CacheOpt
	} {
		raw := bytes.Repeat(part, 4<<20/len(part))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		err := session.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, &gateway.NewContainerRequest{})
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; err == nil || took > 8<<20 {
			t.Errorf("%s: %d bytes of them took %d, error %v", name, len(raw), took, err)
		}
	}
}

// Messages in each other, as deep as a message is long, harm nobody.
func TestDeepMessage(t *testing.T) {
	raw := make([]byte, 8<<20)
	at := len(raw)
	for at > 100 { // a definition in a file's information, that in a source, that in a definition
		for _, tag := range []byte{0x1a, 0x12, 0x1a} {
			head := protowire.AppendVarint([]byte{tag}, uint64(len(raw)-at))
			at -= copy(raw[at-len(head):], head)
		}
	}
	if err := session.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw[at:])}, &pb.Definition{}); err == nil {
		t.Error("a message of a million in each other was decoded")
	}
}

// The graph of a large build, with all that is told of each step, is taken.
func TestLargeGraphIsLight(t *testing.T) {
	def := &pb.Definition{Metadata: map[string]*pb.OpMetadata{}, Source: &pb.Source{Locations: map[string]*pb.Locations{}}}
	for i := range 30_000 {
		digest := fmt.Sprintf("sha256:%064d", i)
		def.Def = append(def.Def, bytes.Repeat([]byte("o"), 60))
		def.Metadata[digest] = &pb.OpMetadata{
			Description: map[string]string{"llb.customname": "RUN x"}, Caps: map[string]bool{"exec.meta.base": true, "exec.mount.bind": true, "constraints": true, "platform": true},
		}
		place := &pb.Position{Line: 1, Character: 2}
		def.Source.Locations[digest] = &pb.Locations{Locations: []*pb.Location{{Ranges: []*pb.Range{{Start: place, End: place}, {Start: place, End: place}}}}}
	}
	raw, err := proto.Marshal(&gateway.SolveRequest{Definition: def})
	if err != nil {
		t.Fatal(err)
	}
	if err := session.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, &gateway.SolveRequest{}); err != nil {
		t.Error(err)
	}
}
