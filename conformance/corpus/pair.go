package corpus

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/kiln-build/kiln/conformance/peer"
)

// Paths are where things are.
type Paths struct {
	Kiln, Runtime string // programs
	Peers         string // a folder for BuildKit's programs
	Conformance   string // the folder of the conformance tests
	Dir           string // for what is made
}

// Pair is a daemon of each kind, with the corpus.
type Pair struct {
	*Corpus
	Kiln, BuildKit *Builder
	// bothKiln says that Kiln's daemon is in BuildKit's place, too, so that an
	// error is right as well if it has the very words of the other side's.
	bothKiln bool
	closers  []func()
}

// Close ends what Start started.
func (p *Pair) Close() {
	for i := len(p.closers) - 1; i >= 0; i-- {
		p.closers[i]()
	}
}

// Start reads the corpus and starts both daemons.
func Start(ctx context.Context, paths Paths) (pair *Pair, err error) {
	p := &Pair{}
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	tools, err := peer.BuildTools(ctx, paths.Conformance, paths.Peers)
	if err != nil {
		return nil, err
	}
	if p.Corpus, err = Open(ctx, paths.Conformance, paths.Dir); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, p.Corpus.Close)
	config, err := daemonConfig(paths.Dir)
	if err != nil {
		return nil, err
	}
	// The corpus has bases of its own, so that the daemons' clients need none.
	kiln := peer.NewKiln(paths.Kiln, peer.Base{}, filepath.Join(paths.Dir, "kiln"))
	buildkit := peer.NewBuildKit(tools, paths.Runtime, peer.Base{}, filepath.Join(paths.Dir, "buildkit"))
	kiln.Config, buildkit.Config = config, config
	if p.Kiln, err = p.start(ctx, kiln); err != nil {
		return nil, err
	}
	p.BuildKit, err = p.start(ctx, buildkit)
	return p, err
}

// daemonConfig is the configuration of daemons that allow all that cases ask for.
func daemonConfig(dir string) (string, error) {
	devices := filepath.Join(dir, "cdi")
	return fmt.Sprintf("insecure-entitlements = [\"network.host\", \"security.insecure\", \"device\"]\n[cdi]\nspecDirs = [%q]\n", devices),
		peer.WriteFiles(devices, map[string]string{"corpus.json": device})
}

// device is a device in the form of the Container Device Interface.
const device = `{"cdiVersion": "0.6.0", "kind": "corpus.example/device", "devices": [{"name": "one",
	"annotations": {"org.mobyproject.buildkit.device.autoallow": "true"},
	"containerEdits": {"env": ["DEVICE=one"]}}]}`

func (p *Pair) start(ctx context.Context, d *peer.Daemon) (*Builder, error) {
	if err := d.Start(ctx); err != nil {
		return nil, err
	}
	p.closers = append(p.closers, d.Stop)
	b, err := p.Connect(ctx, d.Addr())
	if err != nil {
		return nil, err
	}
	p.closers = append(p.closers, func() { _ = b.Close() })
	return b, nil
}

// Verdict is in what the daemons differ about a case.
type Verdict struct {
	Diffs []string
	Err   error // the case could not be judged
}

// Judge builds cases on both daemons, twice each, and sends a verdict for each
// in their order. Neither daemon builds two at once: steps that builds share
// at the same time would be told of under either's names.
func (p *Pair) Judge(ctx context.Context, cases []*Case) <-chan Verdict {
	type made struct {
		outcomes [2]*Outcome
		err      error
	}
	build := func(b *Builder) <-chan made {
		out := make(chan made, len(cases))
		go func() {
			defer close(out)
			for _, c := range cases {
				outcomes, err := b.twice(ctx, c)
				out <- made{outcomes, err}
			}
		}()
		return out
	}
	verdicts := make(chan Verdict)
	go func() {
		defer close(verdicts)
		theirs := build(p.BuildKit)
		ours := build(p.Kiln)
		for _, c := range cases {
			k, b := <-ours, <-theirs
			v := Verdict{Err: errors.Join(k.err, b.err)}
			if v.Err == nil {
				v.Diffs = p.compare(c, k.outcomes, b.outcomes)
			}
			verdicts <- v
		}
	}()
	return verdicts
}

// compare says in what the outcomes of a case differ. Where Kiln is on both sides,
// its words stand for BuildKit's if it is the daemon, not the frontend, that
// fails, and what is known to differ by the image has to.
func (p *Pair) compare(c *Case, kiln, other [2]*Outcome) []string {
	if !p.bothKiln {
		return Compare(c, kiln, other)
	}
	expected := *c
	if own, err := kiln[0].Err, other[0].Err; c.Fails != "" && own != nil && err != nil {
		// Kiln's frontend puts the place before what the daemon says.
		if said := strings.TrimPrefix(err.Error(), "failed to solve: "); strings.HasSuffix(own.Error(), said) {
			expected.Fails = said
		}
	}
	diffs := Compare(&expected, kiln, other)
	if !slices.Contains(c.Differs, "image") {
		return diffs
	}
	if len(diffs) == 0 {
		return []string{"it is the same by the image, of which the options say that it differs"}
	}
	return nil
}

func (b *Builder) twice(ctx context.Context, c *Case) (outcomes [2]*Outcome, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	for i := range outcomes {
		if outcomes[i], err = b.Build(ctx, c, i == 0); err != nil {
			return outcomes, err
		}
		if i == 0 && outcomes[0].Err != nil {
			return outcomes, nil
		}
	}
	return outcomes, outcomes[1].Err
}
