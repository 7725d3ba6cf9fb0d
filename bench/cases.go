package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/kiln-build/kiln/conformance/peer"
)

const (
	mib          = 1 << 20
	contextFiles = 10_000
	contextSize  = 4 << 10
)

// benchCase is a family of rows measured on the same input.
type benchCase struct {
	name   string
	rows   []string // the rows it gives, first that of the timed builds
	rounds int
	// inMemory has all folders of the case in memory, not on the disk.
	inMemory bool
	// bulk says that builds move hundreds of MB, for which memory is made ready (see
	// readyFree). The pause is kept from other cases: the second of two builds would
	// find a daemon that has done what the first has left to do.
	bulk bool
	// prepare makes the round's input, which both engines then get.
	prepare func(*roundRun) error
	run     func(context.Context, *roundRun) error
}

// roundRun is one round of a case on one engine.
type roundRun struct {
	*bench
	c      benchCase
	dir    string // the input's folder
	out    string // where exports go
	nonce  string
	engine *engine
}

func cases() []benchCase {
	list := []benchCase{
		{name: "daemon", rows: []string{"daemon-start", "idle-memory"}, rounds: 7, run: runDaemon},
		{name: "noop-10", rows: []string{"noop-10"}, rounds: 15, prepare: prepareNoop, run: runNoop},
		{name: "seq-run-20", rows: []string{"seq-run-20"}, rounds: 5, prepare: prepareSequential, run: runOnce},
		{name: "par-sleep-20", rows: []string{"par-sleep-20"}, rounds: 5, prepare: prepareParallel, run: runOnce},
		{
			name: "context-10k", rows: []string{"context-10k-first", "context-10k-unchanged", "context-10k-changed"},
			rounds: 5, prepare: prepareContext, run: runContext,
		},
		{name: "file-500m", rows: []string{"file-500m"}, rounds: 6, bulk: true, prepare: prepareBigFile, run: runOnce},
	}
	for _, c := range []string{"gzip", "zstd", "uncompressed"} {
		rows := []string{"export-" + c + "-first", "export-" + c + "-again"}
		list = append(list, benchCase{
			name: "export-" + c, rows: rows, rounds: 4, bulk: true, prepare: prepareExport,
			run: exportRun("type=oci,compression="+c+",dest=", rows),
		})
	}
	for _, typ := range []string{"local", "tar"} {
		rows := []string{"export-" + typ}
		list = append(list, benchCase{
			name: "export-" + typ, rows: rows, rounds: 4, bulk: true, prepare: prepareExport,
			run: exportRun("type="+typ+",dest=", rows),
		})
	}
	return slices.Concat(list, graphCases(), wireCases(), cacheCases(), recordCases(), corpusCases(), mountCases(), frontendCases())
}

// timed builds once and keeps what it took under row. What was written before is on
// the disk by then, whichever engine wrote it: else a build would share the machine
// with the kernel's writing, which begins in the middle of a row or does not by how
// much memory there is.
func (r *roundRun) timed(ctx context.Context, row string, s buildSpec) error {
	syscall.Sync()
	if r.c.bulk {
		if err := readyFree(); err != nil {
			return err
		}
	}
	m, err := r.engine.build(ctx, r.limit, s)
	return r.results.keep(ctx, r.engine, row, m, err)
}

// untimed builds once, to set the scene.
func (r *roundRun) untimed(ctx context.Context, s buildSpec) error {
	_, err := r.engine.build(ctx, r.limit, s)
	return r.results.keep(ctx, r.engine, "", measured{}, err)
}

// dockerfile writes the round's Dockerfile.
func (r *roundRun) dockerfile(lines ...string) error {
	return peer.WriteFiles(r.dir, map[string]string{"Dockerfile": strings.Join(lines, "\n") + "\n"})
}

// spec is a build of the round's input.
func (r *roundRun) spec(output string) buildSpec {
	return buildSpec{Build: peer.Build{Context: r.dir, Output: output}}
}

// runOnce times a build of the prepared input.
func runOnce(ctx context.Context, r *roundRun) error {
	return r.timed(ctx, r.c.rows[0], r.spec(""))
}

// runDaemon restarts the daemon on its root.
func runDaemon(ctx context.Context, r *roundRun) error {
	r.engine.Stop()
	began := time.Now()
	if err := r.engine.Start(ctx); err != nil {
		return err
	}
	r.results.add("daemon-start", "s", r.engine.Name, time.Since(began).Seconds())
	time.Sleep(time.Second) // idle means that its start is over
	rss, err := r.engine.memory("VmRSS")
	if err != nil {
		return err
	}
	r.results.add("idle-memory", "MB", r.engine.Name, float64(rss)/1e6)
	return nil
}

func prepareNoop(r *roundRun) error {
	lines := []string{"FROM base", "ENV N=" + r.nonce, "WORKDIR /w"}
	for i := range 4 {
		lines = append(lines, fmt.Sprintf("RUN echo %d > f%d", i, i), fmt.Sprintf("COPY Dockerfile d%d", i))
	}
	return r.dockerfile(append(lines, "RUN cat f3")...)
}

func runNoop(ctx context.Context, r *roundRun) error {
	if err := r.untimed(ctx, r.spec("")); err != nil {
		return err
	}
	return runOnce(ctx, r)
}

func prepareSequential(r *roundRun) error {
	lines := []string{"FROM base", "ENV N=" + r.nonce}
	for range 20 {
		lines = append(lines, "RUN true")
	}
	return r.dockerfile(lines...)
}

func prepareParallel(r *roundRun) error {
	lines := []string{"FROM base AS common", "ENV N=" + r.nonce}
	last := []string{"FROM scratch"}
	for i := range 20 {
		lines = append(lines, fmt.Sprintf("FROM common AS s%d", i), fmt.Sprintf("RUN sleep 1 && echo %d > /out%d", i, i))
		last = append(last, fmt.Sprintf("COPY --from=s%d /out%d /", i, i))
	}
	return r.dockerfile(append(lines, last...)...)
}

func prepareContext(r *roundRun) error {
	if err := r.dockerfile("FROM scratch", "COPY tree /tree"); err != nil {
		return err
	}
	return writeTree(filepath.Join(r.dir, "tree"), contextFiles, contextSize, r.nonce, false)
}

func runContext(ctx context.Context, r *roundRun) error {
	s := r.spec("")
	for _, row := range r.c.rows[:2] {
		if err := r.timed(ctx, row, s); err != nil {
			return err
		}
	}
	changed := filepath.Join(r.dir, "tree", "d050", "f05000")
	if err := writeRandom(changed, contextSize, random(r.nonce+r.engine.Name)); err != nil {
		return err
	}
	return r.timed(ctx, r.c.rows[2], s)
}

func prepareBigFile(r *roundRun) error {
	if err := r.dockerfile("FROM scratch", "COPY big /big"); err != nil {
		return err
	}
	return writeRandom(filepath.Join(r.dir, "big"), 500*mib, random(r.nonce))
}

// prepareExport makes the content of an image of 500 MB and more.
func prepareExport(r *roundRun) error {
	err := r.dockerfile("FROM base", "COPY big /"+r.nonce+"/big", "COPY small /"+r.nonce+"/small")
	if err != nil {
		return err
	}
	big := filepath.Join(r.dir, "big")
	if err := os.Mkdir(big, 0o755); err != nil {
		return err
	}
	from := random("big files") // the same in every round: what differs is where they go
	for i := range 100 {
		if err := writeRandom(filepath.Join(big, fmt.Sprintf("f%03d", i)), 5*mib, from); err != nil {
			return err
		}
	}
	return writeTree(filepath.Join(r.dir, "small"), 20_000, 600, "small files", true)
}

// exportRun builds without output, and then times exports of what is there.
func exportRun(output string, rows []string) func(context.Context, *roundRun) error {
	return func(ctx context.Context, r *roundRun) error {
		if err := r.untimed(ctx, r.spec("")); err != nil {
			return err
		}
		for i, row := range rows {
			dest := fmt.Sprintf("%s-%d", r.out, i)
			if err := r.timed(ctx, row, r.spec(output+dest)); err != nil {
				return err
			}
		}
		return nil
	}
}
