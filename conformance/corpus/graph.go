package corpus

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protojson"
)

type pbDefinition = pb.Definition

// Graph is LLB, each operation as a text that says its inputs by their texts'
// digests: equal graphs have equal texts.
type Graph []string

// newGraph reads a definition. What names the client's session is left out.
func newGraph(def *pb.Definition) (Graph, error) {
	ops := map[string]*pb.Op{}
	for _, data := range def.Def {
		op := &pb.Op{}
		if err := op.UnmarshalVT(data); err != nil {
			return nil, fmt.Errorf("read an operation: %w", err)
		}
		ops[digest.FromBytes(data).String()] = op
	}
	// A tmpfs has BuildKit transfer the whole context, Kiln what is used of it.
	for _, op := range ops {
		for _, m := range op.GetExec().GetMounts() {
			if m.MountType == pb.MountType_TMPFS {
				forgetPaths(ops)
			}
		}
	}
	g := grapher{ops, map[string]string{}, map[string]bool{}}
	for d := range ops {
		if _, err := g.text(d); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(g.texts)), nil
}

func forgetPaths(ops map[string]*pb.Op) {
	for _, op := range ops {
		if s := op.GetSource(); s != nil {
			delete(s.Attrs, pb.AttrFollowPaths)
		}
	}
}

type grapher struct {
	ops   map[string]*pb.Op
	names map[string]string // digest to that of its text
	texts map[string]bool
}

func (g grapher) text(d string) (string, error) {
	if name, ok := g.names[d]; ok {
		return name, nil
	}
	op := g.ops[d]
	if op == nil {
		return "", fmt.Errorf("operation %s is not part of the definition", d)
	}
	for _, in := range op.Inputs {
		name, err := g.text(in.Digest)
		if err != nil {
			return "", err
		}
		in.Digest = name
	}
	if s := op.GetSource(); s != nil {
		for _, key := range []string{pb.AttrLocalSessionID, pb.AttrLocalUniqueID, pb.AttrOCILayoutSessionID,
			// BuildKit asks ssh servers for their keys while it makes a graph, which
			// in Kiln's frontend opens no connections.
			pb.AttrKnownSSHHosts,
		} {
			delete(s.Attrs, key)
		}
		// What comes by the standard input has an address of its own each time.
		if strings.HasPrefix(s.Identifier, "http://buildkit-session/") {
			s.Identifier = "http://buildkit-session/…"
		}
		// Kiln pins an image by its digest where a context names it, too. That
		// images of FROM are pinned shows in the names of steps.
		if at := strings.Index(s.Identifier, "@sha256:"); strings.HasPrefix(s.Identifier, "docker-image://") && at > 0 {
			s.Identifier = s.Identifier[:at]
		}
	}
	data, err := protojson.MarshalOptions{}.Marshal(op)
	if err != nil {
		return "", err
	}
	// protojson varies its spaces, lest somebody relies on its bytes.
	var compact bytes.Buffer
	if err := json.Compact(&compact, data); err != nil {
		return "", err
	}
	text := compact.String()
	g.names[d] = digest.FromString(text).Encoded()[:8]
	g.texts[g.names[d]+" "+text] = true
	return g.names[d], nil
}
