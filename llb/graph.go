// Package llb is the low-level build language: a build as a value.
//
// A [Graph] is a DAG of operations. It has a text form for people ([Graph.Text]), a
// verifier ([Graph.Verify]) and a wire form ([Graph.Marshal], [Unmarshal]) whose bytes
// and digests are those of BuildKit's definitions (client/llb/marshal.go there), so
// that either side can read the other's.
//
// Frontends make graphs, most easily with the [State] DSL; package pass
// rewrites them; package op gives them a meaning. This package does no I/O and
// knows nothing of how a graph is run. What has been decoded or verified here
// needs no further checking: indices are in range, enums are known.
package llb

import (
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb/pb"
)

// Graph is a build: everything that one edge needs.
type Graph struct {
	// Root is what the build produces. A Root without a vertex is the empty
	// file system ("scratch").
	Root Edge
	// Sources maps vertices back to the files that they were written in.
	Sources SourceIndex
}

// Edge is one output of a vertex.
type Edge struct {
	Vertex *Vertex
	Index  int
}

// Vertex is one operation on the outputs of others. It is made as a literal,
// or by [BuildExec] and [BuildFile], and must not be changed once its digest was
// asked for or it is part of a graph. Graphs may share it. A changed version is
// a new literal that takes over fields; see also [Graph.Rewrite].
type Vertex struct {
	Op       Op
	Inputs   []Edge
	Platform *ocispecs.Platform // nil where the operation has none
	Workers  []string           // worker filters, the wire's "constraints"
	Meta     Metadata

	wire atomic.Pointer[wireForm] // memoized or, if decoded, the exact bytes received
}

// Op is what a vertex does: one of *[SourceOp], *[ExecOp], *[FileOp],
// *[BuildOp], *[MergeOp], *[DiffOp], *[PassthroughOp].
type Op interface {
	// Kind is the operation's word in the text form, such as "exec".
	Kind() string
	// Name describes the operation to people in a few words.
	Name() string
	// Outputs is the number of results the operation has.
	Outputs() int
	// verify reports what is wrong with the operation, given its number of inputs.
	verify(inputs int) error
	// caps calls need with each capability that the operation takes.
	caps(need func(id string))
	// encode sets the operation of a wire message.
	encode(*pb.Op)
	// print describes the operation in text.
	print(refs) form
}

// Metadata is what is said of a vertex that does not change its result. It is
// part of neither its digest nor its cache key.
type Metadata struct {
	IgnoreCache bool              // run even if a result is known
	Description map[string]string // "llb.customname" is the name to show
	NoExport    bool              // keep the result out of exported caches
	ForceExport bool              // say on the wire that the result may be exported, which is the default
	// Caps are the capabilities needed (BuildKit's solver/pb/caps.go). Where it is nil
	// they follow from the operation; see [Vertex.Caps].
	Caps      map[string]bool
	Group     *Group
	Resources *LinuxResources
	// Timeout ends a command that runs for longer, as a failure; 0 does not.
	Timeout time.Duration
}

// Group has a progress display fold several vertices into one line.
type Group struct {
	ID, Name string
	Weak     bool
}

// LinuxResources limits what a container may use. Zero fields set no limit.
type LinuxResources struct {
	Memory     int64 // bytes
	MemorySwap int64 // bytes, memory included
	CPUShares  uint64
	CPUPeriod  uint64 // microseconds
	CPUQuota   int64  // microseconds
	CpusetCpus string
	CpusetMems string
}

// SourceIndex says where vertices were written.
type SourceIndex struct {
	Files     []SourceFile
	Locations map[digest.Digest][]Location // by vertex
}

// SourceFile is a file that a frontend read vertices from.
type SourceFile struct {
	Name     string
	Data     []byte
	Language string
	From     *Graph // makes the file system that the file is in; nil if unknown
}

// Location is one or more stretches of a source file.
type Location struct {
	File   int // index into SourceIndex.Files
	Ranges []Range
}

// Range is a stretch of text. Lines count from 1, characters (bytes) from 0.
type Range struct{ Start, End Position }

// Position is a place in a text.
type Position struct{ Line, Character int }

// wireForm is a vertex's Op message, encoded.
type wireForm struct {
	bytes  []byte
	digest digest.Digest
	err    error // why there are none
}
