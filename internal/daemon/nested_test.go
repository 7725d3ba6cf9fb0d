package daemon

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// definitions is a source of files with definitions, "definition://NAME" or
// "definition://NAME#WORDING". None is fetched before all are asked for.
type definitions struct {
	layers *layer.Store
	files  map[string][]byte // by name
	all    sync.WaitGroup    // one for each that was not asked for yet
	asked  map[string]*sync.Once
}

// bare is a name without its wording.
func bare(name string) string {
	name, _, _ = strings.Cut(name, "#")
	return name
}

// newDefinitions has each name's file say that the next name's is to be evaluated, and
// the last one's the first.
func newDefinitions(t *testing.T, g *gatewayServer, names ...string) *definitions {
	d := &definitions{layers: g.layers, files: map[string][]byte{}, asked: map[string]*sync.Once{}}
	for i, name := range names {
		def, err := proto.Marshal(evaluation(t, names[(i+1)%len(names)]))
		if err != nil {
			t.Fatal(err)
		}
		d.files[bare(name)], d.asked[bare(name)] = def, &sync.Once{}
		d.all.Add(1)
	}
	return d
}

// evaluation evaluates the definitions of names, and merges what they are of.
func evaluation(t *testing.T, names ...string) *pb.Definition {
	t.Helper()
	op := &llb.MergeOp{}
	merge := &llb.Vertex{Op: op}
	for i, name := range names {
		op.Inputs = append(op.Inputs, i)
		file := &llb.Vertex{Op: &llb.SourceOp{Identifier: "definition://" + name}}
		build := &llb.Vertex{Op: &llb.BuildOp{Inputs: map[string]int{llb.BuildDefinition: 0}}, Inputs: []llb.Edge{{Vertex: file}}}
		merge.Inputs = append(merge.Inputs, llb.Edge{Vertex: build})
	}
	g := &llb.Graph{Root: llb.Edge{Vertex: merge}}
	if len(names) == 1 {
		g.Root = merge.Inputs[0]
	}
	def, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return def
}

func (d *definitions) Schemes() []string { return []string{"definition"} }

func (d *definitions) Resolve(_ context.Context, op *llb.SourceOp, _ source.Options) (*source.Pin, error) {
	return &source.Pin{Op: op, Key: bare(op.Identifier), Name: op.Identifier}, nil
}

func (d *definitions) Fetch(ctx context.Context, pin *source.Pin) (_ *layer.Ref, err error) {
	name := strings.TrimPrefix(pin.Key, "definition://")
	d.asked[name].Do(d.all.Done)
	d.all.Wait()
	m, err := d.layers.New(ctx, nil, layer.NewOptions{})
	if err != nil {
		return nil, err
	}
	dir, release, err := m.Mount(ctx)
	if err != nil {
		return nil, err
	}
	err = os.WriteFile(filepath.Join(dir, llb.BuildDefinition), d.files[name], 0o600)
	if err = errors.Join(err, release()); err != nil {
		return nil, errors.Join(err, m.Discard())
	}
	return m.Commit(ctx)
}

// TestBuildsInsideEachOther evaluates definitions that contain each other, in one
// build and in several that begin at once: all end, and say why.
func TestBuildsInsideEachOther(t *testing.T) {
	for name, c := range map[string]struct {
		ring   []string   // each contains the next
		builds [][]string // what each build evaluates
	}{
		"one build":      {[]string{"a", "b"}, [][]string{{"a", "b"}}},
		"two builds":     {[]string{"a", "b"}, [][]string{{"a"}, {"b"}}},
		"three builds":   {[]string{"a", "b", "c"}, [][]string{{"a"}, {"b"}, {"c"}}},
		"one with both":  {[]string{"a", "b"}, [][]string{{"a"}, {"a", "b"}}},
		"itself, beside": {[]string{"a"}, [][]string{{"a"}, {"a"}}},
		"two wordings":   {[]string{"a#2", "b#2"}, [][]string{{"a#1"}, {"b#1"}}},
		"itself, worded": {[]string{"a#2"}, [][]string{{"a#1"}}},
		"worded in one":  {[]string{"a#2", "b#2"}, [][]string{{"a#1", "b#1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			g := serveGateway(t)
			g.worker.Sources = append(g.worker.Sources, newDefinitions(t, g, c.ring...))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			ended := make(chan error, len(c.builds))
			for i, of := range c.builds {
				go func() { ended <- solveDefinition(ctx, g.conn, name+string(rune('0'+i)), evaluation(t, of...)) }()
			}
			for range c.builds {
				if err := <-ended; err == nil || !strings.Contains(err.Error(), "contains the build itself") {
					t.Errorf("a build ended with %v, expected to be told that it contains itself", err)
				}
			}
		})
	}
}

func solveDefinition(ctx context.Context, conn *grpc.ClientConn, ref string, def *pb.Definition) error {
	_, err := control.NewControlClient(conn).Solve(ctx, &control.SolveRequest{Ref: ref, Definition: def})
	return err
}
