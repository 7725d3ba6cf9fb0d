package conformance

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"

	"github.com/kiln-build/kiln/conformance/peer"
)

// TestStatus builds one Dockerfile twice on either daemon and compares what
// clients are told: the steps, what is cached, the output, and its order.
func TestStatus(t *testing.T) {
	dir := t.TempDir()
	if err := peer.WriteFiles(dir, map[string]string{
		"Dockerfile": "FROM base AS first\nRUN echo said by first && echo loudly >&2\nCOPY file /copied\n" +
			"FROM base\nCOPY --from=first /copied /from\nRUN cat /from\n",
		"file": fmt.Sprint("content ", time.Now()),
	}); err != nil {
		t.Fatal(err)
	}
	var seen [2][2]statusLog
	for i, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		for n, round := range []string{"cold", "warm"} {
			t.Run(d.Name+"/"+round, func(t *testing.T) { seen[i][n] = buildFile(t, d, dir) })
		}
	}
	if t.Failed() {
		return
	}
	for n, round := range []string{"cold", "warm"} {
		kiln, buildkit := seen[0][n].summary(), seen[1][n].summary()
		if !slices.Equal(kiln, buildkit) {
			t.Errorf("%s: kiln tells of\n%s\nbuildkit of\n%s", round, strings.Join(kiln, "\n"), strings.Join(buildkit, "\n"))
		}
	}
}

// statusLog is what a client was told, step by step.
type statusLog struct {
	order    []digest.Digest
	vertices map[digest.Digest]*client.Vertex
	// lax is of BuildKit's daemon, which now and then calls a step cached before
	// it says that it ended.
	lax    bool
	output map[digest.Digest]*[3]string // by stream
}

// stepOf is the number of a step among all of its stage. BuildKit counts an
// image that is a named context in the latter and not in the former.
var stepOf = regexp.MustCompile(` ?[0-9]+/[0-9]+\]`)

// summary is what must be the same, whichever daemon tells it.
func (l statusLog) summary() (lines []string) {
	for _, d := range l.order {
		v := l.vertices[d]
		out := l.output[d]
		if out == nil {
			out = &[3]string{}
		}
		// Kiln says that an image is cached that was not read for the sake of
		// steps that were; BuildKit says so of some kinds of images only.
		cached := v.Cached && !strings.HasPrefix(v.Name, "[context ")
		lines = append(lines, fmt.Sprintf("%s cached=%v error=%q output=%q", stepOf.ReplaceAllString(v.Name, "]"), cached, v.Error, *out))
	}
	slices.Sort(lines) // which of two steps is told first is chance
	return lines
}

// buildFile builds a folder's Dockerfile and checks each thing that is told
// against what was told before.
func buildFile(t *testing.T, d *peer.Daemon, dir string) statusLog {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	c := dial(ctx, t, d)
	defer c.Close()
	fs, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(t.TempDir() + "/out.tar")
	if err != nil {
		t.Fatal(err)
	}
	l := statusLog{lax: d == shared.buildkit, vertices: map[digest.Digest]*client.Vertex{}, output: map[digest.Digest]*[3]string{}}
	ch := make(chan *client.SolveStatus)
	done := make(chan struct{})
	go func() {
		for s := range ch {
			l.add(t, s)
		}
		close(done)
	}()
	_, err = c.Solve(ctx, nil, client.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: map[string]string{"context:base": "oci-layout://base@" + shared.base.Digest},
		LocalMounts:   map[string]fsutil.FS{"context": fs, "dockerfile": fs},
		OCIStores:     baseStores(t),
		Exports:       []client.ExportEntry{{Type: client.ExporterTar, Output: func(map[string]string) (io.WriteCloser, error) { return out, nil }}},
	}, ch)
	if err != nil {
		t.Fatal(err)
	}
	select { // the end of the news comes with the answer, not when clients lose patience
	case <-done:
	case <-time.After(2 * time.Second):
		t.Error("two seconds after the answer there is no end of news")
		<-done
	}
	for _, d := range l.order {
		if v := l.vertices[d]; v.Started != nil && v.Completed == nil {
			t.Errorf("%s began and did not end", v.Name)
		}
	}
	return l
}

func (l *statusLog) add(t *testing.T, s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		old := l.vertices[v.Digest]
		if old == nil {
			l.order = append(l.order, v.Digest)
		}
		l.vertices[v.Digest] = v
		switch {
		case v.Completed != nil && v.Started == nil:
			t.Errorf("%s ended and did not begin", v.Name)
		case v.Completed != nil && v.Completed.Before(*v.Started):
			t.Errorf("%s ended before it began", v.Name)
		case v.Cached && v.Completed == nil && !l.lax:
			t.Errorf("%s is cached and did not end", v.Name)
		case old != nil && old.Name != v.Name:
			t.Errorf("%s is now %s", old.Name, v.Name)
		}
		for _, in := range v.Inputs {
			if l.vertices[in] == nil && v.Started != nil {
				t.Errorf("%s began before its input %s was told of", v.Name, in)
			}
		}
	}
	for _, st := range s.Statuses {
		if v := l.vertices[st.Vertex]; v == nil || v.Started == nil {
			t.Errorf("task %s is part of a step that has not begun: %v", st.ID, v)
		}
	}
	for _, m := range s.Logs {
		if v := l.vertices[m.Vertex]; v == nil || v.Started == nil {
			t.Errorf("output %q is that of a step that has not begun: %v", m.Data, v)
		}
		if l.output[m.Vertex] == nil {
			l.output[m.Vertex] = &[3]string{}
		}
		l.output[m.Vertex][m.Stream] += string(m.Data)
	}
}
