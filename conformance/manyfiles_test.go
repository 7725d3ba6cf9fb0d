package conformance

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	contentlocal "github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"

	"github.com/kiln-build/kiln/conformance/peer"
)

const (
	// manyFiles are more than what a sender and a receiver of files that wait
	// for each other hold in their queues: with BuildKit's own daemon, three of
	// five such exports were seen to stop for good.
	manyFiles = 20_000
	// exportLimit is hundreds of times what an export takes: one that is not done
	// by then hangs.
	exportLimit = 5 * time.Minute
	// exportRuns is how often each client exports where KILN_EXPORT_RUNS does
	// not say: what fits in a minute. `make conformance KILN_EXPORT_RUNS=20` is
	// the number that is asked of a release.
	exportRuns = 5
)

const manyFilesDockerfile = `FROM base AS made
RUN mkdir -p /out/d && i=0; while [ $i -lt 20000 ]; do echo $i > /out/d/$i; i=$((i+1)); done
FROM scratch
COPY --from=made /out /
`

// TestManyFilesNeverHang has each of BuildKit's clients export many files to a
// folder, again and again, and counts how often it hangs.
func TestManyFilesNeverHang(t *testing.T) {
	runs := exportRuns
	if text := os.Getenv("KILN_EXPORT_RUNS"); text != "" {
		var err error
		if runs, err = strconv.Atoi(text); err != nil || runs < 1 {
			t.Fatalf("KILN_EXPORT_RUNS is %q, want a number of runs", text)
		}
	}
	files := t.TempDir()
	if err := peer.WriteFiles(files, map[string]string{"Dockerfile": manyFilesDockerfile}); err != nil {
		t.Fatal(err)
	}
	for name, export := range map[string]func(context.Context, string) error{
		"buildctl": func(ctx context.Context, dest string) error {
			args := shared.tools.BuildArgs(shared.kiln, shared.base, peer.Build{Context: files, Output: "type=local,dest=" + dest})
			cmd := exec.CommandContext(ctx, args[0], args[1:]...)
			cmd.WaitDelay, cmd.Env = 5*time.Second, shared.kiln.Env()
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			if err != nil {
				t.Logf("buildctl: %s", out.Bytes())
			}
			return err
		},
		"library": exportByLibrary,
	} {
		t.Run(name, func(t *testing.T) {
			hung, longest := 0, time.Duration(0)
			for i := range runs {
				dest := filepath.Join(t.TempDir(), "out")
				ctx, cancel := context.WithTimeout(t.Context(), exportLimit)
				start := time.Now()
				err := export(ctx, dest)
				longest = max(longest, time.Since(start))
				if errors.Is(ctx.Err(), context.DeadlineExceeded) {
					hung++
					t.Errorf("run %d hung", i)
				} else if err != nil {
					t.Errorf("run %d: %v", i, err)
				}
				cancel()
				entries, err := os.ReadDir(filepath.Join(dest, "d"))
				if err != nil || len(entries) != manyFiles {
					t.Errorf("run %d left %d files, want %d: %v", i, len(entries), manyFiles, err)
				}
				if err := os.RemoveAll(dest); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d of %d exports hung; the longest took %v", hung, runs, longest.Round(time.Millisecond))
		})
	}
}

// exportByLibrary exports many files with BuildKit's Go library.
func exportByLibrary(ctx context.Context, dest string) error {
	c, err := client.New(ctx, shared.kiln.Addr())
	if err != nil {
		return err
	}
	defer c.Close()
	store, err := contentlocal.NewStore(shared.base.Dir)
	if err != nil {
		return err
	}
	made := base().Run(llb.Args([]string{"/bin/sh", "-c", "mkdir -p /out/d; i=0; while [ $i -lt 20000 ]; do echo $i > /out/d/$i; i=$((i+1)); done"}))
	def, err := llb.Scratch().File(llb.Copy(made.Root(), "/out/", "/", &llb.CopyInfo{CopyDirContentsOnly: true})).Marshal(ctx)
	if err != nil {
		return err
	}
	_, err = c.Solve(ctx, def, client.SolveOpt{
		OCIStores: map[string]content.Store{"base": store},
		Exports:   []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: dest}},
	}, nil)
	return err
}
