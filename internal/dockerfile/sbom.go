package dockerfile

import (
	"context"
	"encoding/csv"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
)

// The arguments by which a Dockerfile has more scanned than its result.
const (
	argScanContext = "BUILDKIT_SBOM_SCAN_CONTEXT"
	argScanStage   = "BUILDKIT_SBOM_SCAN_STAGE"
)

// scan has SBOMs made of the results, if the request asks for them.
func (d *driver) scan(ctx context.Context, res *frontend.Result, lowered []*lowered) error {
	request, err := frontend.SBOMOptions(d.req.Opts)
	if request == nil || err != nil {
		return err
	}
	scanner, err := frontend.NewScanner(ctx, d.gw, *request, d.worker(), d.opts.resolveMode)
	if err != nil {
		return err
	}
	for i := range res.Platforms {
		p := &res.Platforms[i]
		if p.Graph.Root.Vertex == nil {
			continue
		}
		extras, fresh := lowered[i].plan.extras()
		scanner.IgnoreCache = fresh
		p.Attestations = append(p.Attestations, scanner.Scan(platforms.FormatAll(p.Platform), p.Graph.Root, extras))
	}
	return nil
}

// extras are what the file wants scanned beside the result: stages, by name, and
// the context. fresh tells whether one of them is to be made without the cache.
func (l *lowering) extras() (extras map[string]llb.Edge, fresh bool) {
	extras = map[string]llb.Edge{}
	fresh = l.target.ignoreCache
	if l.scansContext() {
		extras["context"] = l.context
	}
	for _, s := range l.stages {
		if s == l.target || s.decl == nil || !l.reached[s] || !l.enabled(argScanStage, s) {
			continue
		}
		extras[s.label] = s.state.edge
		fresh = fresh || s.ignoreCache
	}
	return extras, fresh
}

// scansContext tells whether the file wants the main context scanned.
func (l *lowering) scansContext() bool { return l.enabled(argScanContext, l.target) }

// enabled evaluates an argument that switches something on: a boolean, or the
// names of the stages that it is for.
func (l *lowering) enabled(arg string, s *stage) bool {
	value, _ := l.args.Get(arg)
	if v, ok := s.argValues[arg]; ok {
		value = v
	}
	if on, err := strconv.ParseBool(value); err == nil {
		return on
	}
	names, err := csv.NewReader(strings.NewReader(value)).Read()
	return err == nil && slices.ContainsFunc(names, func(name string) bool { return strings.EqualFold(name, s.label) })
}
