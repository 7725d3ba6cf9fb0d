package llb

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/kiln-build/kiln/llb/pb"
)

// LineError is an error at a line of a text.
type LineError struct {
	Line int // counts from 1
	Err  error
}

// Error says which line.
func (e *LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }

// Unwrap returns what is wrong there.
func (e *LineError) Unwrap() error { return e.Err }

// Description is a build that was described in JSON.
type Description struct {
	// Results are graphs by platform, such as "linux/arm64", or one without a
	// name.
	Results map[string]*Graph
	// Config is the JSON of an image's config, or nil.
	Config json.RawMessage
}

// ParseJSON reads a build that any program can write:
//
//	{
//	  "steps": {
//	    "base": {"op": {"source": {"identifier": "docker-image://docker.io/library/alpine:latest"}}},
//	    "list": {
//	      "inputs": ["base"],
//	      "op": {"exec": {"meta": {"args": ["ls"], "cwd": "/"}, "mounts": [{"input": 0, "dest": "/", "output": 0}]}},
//	      "name": "list files"
//	    }
//	  },
//	  "result": "list"
//	}
//
// An operation is an Op of llb/pb/ops.proto in protobuf's JSON, without inputs:
// those are named, "base" or "base#1" for another output than the first. The
// result is a step or, for several platforms, an object of them. "config" is an
// image's config, and other keys that the top may have are passed over. Steps are
// located in the file of the given name. The graphs are verified.
func ParseJSON(name string, data []byte) (*Description, error) {
	p := &descriptionParser{file: SourceFile{Name: name, Data: data, Language: "json"}, steps: map[string]*describedStep{}, made: map[string]*Vertex{}}
	if err := p.read(); err != nil {
		return nil, err
	}
	out := &Description{Results: map[string]*Graph{}, Config: p.config}
	for platform, step := range p.results {
		e, err := p.edge(step.name, step.line)
		if err != nil {
			return nil, err
		}
		g := &Graph{Root: e, Sources: SourceIndex{Files: []SourceFile{p.file}, Locations: map[digest.Digest][]Location{}}}
		for _, v := range g.Vertices() {
			g.Sources.Locations[v.Digest()] = p.places[v]
		}
		if err := g.Verify(); err != nil {
			return nil, &LineError{step.line, err}
		}
		out.Results[platform] = g
	}
	return out, nil
}

// describedStep is a step as it was written.
type describedStep struct {
	line    int
	op      *pb.Op
	inputs  []string
	title   string
	pending bool // its needs are being met
}

type namedResult struct {
	name string
	line int
}

type descriptionParser struct {
	file    SourceFile
	dec     *json.Decoder
	steps   map[string]*describedStep
	results map[string]namedResult
	config  json.RawMessage
	made    map[string]*Vertex
	places  map[*Vertex][]Location
}

// line is that of the decoder's position.
func (p *descriptionParser) line() int {
	return 1 + bytes.Count(p.file.Data[:p.dec.InputOffset()], []byte("\n"))
}

// at gives an error the decoder's line, or its own.
func (p *descriptionParser) at(err error) error {
	var at *LineError
	var syntax *json.SyntaxError
	switch {
	case err == nil || errors.As(err, &at):
		return err
	case errors.As(err, &syntax):
		return &LineError{1 + bytes.Count(p.file.Data[:min(syntax.Offset, int64(len(p.file.Data)))], []byte("\n")), err}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = errors.New("the text ends too early")
	}
	return &LineError{p.line(), err}
}

// object reads an object, calling f for each key.
func (p *descriptionParser) object(what string, f func(key string) error) error {
	t, err := p.dec.Token()
	if err != nil {
		return p.at(err)
	}
	if t != json.Delim('{') {
		return p.at(fmt.Errorf("%s is %v, expected an object", what, t))
	}
	seen := map[string]bool{}
	for p.dec.More() {
		t, err := p.dec.Token()
		if err != nil {
			return p.at(err)
		}
		key, ok := t.(string)
		if !ok || seen[key] {
			return p.at(fmt.Errorf("%s has the key %v twice", what, t))
		}
		seen[key] = true
		if err := f(key); err != nil {
			return p.at(err)
		}
	}
	_, err = p.dec.Token()
	return p.at(err)
}

func (p *descriptionParser) read() error {
	p.dec, p.places = json.NewDecoder(bytes.NewReader(p.file.Data)), map[*Vertex][]Location{}
	err := p.object("description", func(key string) error {
		switch key {
		case "steps":
			return p.object("steps", p.step)
		case "result":
			return p.result()
		case "config":
			return p.dec.Decode(&p.config)
		}
		var other any
		return p.dec.Decode(&other)
	})
	if err != nil {
		return err
	}
	if len(p.results) == 0 {
		return p.at(errors.New(`description has no "result": expected the name of a step`))
	}
	return nil
}

func (p *descriptionParser) result() error {
	line := p.line()
	var raw json.RawMessage
	if err := p.dec.Decode(&raw); err != nil {
		return err
	}
	one, several := "", map[string]string{}
	if json.Unmarshal(raw, &one) == nil {
		several[""] = one
	} else if err := json.Unmarshal(raw, &several); err != nil {
		return &LineError{line, errors.New("result is neither a step nor an object of steps by platform")}
	}
	p.results = map[string]namedResult{}
	for platform, name := range several {
		p.results[platform] = namedResult{name, line}
	}
	return nil
}

// step reads a step.
func (p *descriptionParser) step(name string) error {
	s := &describedStep{line: p.line(), op: &pb.Op{}}
	p.steps[name] = s
	return p.object("step "+name, func(key string) error {
		switch key {
		case "op":
			var raw json.RawMessage
			if err := p.dec.Decode(&raw); err != nil {
				return err
			}
			if err := protojson.Unmarshal(raw, s.op); err != nil {
				// Its places are within the operation.
				return &LineError{s.line, fmt.Errorf("step %s: decode op: %w", name, err)}
			}
			if len(s.op.Inputs) > 0 {
				return fmt.Errorf(`step %s: op has inputs, expected them as "inputs" of the step`, name)
			}
			return nil
		case "inputs":
			return p.dec.Decode(&s.inputs)
		case "name":
			return p.dec.Decode(&s.title)
		}
		return fmt.Errorf("step %s has the unknown key %q: expected op, inputs or name", name, key)
	})
}

// mostNested bounds how deep steps may need each other.
const mostNested = 10000

// edge is the result of a step, "NAME" or "NAME#OUTPUT", that a line asks for.
func (p *descriptionParser) edge(ref string, line int) (Edge, error) {
	name, index, _ := strings.Cut(ref, "#")
	e := Edge{}
	if index != "" {
		n, err := strconv.Atoi(index)
		if err != nil || n < 0 {
			return e, &LineError{line, fmt.Errorf("output %q of step %s is no number", index, name)}
		}
		e.Index = n
	}
	s := p.steps[name]
	switch {
	case s == nil:
		return e, &LineError{line, fmt.Errorf("there is no step %q: expected one of %s", name, strings.Join(slices.Sorted(maps.Keys(p.steps)), ", "))}
	case s.pending:
		return e, &LineError{s.line, fmt.Errorf("step %s needs itself", name)}
	}
	var err error
	if e.Vertex = p.made[name]; e.Vertex == nil {
		if len(p.made) > mostNested {
			return e, &LineError{s.line, fmt.Errorf("more than %d steps", mostNested)}
		}
		e.Vertex, err = p.vertex(name, s)
	}
	return e, err
}

// vertex makes a step, after those that it needs.
func (p *descriptionParser) vertex(name string, s *describedStep) (*Vertex, error) {
	s.pending = true
	defer func() { s.pending = false }()
	inputs := make([]Edge, 0, len(s.inputs))
	for _, in := range s.inputs {
		e, err := p.edge(in, s.line)
		if err != nil {
			return nil, err
		}
		inputs = append(inputs, e)
		s.op.Inputs = append(s.op.Inputs, &pb.Input{Digest: string(e.Vertex.Digest()), Index: int64(e.Index)})
	}
	data, err := deterministic().Marshal(s.op)
	if err != nil {
		return nil, &LineError{s.line, fmt.Errorf("step %s: %w", name, err)}
	}
	v, _, err := decodeVertex(data, nil)
	if err != nil {
		return nil, &LineError{s.line, fmt.Errorf("step %s: %w", name, err)}
	}
	v.Inputs, v.Meta.Caps = inputs, nil // what it takes of a daemon follows from what it does
	if s.title != "" {
		v.Meta.Description = map[string]string{descName: s.title}
	}
	p.made[name] = v
	at := Range{Start: Position{Line: s.line}, End: Position{Line: s.line}}
	p.places[v] = append(p.places[v], Location{Ranges: []Range{at}})
	return v, nil
}
