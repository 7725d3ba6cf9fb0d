package solver

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/progress"
)

var update = flag.Bool("update", false, "write the scenarios' answers anew")

// TestScenarios plays testdata/*.txt: stories of commands, each followed by
// "----" and what comes of it. "graph" defines vertices, one a line:
//
//	NAME = KIND [value=V] [nocache] [INPUT ...]
//
// A source has a value; local is a source of one job alone; a step makes its
// value of its name and its inputs' values; reads is a step whose inputs count
// by content; strip is one whose value is its first input's up to the first
// "+". The other commands are "build NAME ...", all at once as jobs of their
// own, "evict NAME", "fail NAME" (the next time it runs) and "restart".
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(text))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != string(text) {
				t.Errorf("%s tells\n%s\nand this came of it:\n%s", file, text, got)
			}
		})
	}
}

// scene is the world of one scenario.
type scene struct {
	cache  *tables
	solver *Solver
	graph  map[string]*actor

	mu      sync.Mutex
	ran     []string
	failing map[string]bool
	keys    map[string]Key // under which a vertex's result was kept last
}

// actor is a vertex of a scenario.
type actor struct {
	scene             *scene
	name, kind, value string
	nocache           bool
	inputs            []Edge
}

func play(t *testing.T, text string) string {
	s := &scene{cache: newTables(), graph: map[string]*actor{}, failing: map[string]bool{}, keys: map[string]Key{}}
	s.solver = New(s.cache)
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n\n") {
		command, _, _ := strings.Cut(block, "\n----")
		if strings.HasPrefix(command, "#") {
			fmt.Fprintf(&out, "%s\n\n", command)
			continue
		}
		fmt.Fprintf(&out, "%s\n----\n%s\n", command, s.do(t, command))
	}
	return strings.TrimRight(out.String(), "\n") + "\n"
}

func (s *scene) do(t *testing.T, command string) string {
	first, rest, _ := strings.Cut(command, "\n")
	words := strings.Fields(first)
	switch words[0] {
	case "graph":
		s.define(t, rest)
	case "build":
		return s.build(t, words[1:])
	case "evict":
		delete(s.cache.results, s.keys[words[1]])
	case "fail":
		s.failing[words[1]] = true
	case "restart":
		s.solver = New(s.cache)
	default:
		t.Fatalf("unknown command %q", first)
	}
	return ""
}

func (s *scene) define(t *testing.T, lines string) {
	for line := range strings.Lines(lines) {
		name, rest, ok := strings.Cut(strings.TrimSpace(line), " = ")
		words := strings.Fields(rest)
		if !ok || len(words) == 0 {
			t.Fatalf("malformed vertex %q", line)
		}
		v := &actor{scene: s, name: name, kind: words[0]}
		for _, w := range words[1:] {
			if value, ok := strings.CutPrefix(w, "value="); ok {
				v.value = value
			} else if w == "nocache" {
				v.nocache = true
			} else if in := s.graph[w]; in != nil {
				v.inputs = append(v.inputs, Edge{Vertex: in})
			} else {
				t.Fatalf("%s: unknown input %q", name, w)
			}
		}
		s.graph[name] = v
	}
}

// build builds targets at once and tells their values, what ran, and what each
// vertex was shown as.
func (s *scene) build(t *testing.T, targets []string) string {
	s.ran = nil
	answers := make([]string, len(targets))
	shown := map[string]string{}
	var mu sync.Mutex
	sink := progress.SinkFunc(func(e progress.Event) {
		if v := e.Vertex; v != nil && v.Completed != nil {
			state := "done"
			if v.Cached {
				state = "cached"
			} else if v.Error != "" {
				state = "error"
			}
			mu.Lock()
			defer mu.Unlock()
			shown[v.Name] = state
		}
	})
	var wg sync.WaitGroup
	for i, name := range targets {
		wg.Go(func() {
			j := s.solver.NewJob(t.Context(), JobOptions{Sink: sink})
			defer j.Close()
			r, err := j.Build(t.Context(), Edge{Vertex: s.graph[name]})
			answers[i] = fmt.Sprintf("%s is %v\n", name, r)
			if err != nil {
				answers[i] = fmt.Sprintf("%s fails: %v\n", name, err)
			}
		})
	}
	wg.Wait()
	slices.Sort(s.ran)
	out := strings.Join(answers, "") + strings.TrimRight("ran: "+strings.Join(s.ran, " "), " ") + "\n"
	if len(targets) > 1 {
		return out // which job ran what for the others is chance
	}
	for _, state := range []string{"cached", "done", "error"} {
		var names []string
		for name, st := range shown {
			if st == state {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		if len(names) > 0 {
			out += state + ": " + strings.Join(names, " ") + "\n"
		}
	}
	return out
}

func (v *actor) Digest() digest.Digest {
	text := fmt.Sprint(v.name, v.kind, v.value, v.nocache)
	for _, in := range v.inputs {
		text += string(in.Vertex.Digest())
	}
	return digest.FromString(text)
}

func (v *actor) Name() string           { return v.name }
func (v *actor) Group() *progress.Group { return nil }
func (v *actor) Op() Op                 { return v }
func (v *actor) Inputs() []Edge         { return v.inputs }
func (v *actor) IgnoreCache() bool      { return v.nocache }

func (v *actor) CacheMap(context.Context) (CacheMap, error) {
	cm := CacheMap{Digest: v.name + v.kind + v.value}
	switch v.kind {
	case "source":
		cm.Keep = KeepDigests
	case "local":
		cm.Keep = KeepJob
	case "reads":
		for range v.inputs {
			cm.Deps = append(cm.Deps, Dep{Digest: func(_ context.Context, r Result) (string, error) { return fmt.Sprint(r), nil }})
		}
	}
	return cm, nil
}

func (v *actor) Exec(ctx context.Context, inputs []Result) ([]Result, error) {
	s := v.scene
	s.mu.Lock()
	defer s.mu.Unlock()
	if v.kind != "source" { // how often one is made, at no cost, is chance
		s.ran = append(s.ran, v.name)
	}
	s.keys[v.name] = KeyFrom(ctx)
	if s.failing[v.name] {
		delete(s.failing, v.name)
		return nil, errors.New("told to fail")
	}
	switch v.kind {
	case "source", "local":
		return []Result{v.value}, nil
	case "strip":
		value, _, _ := strings.Cut(fmt.Sprint(inputs[0]), "+")
		return []Result{value}, nil
	}
	value := v.name
	for _, in := range inputs {
		value += fmt.Sprintf("(%v)", in)
	}
	return []Result{value}, nil
}
