package llb

import (
	_ "crypto/sha256" // lets digest compute SHA-256
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/llb/pb"
)

// maxSourceDepth is how many definitions may lie in each other: a source file
// can come with the definition of where it is from.
const maxSourceDepth = 4

// deterministic is the encoding whose digests name operations (BuildKit's
// client/llb/marshal.go).
func deterministic() proto.MarshalOptions { return proto.MarshalOptions{Deterministic: true} }

// Digest names the vertex: the sha256 of its Op message. It covers inputs and
// platform but not Meta. It is computed once; any number of goroutines may ask.
// A vertex that cannot be encoded, which Verify reports, has the empty digest.
func (v *Vertex) Digest() digest.Digest { return v.encoded().digest }

// Bytes returns the Op message of the vertex. The caller must not change it.
func (v *Vertex) Bytes() ([]byte, error) {
	form := v.encoded()
	return form.bytes, form.err
}

// encoded returns the memoized wire form. Two goroutines may both compute it;
// they get the same.
func (v *Vertex) encoded() *wireForm {
	if form := v.wire.Load(); form != nil {
		return form
	}
	if !slices.ContainsFunc(v.Inputs, func(e Edge) bool { return e.Vertex != nil && e.Vertex.wire.Load() == nil }) {
		v.wire.Store(v.encode())
		return v.wire.Load()
	}
	// Inputs first, and not by recursion, since graphs may be very deep.
	order, acyclic := (&Graph{Root: Edge{Vertex: v}}).walk()
	if !acyclic {
		return &wireForm{err: errors.New("graph has a cycle")}
	}
	for _, w := range order {
		if w.wire.Load() == nil {
			w.wire.Store(w.encode())
		}
	}
	return v.wire.Load()
}

func (v *Vertex) encode() *wireForm {
	op := &pb.Op{Platform: encodePlatform(v.Platform), Constraints: &pb.WorkerConstraints{Filter: v.Workers}}
	for _, in := range v.Inputs {
		w := in.encode()
		if w.Digest == "" {
			return &wireForm{err: errors.New("an input cannot be encoded")}
		}
		op.Inputs = append(op.Inputs, w)
	}
	v.Op.encode(op)
	data, err := deterministic().Marshal(op)
	if err != nil {
		return &wireForm{err: err}
	}
	return &wireForm{bytes: data, digest: digest.FromBytes(data)}
}

func (e Edge) encode() *pb.Input {
	if e.Vertex == nil {
		return &pb.Input{}
	}
	w := &pb.Input{Index: int64(e.Index)}
	if form := e.Vertex.wire.Load(); form != nil {
		w.Digest = string(form.digest)
	}
	return w
}

func encodePlatform(p *ocispecs.Platform) *pb.Platform {
	if p == nil {
		return nil
	}
	return &pb.Platform{
		OS: p.OS, Architecture: p.Architecture, Variant: p.Variant,
		OSVersion: p.OSVersion, OSFeatures: p.OSFeatures,
	}
}

func decodePlatform(p *pb.Platform) *ocispecs.Platform {
	if p == nil {
		return nil
	}
	return &ocispecs.Platform{
		OS: p.OS, Architecture: p.Architecture, Variant: p.Variant,
		OSVersion: p.OSVersion, OSFeatures: p.OSFeatures,
	}
}

// Marshal encodes the graph as a definition, byte for byte as BuildKit's client
// library would. An empty graph has no operations.
func (g *Graph) Marshal() (*pb.Definition, error) {
	if g.Root.Vertex == nil {
		return &pb.Definition{}, nil
	}
	def := &pb.Definition{Metadata: map[string]*pb.OpMetadata{}, Source: &pb.Source{Locations: map[string]*pb.Locations{}}}
	terminal := map[string]bool{CapConstraints: true, CapPlatform: true}
	for _, v := range g.Vertices() {
		data, err := v.Bytes()
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", v.Op.Kind(), err)
		}
		d := string(v.Digest())
		meta := v.encodeMeta()
		if known := def.Metadata[d]; known != nil {
			mergeMeta(known, meta)
			meta = known
		} else {
			def.Def = append(def.Def, data)
			def.Metadata[d] = meta
			def.Source.Locations[d] = &pb.Locations{}
		}
		noteMetaCaps(meta, terminal)
	}
	last, err := deterministic().Marshal(&pb.Op{Inputs: []*pb.Input{g.Root.encode()}})
	if err != nil {
		return nil, fmt.Errorf("encode root: %w", err)
	}
	def.Def = append(def.Def, last)
	def.Metadata[string(digest.FromBytes(last))] = &pb.OpMetadata{Caps: terminal}
	if err := g.Sources.encode(def.Source); err != nil {
		return nil, err
	}
	return def, nil
}

// noteMetaCaps adds the capabilities that metadata takes of a daemon.
func noteMetaCaps(m *pb.OpMetadata, caps map[string]bool) {
	if m.IgnoreCache {
		caps[CapMetaIgnoreCache] = true
	}
	if m.Description != nil {
		caps[CapMetaDescription] = true
	}
	if m.ExportCache != nil {
		caps[CapMetaExportCache] = true
	}
}

// mergeMeta adds what is said of an equal vertex.
func mergeMeta(to, from *pb.OpMetadata) {
	to.IgnoreCache = to.IgnoreCache || from.IgnoreCache
	if len(from.Description) > 0 {
		merged := maps.Clone(from.Description)
		for k, v := range to.Description {
			if _, ok := merged[k]; !ok {
				merged[k] = v
			}
		}
		to.Description = merged
	}
	for id := range from.Caps {
		to.Caps[id] = true
	}
	if from.ExportCache != nil {
		to.ExportCache = from.ExportCache
	}
	if from.ProgressGroup != nil {
		to.ProgressGroup = from.ProgressGroup
	}
	if from.LinuxResources != nil {
		to.LinuxResources = from.LinuxResources
	}
}

func (v *Vertex) encodeMeta() *pb.OpMetadata {
	m := &pb.OpMetadata{IgnoreCache: v.Meta.IgnoreCache, Description: v.Meta.Description, Caps: maps.Clone(v.Caps())}
	if v.Meta.NoExport || v.Meta.ForceExport {
		m.ExportCache = &pb.ExportCache{Value: !v.Meta.NoExport}
	}
	if g := v.Meta.Group; g != nil {
		m.ProgressGroup = &pb.ProgressGroup{Id: g.ID, Name: g.Name, Weak: g.Weak}
	}
	m.LinuxResources = v.Meta.Resources.encode()
	encodeTimeout(m, v.Meta.Timeout)
	return m
}

func (r *LinuxResources) encode() *pb.LinuxResources {
	if r == nil {
		return nil
	}
	return &pb.LinuxResources{
		Memory: r.Memory, MemorySwap: r.MemorySwap, CpuShares: r.CPUShares, CpuPeriod: r.CPUPeriod,
		CpuQuota: r.CPUQuota, CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems,
	}
}

func decodeMeta(m *pb.OpMetadata) Metadata {
	meta := Metadata{IgnoreCache: m.GetIgnoreCache(), Description: m.GetDescription(), Caps: m.GetCaps()}
	if meta.Caps == nil {
		meta.Caps = map[string]bool{}
	}
	if e := m.GetExportCache(); e != nil {
		meta.NoExport, meta.ForceExport = !e.Value, e.Value
	}
	if g := m.GetProgressGroup(); g != nil {
		meta.Group = &Group{ID: g.Id, Name: g.Name, Weak: g.Weak}
	}
	if r := m.GetLinuxResources(); r != nil {
		meta.Resources = &LinuxResources{
			Memory: r.Memory, MemorySwap: r.MemorySwap, CPUShares: r.CpuShares, CPUPeriod: r.CpuPeriod,
			CPUQuota: r.CpuQuota, CpusetCpus: r.CpusetCpus, CpusetMems: r.CpusetMems,
		}
	}
	return meta
}

func (s *SourceIndex) encode(w *pb.Source) error {
	for _, f := range s.Files {
		info := &pb.SourceInfo{Filename: f.Name, Data: f.Data, Language: f.Language}
		if f.From != nil {
			def, err := f.From.Marshal()
			if err != nil {
				return fmt.Errorf("encode where source file %q is from: %w", f.Name, err)
			}
			info.Definition = def
		}
		w.Infos = append(w.Infos, info)
	}
	for d, locations := range s.Locations {
		list := &pb.Locations{}
		for _, l := range locations {
			list.Locations = append(list.Locations, l.encode())
		}
		w.Locations[string(d)] = list
	}
	return nil
}

func (l *Location) encode() *pb.Location {
	return &pb.Location{SourceIndex: int32(l.File), Ranges: encodeRanges(l.Ranges)}
}

func encodeRanges(ranges []Range) (list []*pb.Range) {
	for _, r := range ranges {
		list = append(list, &pb.Range{Start: r.Start.encode(), End: r.End.encode()})
	}
	return list
}

func (p Position) encode() *pb.Position {
	return &pb.Position{Line: int32(p.Line), Character: int32(p.Character)}
}

// Unmarshal decodes and verifies a definition. Its vertices keep the bytes
// received, and so the digest, whatever encoder made them. What the root does
// not need is checked to be well formed and then left out. The graph shares
// memory with def, which must not be changed afterwards.
func Unmarshal(def *pb.Definition) (*Graph, error) {
	return unmarshal(def, maxSourceDepth)
}

func unmarshal(def *pb.Definition, depth int) (*Graph, error) {
	g := &Graph{}
	if len(def.GetDef()) == 0 {
		return g, nil
	}
	if depth == 0 {
		return nil, fmt.Errorf("definition has definitions of source files nested more than %d deep", maxSourceDepth)
	}
	d := decoder{vertices: make(map[digest.Digest]*Vertex, len(def.Def))}
	last := len(def.Def) - 1
	for i, data := range def.Def[:last] {
		if err := d.add(data, def.Metadata); err != nil {
			return nil, fmt.Errorf("decode operation %d: %w", i, err)
		}
	}
	if err := d.link(); err != nil {
		return nil, err
	}
	root, err := d.terminal(def.Def[last])
	if err != nil {
		return nil, fmt.Errorf("decode last operation: %w", err)
	}
	g.Root = root
	if g.Sources, err = decodeSources(def.GetSource(), depth); err != nil {
		return nil, err
	}
	if err := g.Verify(); err != nil {
		return nil, err
	}
	return g, nil
}

// decoder collects vertices by digest, and links them when all are known.
type decoder struct {
	vertices map[digest.Digest]*Vertex
	pending  []pendingInputs
}

type pendingInputs struct {
	vertex *Vertex
	inputs []*pb.Input
}

func (d *decoder) add(data []byte, meta map[string]*pb.OpMetadata) error {
	dgst := digest.FromBytes(data)
	if d.vertices[dgst] != nil {
		return nil
	}
	v, inputs, err := decodeVertex(data, meta[string(dgst)])
	if err != nil {
		return err
	}
	v.wire.Store(&wireForm{bytes: data, digest: dgst})
	d.vertices[dgst] = v
	d.pending = append(d.pending, pendingInputs{v, inputs})
	return nil
}

// decodeVertex decodes an operation, but for what its inputs are.
func decodeVertex(data []byte, meta *pb.OpMetadata) (*Vertex, []*pb.Input, error) {
	var op pb.Op
	if err := proto.Unmarshal(data, &op); err != nil {
		return nil, nil, err
	}
	v := &Vertex{Platform: decodePlatform(op.Platform), Workers: op.GetConstraints().GetFilter(), Meta: decodeMeta(meta)}
	err := v.Meta.decodeTimeout()
	if err == nil {
		v.Op, err = decodeOp(&op)
	}
	return v, op.Inputs, err
}

func (d *decoder) link() error {
	for _, p := range d.pending {
		for _, in := range p.inputs {
			e, err := d.edge(in)
			if err != nil {
				return fmt.Errorf("input of %s %s: %w", p.vertex.Op.Kind(), p.vertex.Digest(), err)
			}
			p.vertex.Inputs = append(p.vertex.Inputs, e)
		}
	}
	return nil
}

func (d *decoder) edge(in *pb.Input) (Edge, error) {
	v := d.vertices[digest.Digest(in.GetDigest())]
	if v == nil {
		return Edge{}, fmt.Errorf("no operation of the definition has the digest %q", in.GetDigest())
	}
	if in.GetIndex() < 0 || in.GetIndex() > math.MaxInt32 {
		return Edge{}, fmt.Errorf("output number %d of %s is out of range", in.GetIndex(), in.GetDigest())
	}
	return Edge{Vertex: v, Index: int(in.GetIndex())}, nil
}

// terminal decodes the operation that only says which output is the root.
func (d *decoder) terminal(data []byte) (Edge, error) {
	var op pb.Op
	if err := proto.Unmarshal(data, &op); err != nil {
		return Edge{}, err
	}
	if op.Op != nil || len(op.Inputs) != 1 {
		return Edge{}, fmt.Errorf("it must have one input and do nothing, but has %d inputs and operation %T", len(op.Inputs), op.Op)
	}
	return d.edge(op.Inputs[0])
}

func decodeOp(op *pb.Op) (Op, error) {
	switch m := op.Op.(type) {
	case *pb.Op_Source:
		return decodeSource(m.Source), nil
	case *pb.Op_Exec:
		return decodeExec(m.Exec)
	case *pb.Op_File:
		return decodeFile(m.File)
	case *pb.Op_Build:
		return decodeBuild(m.Build)
	case *pb.Op_Merge:
		return decodeMerge(m.Merge), nil
	case *pb.Op_Diff:
		return decodeDiff(m.Diff)
	case *pb.Op_Passthrough:
		return decodePassthrough(m.Passthrough), nil
	default:
		return nil, errors.New("operation is of an unknown kind")
	}
}

func decodeSources(w *pb.Source, depth int) (SourceIndex, error) {
	var s SourceIndex
	for _, info := range w.GetInfos() {
		f := SourceFile{Name: info.GetFilename(), Data: info.GetData(), Language: info.GetLanguage()}
		if info.GetDefinition() != nil {
			from, err := unmarshal(info.Definition, depth-1)
			if err != nil {
				return s, fmt.Errorf("decode where source file %q is from: %w", f.Name, err)
			}
			f.From = from
		}
		s.Files = append(s.Files, f)
	}
	for d, list := range w.GetLocations() {
		for _, w := range list.GetLocations() {
			l := Location{File: number(int64(w.GetSourceIndex())), Ranges: decodeRanges(w.GetRanges())}
			if s.Locations == nil {
				s.Locations = map[digest.Digest][]Location{}
			}
			s.Locations[digest.Digest(d)] = append(s.Locations[digest.Digest(d)], l)
		}
	}
	return s, nil
}

func decodeRanges(list []*pb.Range) (ranges []Range) {
	for _, r := range list {
		ranges = append(ranges, Range{Start: decodePosition(r.GetStart()), End: decodePosition(r.GetEnd())})
	}
	return ranges
}

func decodePosition(p *pb.Position) Position {
	return Position{Line: int(p.GetLine()), Character: int(p.GetCharacter())}
}
