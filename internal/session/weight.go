package session

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// A message may need far more room decoded than on the wire: an empty one within
// another has two bytes there, and a hundred or more here. What is bounded by its bytes
// on the wire is weighed before it is decoded, lest a few of them fill the memory.
const (
	perMessage = 128 // bytes that a message within another takes at least, about
	perText    = 24  // bytes that a text takes beside its own
	mostGrowth = 16  // times its bytes on the wire that a message may take
	freeGrowth = 1 << 20
	mostDepth  = 10_000 // of messages within each other; the decoder refuses more
)

// checkWeight refuses a message that takes too much room decoded.
func checkWeight(raw []byte, d protoreflect.MessageDescriptor) error {
	room := freeGrowth + mostGrowth*len(raw)
	if weigh(raw, d, &room, 0); room < 0 {
		return fmt.Errorf("message of %d bytes has too many small parts", len(raw))
	}
	return nil
}

// weigh takes from room what the parts of a message need. What is no message is left
// to the decoder to refuse.
func weigh(raw []byte, d protoreflect.MessageDescriptor, room *int, depth int) {
	if depth > mostDepth {
		return
	}
	fields := d.Fields()
	for len(raw) > 0 && *room >= 0 {
		num, typ, n := protowire.ConsumeTag(raw)
		if n < 0 {
			return
		}
		raw = raw[n:]
		if typ == protowire.BytesType {
			content, _ := protowire.ConsumeBytes(raw)
			*room -= perText
			if f := fields.ByNumber(num); f != nil && f.Message() != nil {
				*room -= perMessage
				weigh(content, f.Message(), room, depth+1)
			}
		}
		if n = protowire.ConsumeFieldValue(num, typ, raw); n < 0 {
			return
		}
		raw = raw[n:]
	}
}
