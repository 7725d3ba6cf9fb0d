package provenance

import (
	"encoding/json"
	"fmt"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/llb"
)

// BuildConfig is a graph as provenance tells it.
type BuildConfig struct {
	Definition    []BuildStep              `json:"llbDefinition,omitempty"`
	DigestMapping map[digest.Digest]string `json:"digestMapping,omitempty"`
}

// BuildStep is a vertex of a graph.
type BuildStep struct {
	ID     string          `json:"id,omitempty"`
	Op     json.RawMessage `json:"op,omitempty"`     // an Op message without inputs, see llb.Vertex.PortableJSON
	Inputs []string        `json:"inputs,omitempty"` // "step3:0" is the first output of step3
}

// noOp is the Op message that ends a definition: it only names the result.
const noOp = `{"Op":{}}`

// newBuildConfig describes a graph. index has the numbers of the steps.
func newBuildConfig(g *llb.Graph) (config *BuildConfig, index map[digest.Digest]int, err error) {
	if g == nil || g.Root.Vertex == nil {
		return nil, nil, nil
	}
	index = map[digest.Digest]int{}
	config = &BuildConfig{DigestMapping: map[digest.Digest]string{}}
	add := func(d digest.Digest, op json.RawMessage, inputs []llb.Edge) {
		i := len(config.Definition)
		step := BuildStep{ID: stepID(i), Op: op, Inputs: make([]string, len(inputs))}
		for n, in := range inputs {
			step.Inputs[n] = fmt.Sprintf("%s:%d", stepID(index[in.Vertex.Digest()]), in.Index)
		}
		config.Definition = append(config.Definition, step)
		index[d] = i
		config.DigestMapping[d] = step.ID
	}
	for _, v := range g.Vertices() {
		op, err := v.PortableJSON(redact)
		if err != nil {
			return nil, nil, fmt.Errorf("describe build: %w", err)
		}
		add(v.Digest(), op, v.Inputs)
	}
	wire, err := (&llb.Graph{Root: g.Root}).Marshal()
	if err != nil {
		return nil, nil, fmt.Errorf("describe build: %w", err)
	}
	add(digest.FromBytes(wire.Def[len(wire.Def)-1]), json.RawMessage(noOp), []llb.Edge{g.Root})
	return config, index, nil
}

func stepID(i int) string { return fmt.Sprintf("step%d", i) }

// Source tells where the steps were written.
type Source struct {
	Locations map[string]Locations `json:"locations,omitempty"` // by step
	Infos     []SourceInfo         `json:"infos,omitempty"`
}

// Locations are the places where a step was written.
type Locations struct {
	Locations []Location `json:"locations,omitempty"`
}

// Location is a stretch of a file of Source.Infos.
type Location struct {
	SourceIndex int     `json:"sourceIndex,omitempty"`
	Ranges      []Range `json:"ranges,omitempty"`
}

// Range is a stretch of text.
type Range struct {
	Start Position `json:"start"`
	End   Position `json:"end"`
}

// Position counts lines from 1, characters from 0.
type Position struct {
	Line      int `json:"line,omitempty"`
	Character int `json:"character,omitempty"`
}

// SourceInfo is a file that steps were written in.
type SourceInfo struct {
	Filename string `json:"filename,omitempty"`
	Language string `json:"language,omitempty"`
	Data     []byte `json:"data,omitempty"`
	BuildConfig
}

// newSource describes where the steps of a graph were written; nil if unknown.
func newSource(g *llb.Graph, index map[digest.Digest]int) (*Source, error) {
	if len(g.Sources.Files) == 0 {
		return nil, nil
	}
	out := &Source{Locations: map[string]Locations{}}
	for _, f := range g.Sources.Files {
		info := SourceInfo{Filename: f.Name, Language: f.Language, Data: f.Data}
		from, _, err := newBuildConfig(f.From)
		if err != nil {
			return nil, err
		}
		if from != nil {
			info.BuildConfig = *from
		}
		out.Infos = append(out.Infos, info)
	}
	for vertex, places := range g.Sources.Locations {
		i, ok := index[vertex]
		if !ok {
			continue
		}
		var ls Locations
		for _, p := range places {
			l := Location{SourceIndex: p.File}
			for _, r := range p.Ranges {
				l.Ranges = append(l.Ranges, Range{
					Start: Position{r.Start.Line, r.Start.Character}, End: Position{r.End.Line, r.End.Character},
				})
			}
			ls.Locations = append(ls.Locations, l)
		}
		out.Locations[stepID(i)] = ls
	}
	return out, nil
}
