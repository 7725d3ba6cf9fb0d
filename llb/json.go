package llb

import (
	"encoding/json"
	"fmt"
	"maps"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/llb/pb"
)

// JSON is the graph's definition as JSON, in the form of BuildKit's subrequest
// frontend.convertllb: operations and what is said of them, by digest, and where
// they were written.
func (g *Graph) JSON() ([]byte, error) {
	def, err := g.Marshal()
	if err != nil {
		return nil, err
	}
	var out struct {
		Def      map[digest.Digest]json.RawMessage `json:"def"`
		Metadata map[string]OpMetadata             `json:"metadata"`
		Source   json.RawMessage                   `json:"source"`
	}
	out.Def, out.Metadata = map[digest.Digest]json.RawMessage{}, map[string]OpMetadata{}
	for _, data := range def.Def {
		var op pb.Op
		if err := proto.Unmarshal(data, &op); err != nil {
			return nil, fmt.Errorf("decode operation: %w", err)
		}
		if out.Def[digest.FromBytes(data)], err = protojson.Marshal(&op); err != nil {
			return nil, fmt.Errorf("write operation as JSON: %w", err)
		}
	}
	for d, m := range def.Metadata {
		out.Metadata[d] = NewOpMetadata(m)
	}
	if out.Source, err = protojson.Marshal(def.Source); err != nil {
		return nil, fmt.Errorf("write source places as JSON: %w", err)
	}
	text, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write definition as JSON: %w", err)
	}
	return text, nil
}

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
