package dockerfile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

var update = flag.Bool("update", false, "write what came out into the golden files")

// fakeGateway serves files and images from memory.
type fakeGateway struct {
	files  map[string]string // "local/path" or the URL
	images map[string]string // configs by reference

	mu       sync.Mutex
	solved   []string
	resolved []string
	warnings []frontend.Warning
}

type fakeRef map[string]string

func (r fakeRef) ReadFile(_ context.Context, path string) ([]byte, error) {
	if text, ok := r[path]; ok {
		return []byte(text), nil
	}
	return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
}

func (r fakeRef) Evaluate(context.Context) error { return nil }

func (g *fakeGateway) Solve(_ context.Context, graph *llb.Graph) (frontend.Ref, error) {
	if err := graph.Verify(); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	g.mu.Lock()
	g.solved = append(g.solved, graph.Text())
	g.mu.Unlock()
	v := graph.Root.Vertex
	for v != nil {
		if _, ok := v.Op.(*llb.SourceOp); ok {
			break
		}
		v = v.Inputs[0].Vertex
	}
	ref := fakeRef{}
	if v == nil {
		return ref, nil
	}
	id := v.Op.(*llb.SourceOp).Identifier
	if text, ok := g.files[id]; ok {
		ref["context"] = text
		return ref, nil
	}
	for name, text := range g.files {
		if path, ok := strings.CutPrefix(name, strings.TrimPrefix(id, "local://")+"/"); ok {
			ref[path] = text
		}
	}
	return ref, nil
}

func (g *fakeGateway) ResolveSource(_ context.Context, op *llb.SourceOp, opt frontend.ResolveOpt) (*frontend.SourceMeta, error) {
	g.mu.Lock()
	g.resolved = append(g.resolved, fmt.Sprintf("%s for %s: %s", op.Identifier, platforms.FormatAll(*opt.Platform), opt.LogName))
	g.mu.Unlock()
	_, ref, _ := strings.Cut(op.Identifier, "://")
	config, ok := g.images[ref]
	if !ok {
		config, ok = g.images[ref+" "+opt.Platform.Architecture]
	}
	if !ok {
		return nil, errors.New("not found")
	}
	return &frontend.SourceMeta{Op: op, Digest: digest.FromString(config), Config: []byte(config)}, nil
}

func (g *fakeGateway) Warn(_ context.Context, _ digest.Digest, w frontend.Warning) {
	g.warnings = append(g.warnings, w)
}

// plainImage is the config of the images that tests build on.
func plainImage(arch string, change func(*imageConfig)) string {
	c := emptyConfig(ocispecs.Platform{OS: "linux", Architecture: arch})
	c.Config.Cmd = []string{"/bin/sh"}
	c.RootFS.DiffIDs = []digest.Digest{digest.FromString("layer")}
	c.History = []ocispecs.History{{CreatedBy: "base"}}
	if change != nil {
		change(c)
	}
	data, err := json.Marshal(c)
	if err != nil {
		panic(err)
	}
	return string(data)
}

func newFakeGateway(files map[string]string) *fakeGateway {
	library := "docker.io/library/"
	return &fakeGateway{files: files, images: map[string]string{
		library + "alpine:latest": plainImage("amd64", nil),
		library + "alpine:3.20":   plainImage("amd64", nil),
		library + "busybox:1":     plainImage("amd64", func(c *imageConfig) { c.Author = "busy" }),
		library + "golang:1 amd64": plainImage("amd64", func(c *imageConfig) {
			c.Config.Env = append(c.Config.Env, "GOPATH=/go")
			c.Config.WorkingDir = "/go"
		}),
		library + "multi:latest amd64": plainImage("amd64", nil),
		library + "multi:latest arm64": plainImage("arm64", nil),
		library + "empty:latest": plainImage("amd64", func(c *imageConfig) {
			c.RootFS.DiffIDs, c.History = nil, nil
			c.Config.Labels = map[string]string{"made": "of nothing"}
		}),
		library + "full:latest": plainImage("amd64", func(c *imageConfig) {
			c.Config.Env = []string{"A=1", "B=2"}
			c.Config.User, c.Config.WorkingDir = "app", "/srv"
			c.Config.Entrypoint = []string{"/entry"}
			c.Config.Labels = map[string]string{"from": "base"}
			c.Config.ExposedPorts = map[string]struct{}{"80/tcp": {}}
			c.Config.Shell = []string{"/bin/bash", "-c"}
		}),
		library + "onbuild:latest": plainImage("amd64", func(c *imageConfig) {
			c.Config.OnBuild = []string{"COPY --from=busybox:1 /bin/busybox /bin/", "RUN echo onbuild", "ENV X=y"}
		}),
		library + "badonbuild:latest":                          plainImage("amd64", func(c *imageConfig) { c.Config.OnBuild = []string{"NOPE x"} }),
		library + "app@" + string(digest.FromString("layout")): plainImage("amd64", nil),
	}}
}

// request reads a case: options line by line, and the files.
func request(t *testing.T, a *txtar.Archive) (map[string]string, map[string]string) {
	t.Helper()
	opts, files := map[string]string{}, map[string]string{}
	for _, f := range a.Files {
		switch f.Name {
		case "opts":
			for line := range strings.Lines(string(f.Data)) {
				k, v, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
				if !ok {
					t.Fatalf("option %q has no =", line)
				}
				opts[k] = v
			}
		case "want", "config", "warnings", "error", "meta":
		case "Dockerfile":
			files["dockerfile/Dockerfile"] = string(f.Data)
		case ".dockerignore":
			files["context/.dockerignore"] = string(f.Data)
		default:
			files[f.Name] = string(f.Data)
		}
	}
	return opts, files
}

// outcome is what a case came to, as files of the archive.
func outcome(res *frontend.Result, gw *fakeGateway, err error) []txtar.File {
	if err != nil {
		var b strings.Builder
		list := frontend.SourceErrorsIn(err)
		if len(list) == 0 {
			fmt.Fprintf(&b, "%v\n", err)
		}
		for _, e := range list {
			b.WriteString(e.Snippet() + "error: " + e.Error() + "\n")
		}
		return []txtar.File{{Name: "error", Data: []byte(b.String())}}
	}
	var text, config, meta, warnings strings.Builder
	for _, p := range res.Platforms {
		if p.ID != "" {
			fmt.Fprintf(&text, "# %s\n", p.ID)
			fmt.Fprintf(&config, "# %s\n", p.ID)
		}
		for i := range p.Graph.Sources.Files {
			p.Graph.Sources.Files[i].From = nil // the same in every file, see TestSourceIsTold
		}
		text.WriteString(p.Graph.Text())
		var indented bytes.Buffer
		if err := json.Indent(&indented, p.Config, "", "  "); err != nil {
			panic(err)
		}
		config.WriteString(indented.String() + "\n")
	}
	for _, k := range slices.Sorted(maps.Keys(res.Meta)) {
		if !strings.HasPrefix(k, "containerimage.base.config") {
			fmt.Fprintf(&meta, "%s=%s\n", k, res.Meta[k])
		}
	}
	for _, w := range gw.warnings {
		fmt.Fprintf(&warnings, "%d: %s\n", w.Ranges[0].Start.Line, w.Short)
	}
	out := []txtar.File{{Name: "want", Data: []byte(text.String())}, {Name: "config", Data: []byte(config.String())}}
	if meta.Len() > 0 {
		out = append(out, txtar.File{Name: "meta", Data: []byte(meta.String())})
	}
	if warnings.Len() > 0 {
		out = append(out, txtar.File{Name: "warnings", Data: []byte(warnings.String())})
	}
	return out
}

// TestGolden compares what Dockerfiles become with the golden files: graphs,
// configs and warnings, or errors as a user sees them.
func TestGolden(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) < 40 {
		t.Fatalf("found %d cases, want 40 or more: %v", len(paths), err)
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			opts, files := request(t, a)
			gw := newFakeGateway(files)
			res, err := New().Build(t.Context(), frontend.Request{
				Opts: opts, Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"},
			}, gw)
			if err == nil {
				for _, p := range res.Platforms {
					if err := p.Graph.Verify(); err != nil {
						t.Errorf("graph is not valid: %v", err)
					}
				}
			}
			got := outcome(res, gw, err)
			compare(t, path, a, got)
		})
	}
}

// compare compares an outcome with a golden file, or writes it there.
func compare(t *testing.T, path string, a *txtar.Archive, got []txtar.File) {
	t.Helper()
	golden := []string{"want", "config", "warnings", "error", "meta"}
	if *update {
		kept := slices.DeleteFunc(slices.Clone(a.Files), func(f txtar.File) bool { return slices.Contains(golden, f.Name) })
		a.Files = append(kept, got...)
		if err := os.WriteFile(path, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want := map[string]string{}
	for _, f := range a.Files {
		if slices.Contains(golden, f.Name) {
			want[f.Name] = string(f.Data)
		}
	}
	have := map[string]string{}
	for _, f := range got {
		have[f.Name] = string(f.Data)
	}
	for _, name := range golden {
		if have[name] != want[name] {
			t.Errorf("%s:\n%s\nwant:\n%s", name, have[name], want[name])
		}
	}
}
