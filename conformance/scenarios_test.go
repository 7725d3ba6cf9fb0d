package conformance

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/conformance/peer"
)

// scenario is a build, a change, and the build once more. What runs the second
// time is to be what BuildKit runs, or less for a reason that is given.
type scenario struct {
	name   string
	files  map[string]string // in place of those of stages; "" leaves one out
	change map[string]string // for the second build; "" removes
	mode   map[string]fs.FileMode
	time   map[string]time.Time
	links  [2]map[string]string // symbolic links, of both builds
	args   [2][]string          // of buildctl, of both builds
	twice  bool                 // the second build is two at once
	fewer  string               // why Kiln runs fewer steps than BuildKit
}

// stages is what most scenarios build: a stage that makes a tool, one that
// compiles, and a result of both.
func stages() map[string]string {
	return map[string]string{
		"Dockerfile": `FROM base AS tool
COPY tool.sh /tool.sh
RUN sh /tool.sh > /tool
FROM base AS app
ARG VERSION=1
COPY src /src
RUN cat /src/a > /made
ENV MODE=x
RUN echo $VERSION $MODE > /version
FROM base
COPY --from=tool /tool /tool
COPY --from=app /made /version /
RUN cat /tool /made > /last
`,
		"tool.sh": "echo tool\n", "src/a": "a\n", "src/b": "b\n", "unused": "1\n",
	}
}

// edited is the project's Dockerfile with some text replaced by other.
func edited(pairs ...string) string {
	text := stages()["Dockerfile"]
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(text, pairs[i]) {
			panic("the project has no " + pairs[i]) // a mistake in the table below
		}
		text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
	}
	return text
}

func dockerfile(text string) map[string]string { return map[string]string{"Dockerfile": text} }

// change is a scenario whose Dockerfile changes between the builds.
func change(name, before, after string) scenario {
	return scenario{name: name, files: dockerfile(before), change: dockerfile(after)}
}

func fewer(why string, s scenario) scenario {
	s.fewer = why
	return s
}

func opts(first, second string) [2][]string {
	both := [2][]string{}
	for i, o := range []string{first, second} {
		for f := range strings.FieldsSeq(o) {
			both[i] = append(both[i], "--opt", f)
		}
	}
	return both
}

// write makes the scenario's folder as it is at the first or the second build.
func (s scenario) write(t *testing.T, dir string, build int) {
	t.Helper()
	if build == 0 {
		all := stages()
		for name, text := range s.files {
			if all[name] = text; text == "" {
				delete(all, name)
			}
		}
		// Nothing is to be known from another scenario.
		all["src/scenario"] = s.name
		all["tool.sh"] += "# " + s.name + "\n"
		if err := peer.WriteFiles(dir, all); err != nil {
			t.Fatal(err)
		}
	} else {
		written := map[string]string{}
		for name, text := range s.change {
			if name == "tool.sh" {
				text += "# " + s.name + "\n"
			}
			if text != "" {
				written[name] = text
			} else if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := peer.WriteFiles(dir, written); err != nil {
			t.Fatal(err)
		}
		for name, mode := range s.mode {
			if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
				t.Fatal(err)
			}
		}
		for name, at := range s.time {
			if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, to := range s.links[build] {
		_ = os.Remove(filepath.Join(dir, name)) // there is none at first
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// try builds with the real buildctl and returns the steps that ran.
func (s scenario) try(t *testing.T, d *peer.Daemon, dir string, build int, more ...string) []string {
	t.Helper()
	args := append(slices.Clone(s.args[build]), more...)
	times := 1
	if s.twice && build == 1 {
		times = 2
	}
	texts := make([]string, times)
	errs := make([]error, times)
	var all sync.WaitGroup
	for i := range times {
		all.Go(func() { texts[i], errs[i] = tryBuild(t.Context(), d, dir, args) })
	}
	all.Wait()
	var steps []string
	for i, text := range texts {
		if errs[i] != nil {
			t.Fatalf("build %d on %s: %v\n%s", build+1, d.Name, errs[i], text)
		}
		steps = append(steps, carriedOut(t, text)...)
	}
	slices.Sort(steps)
	return slices.Compact(steps)
}

// carriedOut reads a build's raw progress. A step that was cached and then
// pulled, for another one to read, counts as cached.
func carriedOut(t *testing.T, text string) (steps []string) {
	t.Helper()
	type vertex struct {
		Name      string
		Completed *time.Time
		Cached    bool
	}
	done := map[string]bool{} // by name: it was cached
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "{") {
			continue
		}
		var s struct{ Vertexes []vertex }
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			t.Fatalf("read progress %q: %v", line, err)
		}
		for _, v := range s.Vertexes {
			if v.Completed != nil && regexp.MustCompile(`\] (RUN|COPY|ADD|WORKDIR) `).MatchString(v.Name) {
				// Platforms that need the same step give it one of their names.
				name := regexp.MustCompile(`^\[linux/\w+ `).ReplaceAllString(v.Name, "[")
				done[name] = done[name] || v.Cached
			}
		}
	}
	for name, cached := range done {
		if !cached {
			steps = append(steps, name)
		}
	}
	return steps
}

func tryBuild(ctx context.Context, d *peer.Daemon, dir string, more []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	args := append(shared.tools.BuildArgs(d, shared.base, peer.Build{Context: dir}), more...)
	args = append(args, "--progress=rawjson")
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = d.Env()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// forget has a daemon drop all that it keeps. BuildKit may hold a file system of a
// build that has just ended for a moment more, which a prune then leaves.
func forget(t *testing.T, d *peer.Daemon) {
	t.Helper()
	for range 300 {
		command(t, d, shared.tools.Buildctl, "--addr", d.Addr(), "prune", "--all")
		if regexp.MustCompile(`Total:\s+0B`).MatchString(command(t, d, shared.tools.Buildctl, "--addr", d.Addr(), "du")) {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s still keeps something after it was told to forget all", d.Name)
}

// allow holds what Kiln ran against what BuildKit did.
func allow(t *testing.T, what string, kiln, buildkit []string, fewer string) {
	t.Helper()
	for _, step := range kiln {
		if !slices.Contains(buildkit, step) {
			t.Errorf("%s: Kiln ran %q again, BuildKit did not; Kiln %q, BuildKit %q", what, step, kiln, buildkit)
		}
	}
	if len(kiln) < len(buildkit) && fewer == "" {
		t.Errorf("%s: Kiln ran %q, BuildKit %q: say in the table why fewer are right", what, kiln, buildkit)
	}
}

// each calls f with both daemons at once.
func each(kiln, buildkit *peer.Daemon, f func(k int, d *peer.Daemon)) {
	var both sync.WaitGroup
	for k, d := range []*peer.Daemon{kiln, buildkit} {
		both.Go(func() { f(k, d) })
	}
	both.Wait()
}

// TestCacheScenarios has both daemons build, and build again after a change: with
// their own caches, and with each other's on daemons that know nothing, from a registry
// and in another way that has its turn.
func TestCacheScenarios(t *testing.T) {
	where := distribution(t)
	all := scenarios()
	if len(all) < 60 {
		t.Errorf("there are %d scenarios, want at least 60", len(all))
	}
	// A scenario's next turn has daemons of its own, for after a prune BuildKit still knows
	// what led to a step.
	var kiln, buildkit []*peer.Daemon
	for i, s := range all {
		for turn, ways := range turnsToShare(waysToShare(where, t.TempDir(), i), i) {
			if turn == len(kiln) {
				kiln, buildkit = append(kiln, fresh(t, "kiln")), append(buildkit, fresh(t, "buildkit"))
			}
			t.Run(s.name, func(t *testing.T) { s.run(t, i, kiln[turn], buildkit[turn], where, ways) })
		}
	}
}

// run is one scenario, whose cache goes by a registry and by other ways.
func (s scenario) run(t *testing.T, i int, kiln, buildkit *peer.Daemon, where string, others []wayToShare) {
	dir := t.TempDir()
	s.write(t, dir, 0)
	ref := fmt.Sprintf("type=registry,ref=%s/DAEMON:s%d", where, i)
	ways := append([]wayToShare{{"registry max", "--export-cache " + ref + ",mode=max", ref}}, others...)
	each(kiln, buildkit, func(_ int, d *peer.Daemon) {
		for _, together := range builds(ways) {
			forget(t, d)
			s.try(t, d, dir, 0, export(together, d)...)
		}
	})
	s.write(t, dir, 1)
	var own [2][]string
	each(kiln, buildkit, func(k int, d *peer.Daemon) { own[k] = s.try(t, d, dir, 1) })
	allow(t, "own cache", own[0], own[1], s.fewer)
	for _, w := range ways {
		s.handOver(t, dir, kiln, buildkit, w)
	}
}
