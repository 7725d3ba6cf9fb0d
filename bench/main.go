// Command bench races Kiln and BuildKit on the same inputs, side by side in one
// run, and prints medians and ratios.
//
// It builds buildkitd and buildctl from their module, starts both daemons with
// roots of their own and the same container runtime, and lets them take turns.
// A full run, or one with -keep, writes what each case gave to RESULTS.md as soon
// as it is known; every run writes out/latest.json. Run it with `make bench`, as
// root, on a machine that does nothing else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/conformance/peer"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line's.
type options struct {
	kiln, runtime string
	only          []string
	rounds        int
	limit         time.Duration
	peer, cpu     bool
	keep          bool // the rows, in RESULTS.md
}

func run(ctx context.Context) error {
	var o options
	var only string
	flag.StringVar(&o.kiln, "kiln", "../bin/kiln", "the kiln program")
	flag.StringVar(&o.runtime, "runtime", "../bin/kiln-runc", "the container runtime of both daemons")
	flag.StringVar(&only, "only", "", "run only these cases or rows, separated by commas")
	flag.IntVar(&o.rounds, "rounds", 0, "rounds a case; 0 leaves it to each case")
	flag.DurationVar(&o.limit, "limit", 2*time.Minute, "time after which a build counts as hung")
	flag.BoolVar(&o.cpu, "cpu", false, "add rows of processor time, which says more than the clock where the machine is busy")
	flag.BoolVar(&o.keep, "keep", false, "put the rows of a run with -only into RESULTS.md, as those of a full run are")
	flag.BoolVar(&o.peer, "peer-only", false, "run BuildKit alone, to try the cases themselves")
	flag.Parse()
	if only != "" {
		o.only = strings.Split(only, ",")
	}
	o.keep = (o.keep || len(o.only) == 0) && !o.peer && !o.cpu
	for _, p := range []*string{&o.kiln, &o.runtime} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	picked, err := pick(cases(), o.only)
	if err != nil {
		return err
	}
	tools, err := peer.BuildTools(ctx, filepath.Join("..", "conformance"), filepath.Join("out", "bin"))
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp("", "kiln-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := spread(tmp); err != nil {
		return err
	}
	b := &bench{options: o, tools: tools, tmp: tmp, results: newResults(o.cpu)}
	if b.base, err = peer.MakeBase(filepath.Join(tmp, "base")); err != nil {
		return fmt.Errorf("make base image: %w", err)
	}
	for _, c := range picked {
		if err := b.runCase(ctx, c); err != nil {
			return fmt.Errorf("case %s: %w", c.name, err)
		}
		if !o.keep {
			continue
		}
		if err := keepRows(b.results.lines(), cases()); err != nil {
			return err
		}
	}
	if err := b.results.write(os.Stdout); err != nil {
		return err
	}
	if n := len(b.results.failures); n > 0 {
		return fmt.Errorf("%d builds failed, the first: %s", n, b.results.failures[0])
	}
	return nil
}

// pick chooses the cases named by only, or all.
func pick(all []benchCase, only []string) ([]benchCase, error) {
	if len(only) == 0 {
		return all, nil
	}
	var picked []benchCase
	known := map[string]bool{}
	for _, c := range all {
		names := append([]string{c.name}, c.rows...)
		for _, n := range names {
			known[n] = true
		}
		if slices.ContainsFunc(names, func(n string) bool { return slices.Contains(only, n) }) {
			picked = append(picked, c)
		}
	}
	for _, name := range only {
		if !known[name] {
			return nil, fmt.Errorf("no case %q; there are %s", name, strings.Join(caseNames(all), ", "))
		}
	}
	return picked, nil
}

func caseNames(all []benchCase) (names []string) {
	for _, c := range all {
		names = append(names, c.name)
	}
	return names
}

// bench is one run of the program.
type bench struct {
	options
	tools   peer.Tools
	tmp     string
	base    peer.Base
	results *results
	nonces  int
}

// nonce returns a value that no build of this run has seen.
func (b *bench) nonce() string {
	b.nonces++
	return fmt.Sprintf("n%d-%d", os.Getpid(), b.nonces)
}

// runCase runs all rounds of a case on daemons of its own.
func (b *bench) runCase(ctx context.Context, c benchCase) (err error) {
	dir := filepath.Join(b.tmp, c.name)
	engines := []*engine{
		{peer.NewKiln(b.kiln, b.base, filepath.Join(dir, kilnName)), b.tools.Buildctl},
		{peer.NewBuildKit(b.tools, b.runtime, b.base, filepath.Join(dir, buildkitName)), b.tools.Buildctl},
	}
	if b.peer {
		engines = engines[1:]
	}
	defer os.RemoveAll(dir)
	if err := forgetRemoved(); err != nil {
		return err
	}
	if err := makeSpread(dir); err != nil {
		return err
	}
	if c.inMemory {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mount memory at %s: %w", dir, err)
		}
		defer func() { err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH)) }()
	}
	for _, e := range engines {
		if err := e.Start(ctx); err != nil {
			return err
		}
		defer e.Stop()
		if err := b.warmUp(ctx, e, dir); err != nil {
			return err
		}
	}
	rounds := c.rounds
	if b.rounds > 0 {
		rounds = b.rounds
	}
	for round := range rounds {
		in := filepath.Join(dir, fmt.Sprintf("in%d", round))
		if err := makeSpread(in); err != nil {
			return err
		}
		r := &roundRun{bench: b, c: c, dir: in, nonce: b.nonce()}
		if c.prepare != nil {
			if err := c.prepare(r); err != nil {
				return fmt.Errorf("prepare: %w", err)
			}
		}
		for i := range engines {
			e := engines[(i+round)%len(engines)] // take turns in going first
			// What another wrote is not this one's to share the disk with, nor what it
			// still does the processors.
			unix.Sync()
			if err := rest(engines); err != nil {
				return err
			}
			r.engine = e
			r.out = filepath.Join(in, "out-"+e.Name)
			if err := c.run(ctx, r); err != nil {
				return err
			}
		}
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", c.name, b.results.summary(c.rows))
	return nil
}

// warmUp has the base image in the engine's store, and everything that an
// engine does once, done.
func (b *bench) warmUp(ctx context.Context, e *engine, dir string) error {
	in := filepath.Join(dir, "warm-"+e.Name)
	if err := peer.WriteFiles(in, map[string]string{"Dockerfile": "FROM base\nRUN true\n"}); err != nil {
		return err
	}
	_, err := e.build(ctx, b.limit, buildSpec{Build: peer.Build{Context: in}})
	if err != nil {
		return fmt.Errorf("warm up %s: %w", e.Name, err)
	}
	return nil
}
