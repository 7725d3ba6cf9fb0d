package llb

import (
	"encoding/json"
	"fmt"
	"maps"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/llb/pb"
)

// PortableJSON is the vertex's operation in the JSON that BuildKit prints, as
// far as it means the same to everybody: without its inputs, and without the
// attributes that tie a source to one client's session. URLs of sources
// are shown as the function redact leaves them.
func (v *Vertex) PortableJSON(redact func(url string) string) ([]byte, error) {
	raw, err := v.Bytes()
	if err != nil {
		return nil, err
	}
	var op pb.Op
	if err := proto.Unmarshal(raw, &op); err != nil {
		return nil, fmt.Errorf("decode %s: %w", v.Op.Kind(), err)
	}
	op.Inputs = nil
	if src := op.GetSource(); src != nil {
		maps.DeleteFunc(src.Attrs, func(k, _ string) bool { return k == AttrLocalSession || k == AttrLocalUnique || k == AttrOCISession })
		src.Identifier = redact(src.Identifier)
		if full, ok := src.Attrs[AttrGitFullURL]; ok {
			src.Attrs[AttrGitFullURL] = redact(full)
		}
	}
	return json.Marshal(&op)
}
