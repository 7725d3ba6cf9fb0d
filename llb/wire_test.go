package llb

import (
	"fmt"
	"math"
	"strings"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/llb/pb"
)

// define encodes operations; an input's digest is the number of an earlier one.
func define(t *testing.T, root *pb.Input, ops ...*pb.Op) *pb.Definition {
	t.Helper()
	def := &pb.Definition{}
	var digests []string
	resolve := func(in *pb.Input) {
		var n int
		if _, err := fmt.Sscan(in.Digest, &n); err == nil && n < len(digests) {
			in.Digest = digests[n]
		}
	}
	ops = append(ops, &pb.Op{Inputs: []*pb.Input{root}})
	for _, op := range ops {
		for _, in := range op.Inputs {
			resolve(in)
		}
		data, err := deterministic().Marshal(op)
		if err != nil {
			t.Fatal(err)
		}
		def.Def = append(def.Def, data)
		digests = append(digests, string(digest.FromBytes(data)))
	}
	return def
}

func input(n string) *pb.Input { return &pb.Input{Digest: n} }

func sourceOp() *pb.Op {
	return &pb.Op{Op: &pb.Op_Source{Source: &pb.SourceOp{Identifier: "local://a"}}}
}

func execOp(change func(*pb.ExecOp)) *pb.Op {
	e := &pb.ExecOp{Meta: &pb.Meta{Args: []string{"x"}, Cwd: "/"}, Mounts: []*pb.Mount{{Dest: "/"}}}
	change(e)
	return &pb.Op{Inputs: []*pb.Input{input("0")}, Op: &pb.Op_Exec{Exec: e}}
}

func fileOp(actions ...*pb.FileAction) *pb.Op {
	return &pb.Op{Inputs: []*pb.Input{input("0")}, Op: &pb.Op_File{File: &pb.FileOp{Actions: actions}}}
}

func rm(in, secondary, out int64) *pb.FileAction {
	return &pb.FileAction{Input: in, SecondaryInput: secondary, Output: out, Action: &pb.FileAction_Rm{Rm: &pb.FileActionRm{Path: "/x"}}}
}

// badOps are operations on input 0 that must be refused, with a part of why.
func badOps() map[string]struct {
	op   *pb.Op
	want string
} {
	type bad = struct {
		op   *pb.Op
		want string
	}
	on0 := []*pb.Input{input("0")}
	mount := func(change func(*pb.Mount)) *pb.Op {
		return execOp(func(e *pb.ExecOp) {
			m := &pb.Mount{Dest: "/m", Output: -1}
			change(m)
			e.Mounts = append(e.Mounts, m)
		})
	}
	byName := func(n int64) *pb.Op {
		return fileOp(&pb.FileAction{SecondaryInput: -1, Action: &pb.FileAction_Mkdir{Mkdir: &pb.FileActionMkDir{
			Path: "/d", Owner: &pb.ChownOpt{User: &pb.UserOpt{User: &pb.UserOpt_ByName{ByName: &pb.NamedUserOpt{Name: "u", Input: n}}}},
		}}})
	}
	return map[string]bad{
		"input index negative": {&pb.Op{Inputs: []*pb.Input{{Digest: "0", Index: -1}}, Op: fileOp(rm(0, -1, 0)).Op}, "out of range"},
		"input index beyond":   {&pb.Op{Inputs: []*pb.Input{{Digest: "0", Index: 1}}, Op: fileOp(rm(0, -1, 0)).Op}, "output 1 of source"},
		"input index huge":     {&pb.Op{Inputs: []*pb.Input{{Digest: "0", Index: math.MaxInt64}}, Op: fileOp(rm(0, -1, 0)).Op}, "out of range"},
		"input digest unknown": {&pb.Op{Inputs: []*pb.Input{input("sha256:00")}, Op: fileOp(rm(0, -1, 0)).Op}, "no operation"},
		"no operation":         {&pb.Op{Inputs: on0}, "unknown kind"},
		"source with input":    {&pb.Op{Inputs: on0, Op: sourceOp().Op}, "expected none"},
		"source nil":           {&pb.Op{Op: &pb.Op_Source{}}, "not of the form"},
		"exec nil":             {&pb.Op{Inputs: on0, Op: &pb.Op_Exec{}}, "no meta"},
		"exec without meta":    {execOp(func(e *pb.ExecOp) { e.Meta = nil }), "no meta"},
		"exec without args":    {execOp(func(e *pb.ExecOp) { e.Meta.Args = nil }), "no arguments"},
		"exec without mounts":  {execOp(func(e *pb.ExecOp) { e.Mounts = nil }), "no mount"},
		"exec with two roots":  {mount(func(m *pb.Mount) { m.Dest = "/" }), "root file system"},
		"exec root is secret": {execOp(func(e *pb.ExecOp) {
			e.Mounts[0].MountType, e.Mounts[0].SecretOpt = pb.MountType_SECRET, &pb.SecretOpt{}
		}), "root file system"},
		"mount input -2":         {mount(func(m *pb.Mount) { m.Input = -2 }), "input number -2"},
		"mount input beyond":     {mount(func(m *pb.Mount) { m.Input = 1 }), "input number 1 of 1"},
		"mount input huge":       {mount(func(m *pb.Mount) { m.Input = math.MinInt64 }), "input number"},
		"mount output -2":        {mount(func(m *pb.Mount) { m.Output = -2 }), "output number -2"},
		"mount output twice":     {mount(func(m *pb.Mount) { m.Output = 0 }), "each once"},
		"mount output with hole": {mount(func(m *pb.Mount) { m.Output = 2 }), "each once"},
		"mount without dest":     {mount(func(m *pb.Mount) { m.Dest = "" }), "no destination"},
		"mount type":             {mount(func(m *pb.Mount) { m.MountType = 5 }), "mount type 5"},
		"mount type negative":    {mount(func(m *pb.Mount) { m.MountType = -1 }), "mount type -1"},
		"mount secret nil":       {mount(func(m *pb.Mount) { m.MountType = pb.MountType_SECRET }), "which secret"},
		"mount ssh as secret": {mount(func(m *pb.Mount) {
			m.MountType, m.SecretOpt = pb.MountType_SSH, &pb.SecretOpt{}
		}), "which secret"},
		"cache sharing":            {mount(func(m *pb.Mount) { m.CacheOpt = &pb.CacheOpt{Sharing: 3} }), "sharing mode 3"},
		"content cache":            {mount(func(m *pb.Mount) { m.ContentCache = 3 }), "content cache mode 3"},
		"tmpfs size":               {mount(func(m *pb.Mount) { m.TmpfsOpt = &pb.TmpfsOpt{Size: -1} }), "tmpfs size"},
		"network":                  {execOp(func(e *pb.ExecOp) { e.Network = 3 }), "network mode 3"},
		"security":                 {execOp(func(e *pb.ExecOp) { e.Security = 2 }), "security mode 2"},
		"security negative":        {execOp(func(e *pb.ExecOp) { e.Security = -1 }), "security mode -1"},
		"file nil":                 {&pb.Op{Inputs: on0, Op: &pb.Op_File{}}, "no actions"},
		"file without actions":     {fileOp(), "no actions"},
		"file action nil":          {fileOp(nil), "unknown kind"},
		"file action empty":        {fileOp(&pb.FileAction{}), "unknown kind"},
		"file input beyond":        {fileOp(rm(1, -1, 0)), "input is number 1 of 1"},
		"file input -2":            {fileOp(rm(-2, -1, 0)), "input is number -2"},
		"file input later result":  {fileOp(rm(0, -1, -1), rm(2, -1, 0)), "input is number 2 of 2"},
		"file secondary beyond":    {fileOp(rm(0, 7, 0)), "secondary input is number 7"},
		"file output twice":        {fileOp(rm(0, -1, 0), rm(1, -1, 0)), "each once"},
		"file output -2":           {fileOp(rm(0, -1, -2)), "each once"},
		"owner input beyond":       {byName(3), "look up \"u\" in is number 3"},
		"owner input -2":           {byName(-2), "look up \"u\" in is number -2"},
		"build nil":                {&pb.Op{Inputs: on0, Op: &pb.Op_Build{}}, "builder is 0"},
		"build builder":            {&pb.Op{Inputs: on0, Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: 0}}}, "builder is 0"},
		"build without definition": {&pb.Op{Inputs: on0, Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1}}}, "no input named"},
		"build input negative": {&pb.Op{Inputs: on0, Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1,
			Inputs: map[string]*pb.BuildInput{BuildDefinition: {Input: -1}}}}}, "number -1 of 1"},
		"build input beyond": {&pb.Op{Inputs: on0, Op: &pb.Op_Build{Build: &pb.BuildOp{Builder: -1,
			Inputs: map[string]*pb.BuildInput{BuildDefinition: {Input: 1}}}}}, "number 1 of 1"},
		"merge nil":         {&pb.Op{Inputs: on0, Op: &pb.Op_Merge{}}, "merge of 0 inputs has 1"},
		"merge beyond":      {&pb.Op{Inputs: on0, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: 1}}}}}, "number 1 of 1"},
		"merge negative":    {&pb.Op{Inputs: on0, Op: &pb.Op_Merge{Merge: &pb.MergeOp{Inputs: []*pb.MergeInput{{Input: -1}}}}}, "number -1"},
		"diff nil":          {&pb.Op{Inputs: on0, Op: &pb.Op_Diff{}}, "lacks"},
		"diff lower nil":    {&pb.Op{Inputs: on0, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Upper: &pb.UpperDiffInput{}}}}, "lacks"},
		"diff upper nil":    {&pb.Op{Inputs: on0, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{}}}}, "lacks"},
		"diff inputs":       {&pb.Op{Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{}, Upper: &pb.UpperDiffInput{Input: -1}}}}, "number 0 of 0"},
		"diff sides":        {&pb.Op{Inputs: on0, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{}, Upper: &pb.UpperDiffInput{}}}}, "2 sides has 1"},
		"diff beyond":       {&pb.Op{Inputs: on0, Op: &pb.Op_Diff{Diff: &pb.DiffOp{Lower: &pb.LowerDiffInput{Input: -1}, Upper: &pb.UpperDiffInput{Input: 2}}}}, "number 2 of 1"},
		"passthrough nil":   {&pb.Op{Inputs: on0, Op: &pb.Op_Passthrough{}}, "no id"},
		"passthrough no id": {&pb.Op{Inputs: on0, Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Outputs: []int64{0}}}}, "no id"},
		"passthrough none":  {&pb.Op{Inputs: on0, Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "i"}}}, "no outputs"},
		"passthrough far":   {&pb.Op{Inputs: on0, Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "i", Outputs: []int64{1}}}}, "number 1 of 1"},
		"passthrough empty": {&pb.Op{Op: &pb.Op_Passthrough{Passthrough: &pb.PassthroughOp{Id: "i", Outputs: []int64{0}}}}, "number 0 of 0"},
		"platform":          {&pb.Op{Inputs: on0, Platform: &pb.Platform{OS: "a/b"}, Op: fileOp(rm(0, -1, 0)).Op}, "platform part"},
	}
}

func TestUnmarshalRefuses(t *testing.T) {
	for name, bad := range badOps() {
		t.Run(name, func(t *testing.T) {
			def := define(t, input("1"), sourceOp(), bad.op)
			g, err := Unmarshal(def)
			if err == nil {
				t.Fatalf("decoded as\n%s", g.Text())
			}
			if !strings.Contains(err.Error(), bad.want) {
				t.Errorf("error %q does not say %q", err, bad.want)
			}
		})
	}
}

func TestUnmarshalRefusesDefinitions(t *testing.T) {
	good := define(t, input("0"), sourceOp())
	nested := func(depth int) *pb.Definition {
		def := proto.CloneOf(good)
		for range depth {
			next := proto.CloneOf(good)
			next.Source = &pb.Source{Infos: []*pb.SourceInfo{{Definition: def}}}
			def = next
		}
		return def
	}
	location := func(n int32) *pb.Definition {
		def := proto.CloneOf(good)
		def.Source = &pb.Source{Locations: map[string]*pb.Locations{"sha256:x": {Locations: []*pb.Location{{SourceIndex: n}, nil}}, "y": nil}}
		return def
	}
	for name, def := range map[string]*pb.Definition{
		"one operation":           {Def: good.Def[:1]},
		"no terminal":             {Def: [][]byte{good.Def[0], good.Def[0]}},
		"only terminal":           {Def: good.Def[1:]},
		"terminal without inputs": {Def: [][]byte{good.Def[0], {}}},
		"terminal of two":         {Def: [][]byte{good.Def[0], append(append([]byte{}, good.Def[1]...), good.Def[1]...)}},
		"not protobuf":            {Def: [][]byte{{0xff}, good.Def[1]}},
		"terminal not protobuf":   {Def: [][]byte{good.Def[0], {0xff}}},
		"root index negative":     define(t, &pb.Input{Digest: "0", Index: -1}, sourceOp()),
		"root index beyond":       define(t, &pb.Input{Digest: "0", Index: 1}, sourceOp()),
		"nested too deep":         nested(maxSourceDepth),
		"location negative":       location(-1),
		"location beyond":         location(0),
	} {
		if g, err := Unmarshal(def); err == nil {
			t.Errorf("%s: decoded as\n%s", name, g.Text())
		}
	}
	for name, def := range map[string]*pb.Definition{"nil": nil, "empty": {}, "good": good, "nested": nested(maxSourceDepth - 1)} {
		if _, err := Unmarshal(def); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestVerifyRefusesGraphs(t *testing.T) {
	source := &Vertex{Op: &SourceOp{Identifier: "local://a"}}
	cycle := &Vertex{Op: &MergeOp{Inputs: []int{0}}}
	cycle.Inputs = []Edge{{Vertex: cycle}}
	for name, g := range map[string]*Graph{
		"cycle":        {Root: Edge{Vertex: cycle}},
		"no operation": {Root: Edge{Vertex: &Vertex{}}},
		"no vertex":    {Root: Edge{Vertex: &Vertex{Op: &MergeOp{Inputs: []int{0}}, Inputs: []Edge{{}}}}},
		"scratch 1":    {Root: Edge{Index: 1}},
		"cap no name":  {Root: Edge{Vertex: &Vertex{Op: source.Op, Meta: Metadata{Caps: map[string]bool{"": true}}}}},
		"not UTF-8":    {Root: Edge{Vertex: &Vertex{Op: &SourceOp{Identifier: "local://\xff"}}}},
		"file origin":  {Root: Edge{Vertex: source}, Sources: SourceIndex{Files: []SourceFile{{From: &Graph{Root: Edge{Index: 1}}}}}},
	} {
		if err := g.Verify(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if cycle.Digest() != "" {
		t.Error("a vertex that needs itself has a digest")
	}
}

// chain is a graph of n vertices that each need the one before and a shared one.
func chain(n int) *Graph {
	shared := Edge{Vertex: &Vertex{Op: &SourceOp{Identifier: "local://shared"}}}
	e := shared
	for i := range n {
		e = Edge{Vertex: BuildExec(ExecOp{Args: []string{"step", fmt.Sprint(i)}, Cwd: "/", RemoveStubs: true}, []MountFrom{
			{Mount: Mount{Dest: "/"}, From: e},
			{Mount: Mount{Dest: "/src", ReadOnly: true}, From: shared},
		})}
	}
	return &Graph{Root: e}
}

func TestDeepGraph(t *testing.T) {
	const n = 20_000
	g := chain(n)
	begin := time.Now()
	def, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := Unmarshal(def)
	if err != nil {
		t.Fatal(err)
	}
	if got := len(decoded.Vertices()); got != n+1 {
		t.Fatalf("%d vertices, want %d", got, n+1)
	}
	if decoded.Root.Vertex.Digest() != g.Root.Vertex.Digest() {
		t.Error("digest changed on the way")
	}
	if took := time.Since(begin); took > 20*time.Second { // usually 0.2 s; quadratic would be minutes
		t.Errorf("%d vertices took %v", n, took)
	}
}

func TestDigestConcurrently(t *testing.T) {
	g := chain(500)
	digests := make([]digest.Digest, 8)
	var wg sync.WaitGroup
	for i := range digests {
		wg.Go(func() { digests[i] = g.Root.Vertex.Digest() })
	}
	wg.Wait()
	for _, d := range digests {
		if d != digests[0] || d == "" {
			t.Errorf("digests differ: %v", digests)
		}
	}
}

func BenchmarkUnmarshal(b *testing.B) {
	def, err := chain(1000).Marshal()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Unmarshal(def); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMarshal(b *testing.B) {
	for b.Loop() {
		if _, err := chain(1000).Marshal(); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzUnmarshal(f *testing.F) {
	for name, st := range goldenStates() {
		def, err := st.Marshal(f.Context(), LinuxAmd64)
		if err != nil {
			f.Fatalf("%s: %v", name, err)
		}
		data, err := deterministic().Marshal(def.ToPB())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var def pb.Definition
		if proto.Unmarshal(data, &def) == nil {
			checkStable(t, &def)
		}
	})
}

// FuzzOp changes single operations, of which more come out well than of whole
// definitions with their digests.
func FuzzOp(f *testing.F) {
	for name, st := range goldenStates() {
		def, err := st.Marshal(f.Context(), LinuxAmd64)
		if err != nil {
			f.Fatalf("%s: %v", name, err)
		}
		for _, data := range def.Def {
			f.Add(data)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var op pb.Op
		if proto.Unmarshal(data, &op) != nil || op.Op == nil {
			return
		}
		for _, in := range op.Inputs {
			in.Digest, in.Index = "0", 0
		}
		checkStable(t, define(t, input("1"), sourceOp(), &op))
	})
}

// checkStable checks that what def decodes to survives the wire and text.
func checkStable(t *testing.T, def *pb.Definition) {
	t.Helper()
	g, err := Unmarshal(def)
	if err != nil {
		return
	}
	again, err := g.Marshal()
	if err != nil {
		t.Fatalf("what was decoded does not encode: %v", err)
	}
	text := g.Text()
	g2, err := Unmarshal(again)
	if err != nil {
		t.Fatalf("what was encoded does not decode: %v", err)
	}
	if g2.Text() != text {
		t.Fatalf("encoding changed\n%sto\n%s", text, g2.Text())
	}
	parsed, err := ParseText(text)
	if err != nil {
		t.Fatalf("text is not read: %v\n%s", err, text)
	}
	if parsed.Text() != text {
		t.Fatalf("text\n%sis read as\n%s", text, parsed.Text())
	}
}

func FuzzParseText(f *testing.F) {
	f.Add("%0 = exec scratch { args \"a\" mount cache:x /y from=scratch:/z }\nreturn %0#0\n")
	f.Add("%0 = file scratch { mkfile /a data=\"x\" owner=\"u\":0 copy $0:/a /b }\nreturn %0\n")
	f.Fuzz(func(t *testing.T, text string) {
		if _, err := ParseText(text); err != nil {
			return
		}
		if _, err := roundTrip(text); err != nil {
			t.Fatal(err)
		}
	})
}
