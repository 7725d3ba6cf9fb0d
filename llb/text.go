package llb

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// lineWidth is how long a vertex with a body may be and still stand on one line.
const lineWidth = 100

// form is a vertex in text: a head, a body in braces and a tail of properties.
type form struct {
	head []string
	body []string // clauses; nil for no braces
	tail []string
}

// refs names the inputs of the vertex that is printed.
type refs interface {
	// ref names an input by its number; None is "scratch".
	ref(input int) string
}

// Text writes the graph for people to read:
//
//	%0 = source docker-image://docker.io/library/alpine:3.20  platform=linux/amd64
//	%1 = source local://context  include="*.go"
//	%2 = file %0 { copy %1:/main.go /src/  mode=0644 }
//	%3 = exec %2 { args "go" "build" "./..."  cwd /src  mount cache:go-build /root/.cache }
//	return %3
//
// %3#1 is the second output of %3. An operation's inputs are numbered in the
// order in which its text names them. Where a foreign definition has them in
// another order, they are listed first, as inputs=%0,%1, and then named @0, @1.
// What is not said has the value that the State DSL would give it. [ParseText]
// reads all of it back, except for wire bytes that another encoder had chosen.
func (g *Graph) Text() string {
	p := printer{ids: map[*Vertex]int{}}
	for i, v := range g.Vertices() {
		p.ids[v] = i
		p.vertex(v)
	}
	p.sources(g)
	fmt.Fprintf(&p.out, "return %s\n", p.edge(g.Root))
	return p.out.String()
}

type printer struct {
	out strings.Builder
	ids map[*Vertex]int
}

func (p *printer) edge(e Edge) string {
	switch {
	case e.Vertex == nil:
		return "scratch"
	case e.Index == 0:
		return fmt.Sprintf("%%%d", p.ids[e.Vertex])
	default:
		return fmt.Sprintf("%%%d#%d", p.ids[e.Vertex], e.Index)
	}
}

func (p *printer) vertex(v *Vertex) {
	natural := &naturalRefs{printer: p, vertex: v, list: newInputList(v.Op)}
	f := v.Op.print(natural)
	if !natural.ok() {
		f = v.Op.print(numberRefs{len(v.Inputs)})
		edges := make([]string, len(v.Inputs))
		for i, e := range v.Inputs {
			edges[i] = p.edge(e)
		}
		f.head = append([]string{"inputs=" + strings.Join(edges, ",")}, f.head...)
	}
	f.tail = append(f.tail, v.properties()...)

	head := fmt.Sprintf("%%%d = %s", p.ids[v], strings.Join(append([]string{v.Op.Kind()}, f.head...), " "))
	tail := ""
	if len(f.tail) > 0 {
		tail = "  " + strings.Join(f.tail, " ")
	}
	if f.body == nil {
		fmt.Fprintf(&p.out, "%s%s\n", head, tail)
		return
	}
	if line := fmt.Sprintf("%s { %s }%s", head, strings.Join(f.body, "  "), tail); len(line) <= lineWidth {
		fmt.Fprintf(&p.out, "%s\n", line)
		return
	}
	fmt.Fprintf(&p.out, "%s {\n  %s\n}%s\n", head, strings.Join(f.body, "\n  "), tail)
}

// properties are the parts of a vertex that any operation may have.
func (v *Vertex) properties() (list []string) {
	add := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if p := v.Platform; p != nil {
		add("platform=%s", word(platformText(p)))
		if p.OSVersion != "" {
			add("osversion=%s", word(p.OSVersion))
		}
		for _, f := range p.OSFeatures {
			add("osfeature=%s", word(f))
		}
	}
	for _, w := range v.Workers {
		add("worker=%s", word(w))
	}
	if name, ok := v.Meta.Description[descName]; ok {
		add("name=%s", strconv.Quote(name))
	}
	for _, k := range slices.Sorted(maps.Keys(v.Meta.Description)) {
		if k != descName {
			add("desc:%s=%s", key(k, '='), strconv.Quote(v.Meta.Description[k]))
		}
	}
	if v.Meta.IgnoreCache {
		add("nocache")
	}
	if v.Meta.NoExport {
		add("noexport")
	}
	if v.Meta.ForceExport {
		add("export")
	}
	if g := v.Meta.Group; g != nil {
		add("group=%s:%s", key(g.ID, ':'), word(g.Name))
		if g.Weak {
			add("weakgroup")
		}
	}
	if v.Meta.Timeout > 0 {
		add("timeout=%s", v.Meta.Timeout)
	}
	if r := v.Meta.Resources; r != nil {
		list = append(list, r.text()...)
	}
	if v.Meta.Caps != nil && !maps.Equal(v.Meta.Caps, v.derivedCaps()) {
		ids := make([]string, 0, len(v.Meta.Caps))
		for _, id := range slices.Sorted(maps.Keys(v.Meta.Caps)) {
			text := key(id, ',')
			if strings.HasPrefix(id, "!") {
				text = strconv.Quote(id)
			}
			if !v.Meta.Caps[id] {
				text = "!" + text
			}
			ids = append(ids, text)
		}
		add("caps=%s", strings.Join(ids, ","))
	}
	return list
}

func (r *LinuxResources) text() []string {
	list := []string{"limits"}
	for _, f := range []struct {
		name  string
		value any
		set   bool
	}{
		{"memory", r.Memory, r.Memory != 0},
		{"memory-swap", r.MemorySwap, r.MemorySwap != 0},
		{"cpu-shares", r.CPUShares, r.CPUShares != 0},
		{"cpu-period", r.CPUPeriod, r.CPUPeriod != 0},
		{"cpu-quota", r.CPUQuota, r.CPUQuota != 0},
		{"cpuset-cpus", word(r.CpusetCpus), r.CpusetCpus != ""},
		{"cpuset-mems", word(r.CpusetMems), r.CpusetMems != ""},
	} {
		if f.set {
			list = append(list, fmt.Sprintf("%s=%v", f.name, f.value))
		}
	}
	return list
}

func platformText(p *ocispecs.Platform) string {
	if p.Variant != "" {
		return p.OS + "/" + p.Architecture + "/" + p.Variant
	}
	return p.OS + "/" + p.Architecture
}

func (p *printer) sources(g *Graph) {
	for _, f := range g.Sources.Files {
		fmt.Fprintf(&p.out, "source-file %s language=%s data=%s", strconv.Quote(f.Name), word(f.Language), strconv.Quote(string(f.Data)))
		if f.From != nil {
			fmt.Fprintf(&p.out, " from=%s", strconv.Quote(f.From.Text()))
		}
		p.out.WriteByte('\n')
	}
	if len(g.Sources.Locations) == 0 {
		return
	}
	names := map[digest.Digest]string{}
	for _, v := range g.Vertices() {
		names[v.Digest()] = p.edge(Edge{Vertex: v})
	}
	var lines []string
	for _, v := range g.Vertices() {
		d := v.Digest()
		if names[d] != "" {
			lines = append(lines, locationText(names[d], g.Sources.Locations[d])...)
			names[d] = "" // a vertex that occurs twice has its locations once
		}
	}
	for _, d := range slices.Sorted(maps.Keys(g.Sources.Locations)) {
		if _, ok := names[d]; !ok {
			lines = append(lines, locationText(string(d), g.Sources.Locations[d])...)
		}
	}
	for _, line := range lines {
		fmt.Fprintf(&p.out, "%s\n", line)
	}
}

func locationText(vertex string, locations []Location) (lines []string) {
	for _, l := range locations {
		line := fmt.Sprintf("at %s file=%d", vertex, l.File)
		for _, r := range l.Ranges {
			line += fmt.Sprintf(" %d:%d-%d:%d", r.Start.Line, r.Start.Character, r.End.Line, r.End.Character)
		}
		lines = append(lines, line)
	}
	return lines
}

// inputList numbers the inputs of an operation in the order that they are
// first named. Most operations name an input as often as they like; for merge,
// diff and passthrough each mention is an input of its own.
type inputList struct {
	edges  []Edge
	repeat bool
	index  map[Edge]int
}

func newInputList(op Op) *inputList { return &inputList{repeat: repeatsInputs(op.Kind())} }

func repeatsInputs(kind string) bool {
	return kind == "merge" || kind == "diff" || kind == "passthrough"
}

func (l *inputList) add(e Edge) int {
	if !l.repeat {
		if i, ok := l.index[e]; ok {
			return i
		}
		if l.index == nil {
			l.index = map[Edge]int{}
		}
		l.index[e] = len(l.edges)
	}
	l.edges = append(l.edges, e)
	return len(l.edges) - 1
}

// naturalRefs names inputs by edge and notes whether a reader would number them alike.
type naturalRefs struct {
	printer *printer
	vertex  *Vertex
	list    *inputList
	strange bool
}

func (r *naturalRefs) ref(input int) string {
	if input == None {
		return "scratch"
	}
	if input < 0 || input >= len(r.vertex.Inputs) {
		r.strange = true
		return ""
	}
	e := r.vertex.Inputs[input]
	if r.list.add(e) != input {
		r.strange = true
	}
	return r.printer.edge(e)
}

func (r *naturalRefs) ok() bool {
	return !r.strange && slices.Equal(r.list.edges, r.vertex.Inputs)
}

// numberRefs names inputs by number.
type numberRefs struct{ inputs int }

func (numberRefs) ref(input int) string {
	if input == None {
		return "scratch"
	}
	return "@" + strconv.Itoa(input)
}
