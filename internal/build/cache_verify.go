package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/solver"
)

// optVerify is the option that says which share of hits to execute again.
const optVerify = "cache-verify"

// verifier executes a share of hits again and tells what differs. It is a
// solver.Verifier.
type verifier struct {
	br    *Bridge
	share float64 // 0 to 1
}

// verifyShare reads the option, from 0 to 1, which frontends are not to see.
func verifyShare(opts map[string]string) (float64, map[string]string, error) {
	text, ok := opts[optVerify]
	if !ok {
		return 0, opts, nil
	}
	percent, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
	if err != nil || !(percent >= 0 && percent <= 100) {
		return 0, nil, fmt.Errorf("%s=%q: expected a share of the hits, from 0%% to 100%%", optVerify, text)
	}
	opts = maps.Clone(opts)
	delete(opts, optVerify)
	return percent / 100, opts, nil
}

// newVerifier returns what executes a share of hits again, or nil for none.
func newVerifier(br *Bridge, share float64) solver.Verifier {
	if share == 0 {
		return nil
	}
	return &verifier{br, share}
}

// Wants chooses by chance.
func (v *verifier) Wants(solver.Key) bool { return rand.Float64() < v.share }

// mostDiffering is how many paths are told of one step.
const mostDiffering = 100

// Compare tells as a step of its own what differs, and warns.
func (v *verifier) Compare(ctx context.Context, vertex solver.Vertex, remembered, again []solver.Result, failed error) {
	sink := v.br.req.Sink
	// The vertex tells whatever is wrong, and the build goes on.
	_ = progress.Run(session.WithGroup(ctx, v.br), sink, "verifying the cache: "+vertex.Name(), func(ctx context.Context) error {
		if failed != nil {
			return fmt.Errorf("execute again: %w", failed)
		}
		var differ []string
		for i := range min(len(remembered), len(again)) {
			if remembered[i] == (solver.Absent{}) {
				continue
			}
			paths, err := v.differences(ctx, remembered[i], again[i])
			if err != nil {
				return fmt.Errorf("compare: %w", err)
			}
			differ = append(differ, paths...)
		}
		if len(differ) == 0 {
			return nil
		}
		step := progress.StepFrom(ctx)
		for _, p := range differ[:min(len(differ), mostDiffering)] {
			fmt.Fprintf(step.Log(1), "differs: %s\n", p)
		}
		sink.Emit(progress.Event{Warning: &progress.Warning{
			Vertex: vertex.Digest(), Level: 1,
			Short: fmt.Appendf(nil, "cache: %s gives another result when it is executed again: %d paths differ, such as %s", vertex.Name(), len(differ), differ[0]),
		}})
		return nil
	})
}

func (v *verifier) differences(ctx context.Context, a, b solver.Result) ([]string, error) {
	was, ok1 := a.(*layer.Ref)
	now, ok2 := b.(*layer.Ref)
	if !ok1 || !ok2 {
		return nil, nil // values are part of no file system
	}
	before, err := v.tree(ctx, was)
	if err != nil {
		return nil, err
	}
	defer before.close()
	after, err := v.tree(ctx, now)
	if err != nil {
		return nil, err
	}
	defer after.close()
	var differ []string
	for _, p := range slices.Sorted(maps.Keys(before.files)) {
		same, err := before.same(after, p)
		if err != nil {
			return nil, err
		}
		if !same {
			differ = append(differ, "/"+p)
		}
		delete(after.files, p)
	}
	for _, p := range slices.Sorted(maps.Keys(after.files)) {
		differ = append(differ, "/"+p)
	}
	return differ, nil
}

// tree is a result's files.
type tree struct {
	root    *os.Root
	release func() error
	files   map[string]fs.FileInfo
}

func (v *verifier) tree(ctx context.Context, r *layer.Ref) (*tree, error) {
	dir, release, err := v.br.builder.Worker.Layers.Mount(ctx, r)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, errors.Join(err, release())
	}
	t := &tree{root, release, map[string]fs.FileInfo{}}
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		info, err := d.Info()
		t.files[path] = info
		return err
	})
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// close unmounts. What cannot be unmounted goes at the daemon's next start.
func (t *tree) close() { _ = errors.Join(t.root.Close(), t.release()) }

// same compares what a path is in two trees. Times are not what a step is for.
func (t *tree) same(o *tree, path string) (bool, error) {
	a, b := t.files[path], o.files[path]
	if b == nil || a.Mode() != b.Mode() || a.Mode().IsRegular() && a.Size() != b.Size() {
		return false, nil
	}
	x, ok1 := a.Sys().(*syscall.Stat_t)
	y, ok2 := b.Sys().(*syscall.Stat_t)
	if !ok1 || !ok2 || x.Uid != y.Uid || x.Gid != y.Gid || x.Rdev != y.Rdev {
		return false, nil
	}
	if x.Dev == y.Dev && x.Ino == y.Ino {
		return true, nil // one file of both
	}
	switch {
	case a.Mode()&fs.ModeSymlink != 0:
		l, err := t.root.Readlink(path)
		m, err2 := o.root.Readlink(path)
		return l == m, errors.Join(err, err2)
	case a.Mode().IsRegular():
		return t.sameBytes(o, path)
	}
	return true, nil
}

func (t *tree) sameBytes(o *tree, path string) (bool, error) {
	f, err := t.root.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	g, err := o.root.Open(path)
	if err != nil {
		return false, err
	}
	defer g.Close()
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(f, x)
		m, err2 := io.ReadFull(g, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if err != nil || err2 != nil {
			end := func(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }
			if end(err) && end(err2) {
				return true, nil
			}
			return false, errors.Join(err, err2)
		}
	}
}
