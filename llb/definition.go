package llb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/llb/pb"
)

// maxDefinition is how much ReadFrom reads: as much as a daemon takes in one message.
const maxDefinition = 16 << 20

// builder makes the vertices of States for given constraints.
type builder struct {
	ctx         context.Context
	constraints *Constraints
	made        map[*node]*Vertex
	locations   map[*Vertex][]*SourceLocation
}

func newBuilder(ctx context.Context, c *Constraints) *builder {
	return &builder{ctx: ctx, constraints: c, made: map[*node]*Vertex{}, locations: map[*Vertex][]*SourceLocation{}}
}

// node is an operation of a State that is made when it is needed.
type node struct {
	make func(*builder) (*Vertex, error)
	own  *Constraints
}

func (b *builder) vertex(n *node) (*Vertex, error) {
	if v := b.made[n]; v != nil {
		return v, nil
	}
	v, err := n.make(b)
	if err != nil {
		return nil, err
	}
	b.made[n] = v
	if len(n.own.SourceLocations) > 0 {
		b.locations[v] = n.own.SourceLocations
	}
	return v, nil
}

func (b *builder) edge(o Output) (Edge, error) {
	if o == nil {
		return Edge{}, nil
	}
	return o.edge(b)
}

// finish sets what constraints say about v.
func (b *builder) finish(v *Vertex, own *Constraints, platform *ocispecs.Platform) *Vertex {
	v.Platform = platform
	v.Workers = append(slices.Clone(b.constraints.WorkerConstraints), own.WorkerConstraints...)
	meta := b.constraints.Metadata.merged(own.Metadata)
	extra := meta.Caps
	v.Meta = decodeMeta(meta.ToPB())
	v.Meta.Caps = nil
	if len(extra) > 0 {
		caps := v.derivedCaps()
		for id := range extra {
			caps[id] = true
		}
		v.Meta.Caps = caps
	}
	return v
}

// platform is what a step with these constraints runs for.
func (b *builder) platform(own *ocispecs.Platform) *ocispecs.Platform {
	p := own
	if p == nil {
		p = b.constraints.Platform
	}
	if p == nil {
		normal := platforms.Normalize(platforms.DefaultSpec())
		p = &normal
	}
	clone := *p
	return &clone
}

// nodeOutput is a result of a node.
type nodeOutput struct {
	node  *node
	index func(Op) (int, error) // nil for the first
	plat  *ocispecs.Platform
}

func (o *nodeOutput) platform() *ocispecs.Platform { return o.plat }

func (o *nodeOutput) edge(b *builder) (Edge, error) {
	v, err := b.vertex(o.node)
	if err != nil {
		return Edge{}, err
	}
	e := Edge{Vertex: v}
	if o.index != nil {
		e.Index, err = o.index(v.Op)
	}
	return e, err
}

// Graph makes the graph of the State. The constraints hold for all steps that
// do not say otherwise.
func (s State) Graph(ctx context.Context, opts ...ConstraintsOpt) (*Graph, error) {
	return s.graph(ctx, NewConstraints(slices.Concat(s.defaults, opts)...), opts)
}

func (s State) graph(ctx context.Context, c *Constraints, opts []ConstraintsOpt) (*Graph, error) {
	b := newBuilder(ctx, c)
	root, err := b.edge(s.out)
	if err != nil {
		return nil, err
	}
	g := &Graph{Root: root}
	if root.Vertex == nil {
		return g, nil
	}
	if err := b.addSources(g, opts); err != nil {
		return nil, err
	}
	if err := g.Verify(); err != nil {
		return nil, err
	}
	return g, nil
}

// Marshal makes the definition of the State. The constraints hold for all steps
// that do not say otherwise.
func (s State) Marshal(ctx context.Context, opts ...ConstraintsOpt) (*Definition, error) {
	c := NewConstraints(slices.Concat(s.defaults, opts)...)
	g, err := s.graph(ctx, c, opts)
	if err != nil {
		return nil, err
	}
	wire, err := g.Marshal()
	if err != nil {
		return nil, err
	}
	def := &Definition{Constraints: c}
	def.FromPB(wire)
	return def, nil
}

// Definition is an encoded build.
type Definition struct {
	Def         [][]byte
	Metadata    map[digest.Digest]OpMetadata
	Source      *pb.Source
	Constraints *Constraints // what it was marshalled with; not encoded
}

// ToPB returns the wire's form.
func (d *Definition) ToPB() *pb.Definition {
	meta := make(map[string]*pb.OpMetadata, len(d.Metadata))
	for dgst, m := range d.Metadata {
		meta[string(dgst)] = m.ToPB()
	}
	return &pb.Definition{Def: d.Def, Source: d.Source, Metadata: meta}
}

// FromPB sets d to the wire's form.
func (d *Definition) FromPB(w *pb.Definition) {
	d.Def, d.Source = w.GetDef(), w.GetSource()
	d.Metadata = make(map[digest.Digest]OpMetadata, len(w.GetMetadata()))
	for dgst, m := range w.GetMetadata() {
		d.Metadata[digest.Digest(dgst)] = NewOpMetadata(m)
	}
}

// Head returns the digest of the operation that the definition is of, or the
// empty digest if it has none.
func (d *Definition) Head() (digest.Digest, error) {
	if len(d.Def) == 0 {
		return "", nil
	}
	var last pb.Op
	if err := proto.Unmarshal(d.Def[len(d.Def)-1], &last); err != nil {
		return "", fmt.Errorf("decode last operation: %w", err)
	}
	if len(last.Inputs) == 0 {
		return "", nil
	}
	return digest.Digest(last.Inputs[0].GetDigest()), nil
}

// WriteTo writes the encoded definition, as a daemon's client reads it.
func WriteTo(def *Definition, w io.Writer) error {
	data, err := deterministic().Marshal(def.ToPB())
	if err != nil {
		return fmt.Errorf("encode definition: %w", err)
	}
	_, err = w.Write(data)
	return err
}

// ReadFrom reads what WriteTo writes.
func ReadFrom(r io.Reader) (*Definition, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxDefinition+1))
	if err != nil {
		return nil, fmt.Errorf("read definition: %w", err)
	}
	if len(data) > maxDefinition {
		return nil, fmt.Errorf("read definition: longer than %d bytes", maxDefinition)
	}
	var wire pb.Definition
	if err := proto.Unmarshal(data, &wire); err != nil {
		return nil, fmt.Errorf("decode definition: %w", err)
	}
	def := &Definition{}
	def.FromPB(&wire)
	return def, nil
}

// DefinitionOp is a definition used as the beginning of a State.
type DefinitionOp struct{ graph *Graph }

// NewDefinitionOp decodes a definition, to be used as NewState(op.Output()).
func NewDefinitionOp(def *pb.Definition) (*DefinitionOp, error) {
	if def == nil {
		return nil, errors.New("definition is nil")
	}
	g, err := Unmarshal(def)
	if err != nil {
		return nil, err
	}
	return &DefinitionOp{g}, nil
}

// Output returns what the definition is of, nil for the empty file system.
func (d *DefinitionOp) Output() Output {
	if d.graph.Root.Vertex == nil {
		return nil
	}
	return d
}

func (d *DefinitionOp) platform() *ocispecs.Platform { return d.graph.Root.platform() }

func (d *DefinitionOp) edge(b *builder) (Edge, error) {
	if d.graph.Root.Vertex == nil {
		return Edge{}, nil
	}
	maps := make([]*SourceMap, len(d.graph.Sources.Files))
	for i, f := range d.graph.Sources.Files {
		maps[i] = &SourceMap{Filename: f.Name, Language: f.Language, Data: f.Data, from: f.From}
	}
	for _, v := range d.graph.Vertices() {
		var list []*SourceLocation
		for _, l := range d.graph.Sources.Locations[v.Digest()] {
			list = append(list, &SourceLocation{SourceMap: maps[l.File], Ranges: encodeRanges(l.Ranges)})
		}
		if list != nil {
			b.locations[v] = list
		}
	}
	return d.graph.Root, nil
}

// SourceMap is a file that steps were read from.
type SourceMap struct {
	State      *State      // makes the file system that the file is in, or nil
	Definition *Definition // the same, already marshalled, or nil
	Filename   string
	Language   string
	Data       []byte

	mu   sync.Mutex
	from *Graph // memoized, or as it was decoded
}

// SourceLocation is a place in a file that a step was read from.
type SourceLocation struct {
	SourceMap *SourceMap
	Ranges    []*pb.Range
}

// NewSourceMap describes a file; st may be nil.
func NewSourceMap(st *State, filename, lang string, data []byte) *SourceMap {
	return &SourceMap{State: st, Filename: filename, Language: lang, Data: data}
}

// Location says that a step was written at the given ranges.
func (s *SourceMap) Location(r []*pb.Range) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) {
		if s != nil {
			c.SourceLocations = append(slices.Clip(c.SourceLocations), &SourceLocation{SourceMap: s, Ranges: r})
		}
	})
}

func (s *SourceMap) same(t *SourceMap) bool {
	return s == t || s.Filename == t.Filename && s.Language == t.Language && bytes.Equal(s.Data, t.Data)
}

// origin makes the graph of where the file is from. That is done once, for the
// constraints of the first build that asks, as in BuildKit's library.
func (s *SourceMap) origin(ctx context.Context, opts []ConstraintsOpt) (g *Graph, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.from != nil:
		return s.from, nil
	case s.Definition != nil:
		g, err = Unmarshal(s.Definition.ToPB())
	case s.State != nil:
		g, err = s.State.Graph(ctx, opts...)
	}
	if err == nil {
		s.from = g
	}
	return g, err
}

// addSources sets the graph's source files and locations.
func (b *builder) addSources(g *Graph, opts []ConstraintsOpt) error {
	if len(b.locations) == 0 {
		return nil
	}
	var maps []*SourceMap
	g.Sources.Locations = map[digest.Digest][]Location{}
	for _, v := range g.Vertices() {
		for _, l := range b.locations[v] {
			i := slices.IndexFunc(maps, l.SourceMap.same)
			if i < 0 {
				i = len(maps)
				maps = append(maps, l.SourceMap)
			}
			to := Location{File: i, Ranges: decodeRanges(l.Ranges)}
			g.Sources.Locations[v.Digest()] = append(g.Sources.Locations[v.Digest()], to)
		}
	}
	for _, m := range maps {
		from, err := m.origin(b.ctx, opts)
		if err != nil {
			return fmt.Errorf("make definition of source file %q: %w", m.Filename, err)
		}
		g.Sources.Files = append(g.Sources.Files, SourceFile{Name: m.Filename, Language: m.Language, Data: m.Data, From: from})
	}
	return nil
}
