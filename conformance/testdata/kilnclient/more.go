package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// localCache exports a cache into a directory, prunes the daemon's, and imports it.
func localCache(ctx context.Context, s *suite) (any, error) {
	dir := filepath.Join(s.dir, "cache")
	var told []string
	for range 2 {
		opt := client.SolveOpt{
			Attach:       s.attach(),
			CacheExports: []client.CacheEntry{{Type: "local", Attrs: map[string]string{"dest": dir, "mode": "max"}}},
			CacheImports: []client.CacheEntry{{Type: "local", Attrs: map[string]string{"src": dir}}},
		}
		var err error
		if opt.Definition, err = marshal(ctx, s.base().Run(llb.Shlex(`sh -c "echo running; echo cached > /out"`)).Root()); err != nil {
			return nil, err
		}
		def := opt.Definition
		var seen names
		result, err := s.Build(ctx, opt, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
			return g.Solve(ctx, client.SolveRequest{Definition: def, CacheImports: g.BuildOpts().CacheImports, Evaluate: true})
		}, &seen)
		if err != nil {
			return nil, err
		}
		told = append(told, fmt.Sprint(result.Response["cache.manifest"] != "", strings.Contains(seen.logs, "running")))
		if err := s.Prune(ctx, client.PruneOpt{All: true}, nil); err != nil {
			return nil, err
		}
	}
	var index struct {
		Manifests []struct{ Annotations map[string]string }
	}
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, err
	}
	return append(told, fmt.Sprint(index.Manifests[0].Annotations["org.opencontainers.image.ref.name"], len(index.Manifests))), nil
}

// layoutOutput writes an image into a directory, blob by blob, and builds on it.
func layoutOutput(ctx context.Context, s *suite) (any, error) {
	dir := filepath.Join(s.dir, "layout")
	def, err := marshal(ctx, llb.Scratch().File(llb.Mkfile("/f", 0o644, []byte("in layout"))))
	if err != nil {
		return nil, err
	}
	_, err = s.Solve(ctx, client.SolveOpt{Definition: def, Exports: []client.Export{{
		Type: "oci", Attrs: map[string]string{"tar": "false", "name": "example.com/a/b:tag"}, Layout: dir,
	}}}, &names{})
	if err != nil {
		return nil, err
	}
	var digests []string
	for _, tag := range []string{"", "tag", "example.com/a/b:tag"} {
		d, err := client.LayoutDigest(dir, tag)
		if err != nil {
			return nil, err
		}
		digests = append(digests, d)
	}
	told := ""
	err = s.build(ctx, client.SolveOpt{Attach: client.Attach{Layouts: map[string]string{"l": dir}}}, func(g *client.Gateway, ctx context.Context) error {
		ref, err := solve(ctx, g, llb.OCILayout("example.com/x@"+digests[0], llb.OCIStore("", "l")))
		if err != nil {
			return err
		}
		text, err := ref.ReadFile(ctx, "/f", nil)
		told = string(text)
		return err
	})
	return []string{told, fmt.Sprint(digests[0] == digests[1] && digests[1] == digests[2])}, err
}

// denied is a build whose policy forbids its source.
func denied(ctx context.Context, s *suite) (any, error) {
	def, err := marshal(ctx, llb.HTTP("http://127.0.0.1:1/x"))
	if err != nil {
		return nil, err
	}
	_, err = s.Solve(ctx, client.SolveOpt{Definition: def, SourcePolicy: &client.SourcePolicy{Rules: []*client.SourceRule{{
		Action: client.PolicyDeny, Selector: &client.SourceSelector{Identifier: "http://127.0.0.1:1/*"},
	}}}}, &names{})
	var e *client.Error
	if !errors.As(err, &e) {
		return nil, fmt.Errorf("got %w, want an error of the daemon", err)
	}
	_, said, _ := strings.Cut(e.Message, "error evaluating")
	return said, nil
}

// verified is a build whose client decides on each source.
func verified(ctx context.Context, s *suite) (any, error) {
	def, err := marshal(ctx, llb.HTTP("http://127.0.0.1:1/x"))
	if err != nil {
		return nil, err
	}
	asked := ""
	_, err = s.Solve(ctx, client.SolveOpt{
		Definition: def,
		SourcePolicyVerifier: func(_ context.Context, q *client.PolicyQuestion) (*client.PolicyDecision, *client.SourceMetaRequest, error) {
			asked = q.GetSource().GetSource().GetIdentifier()
			return &client.PolicyDecision{Action: client.PolicyDeny, DenyMessages: []*client.PolicyMessage{{Message: "not this one"}}}, nil, nil
		},
	}, &names{})
	var e *client.Error
	if !errors.As(err, &e) {
		return nil, fmt.Errorf("got %w, want an error of the daemon", err)
	}
	return []string{asked, strings.Join(e.Denials, ",")}, nil
}

// history looks into the record of a build, and changes it.
func history(ctx context.Context, s *suite) (any, error) {
	def, err := marshal(ctx, s.base().Run(llb.Shlex(`sh -c "echo told by history"`), llb.IgnoreCache).Root())
	if err != nil {
		return nil, err
	}
	result, err := s.Solve(ctx, client.SolveOpt{Definition: def, Attach: s.attach()}, &names{})
	if err != nil {
		return nil, err
	}
	record, err := find(ctx, s, result.Ref)
	if err != nil {
		return nil, err
	}
	if record.Logs == nil {
		return nil, errors.New("the record has no logs")
	}
	logs, err := blob(ctx, s, record)
	if err != nil {
		return nil, err
	}
	var seen names
	if err := s.Status(ctx, result.Ref, &seen); err != nil {
		return nil, err
	}
	if err := s.UpdateBuildHistory(ctx, client.HistoryUpdate{Ref: result.Ref, Pinned: true}); err != nil {
		return nil, err
	}
	pinned, err := find(ctx, s, result.Ref)
	if err != nil {
		return nil, err
	}
	if err := s.UpdateBuildHistory(ctx, client.HistoryUpdate{Ref: result.Ref, Delete: true}); err != nil {
		return nil, err
	}
	_, gone := find(ctx, s, result.Ref)
	return []string{
		fmt.Sprint(bytes.Contains(logs, []byte("told by history"))), seen.logs, record.Logs.MediaType,
		fmt.Sprint(record.Err, record.Pinned, pinned.Pinned, record.Completed.After(record.Created), record.TotalSteps, record.CompletedSteps),
		fmt.Sprint(gone != nil),
	}, nil
}

func find(ctx context.Context, s *suite, ref string) (record *client.BuildRecord, err error) {
	err = s.ListenBuildHistory(ctx, client.HistoryOpt{Ref: ref, EarlyExit: true}, func(e client.HistoryEvent) error {
		record = e.Record
		return nil
	})
	if err == nil && record == nil {
		err = errors.New("there is no such record")
	}
	return record, err
}

func blob(ctx context.Context, s *suite, record *client.BuildRecord) ([]byte, error) {
	r, err := s.OpenBlob(ctx, *record.Logs)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(content.NewReader(r))
	return data, errors.Join(err, r.Close())
}

// usage lists and prunes what is stored, and asks what the daemon is.
func usage(ctx context.Context, s *suite) (any, error) {
	def, err := marshal(ctx, s.base().Run(llb.Shlex(`sh -c "echo used > /x"`)).Root())
	if err != nil {
		return nil, err
	}
	if _, err := s.Solve(ctx, client.SolveOpt{Definition: def, Attach: s.attach()}, &names{}); err != nil {
		return nil, err
	}
	list, err := s.DiskUsage(ctx, client.UsageOpt{Filters: []string{"type==regular"}})
	if err != nil {
		return nil, err
	}
	none, err := s.DiskUsage(ctx, client.UsageOpt{Filters: []string{"type==none"}})
	if err != nil {
		return nil, err
	}
	removed := 0
	if err := s.Prune(ctx, client.PruneOpt{All: true}, func(client.Usage) { removed++ }); err != nil {
		return nil, err
	}
	workers, err := s.ListWorkers(ctx, nil)
	if err != nil {
		return nil, err
	}
	info, err := s.Info(ctx)
	return []string{
		fmt.Sprint(len(list) > 0, len(none), removed > 0), workers[0].Platforms[0].OS + "/" + workers[0].Platforms[0].Architecture,
		fmt.Sprint(len(workers), workers[0].ID != "", info.Package != "", info.Version != ""),
	}, err
}

// fileCount is how many files manyFiles exports: enough for a sender that waits for a
// receiver that waits for it.
const fileCount = 20000

// manyFiles exports many small files into a directory.
func manyFiles(ctx context.Context, s *suite) (any, error) {
	script := fmt.Sprintf(`sh -c 'mkdir -p /out/d; i=0; while [ $i -lt %d ]; do echo $i > /out/d/$i; i=$((i+1)); done'`, fileCount)
	st := llb.Scratch().File(llb.Copy(s.base().Run(llb.Shlex(script)).Root(), "/out/", "/"))
	def, err := marshal(ctx, st)
	if err != nil {
		return nil, err
	}
	for i := range 3 {
		out := filepath.Join(s.dir, fmt.Sprint(i))
		if _, err := s.Solve(ctx, client.SolveOpt{Definition: def, Attach: s.attach(), Exports: []client.Export{{Type: "local", Dir: out}}}, &names{}); err != nil {
			return nil, fmt.Errorf("export %d: %w", i, err)
		}
		entries, err := os.ReadDir(filepath.Join(out, "out", "d"))
		if err != nil {
			return nil, err
		}
		if len(entries) != fileCount {
			return nil, fmt.Errorf("export %d has %d files", i, len(entries))
		}
	}
	return fileCount, nil
}

// sourceMeta resolves an image of the client's.
func sourceMeta(ctx context.Context, s *suite) (any, error) {
	told := ""
	err := s.build(ctx, client.SolveOpt{Attach: s.attach()}, func(g *client.Gateway, ctx context.Context) error {
		meta, err := g.ResolveSourceMetadata(ctx, &client.SourceMetaRequest{Source: &pb.SourceOp{
			Identifier: "oci-layout://not/real@" + s.digest,
			Attrs:      map[string]string{"oci.store": "base", "oci.session": g.BuildOpts().SessionID},
		}})
		if err != nil {
			return err
		}
		var config struct{ OS string }
		if err := json.Unmarshal(meta.GetImage().GetConfig(), &config); err != nil {
			return err
		}
		told = fmt.Sprint(meta.GetImage().GetDigest() == s.digest, config.OS, len(g.BuildOpts().Workers))
		return nil
	})
	return told, err
}

// canceled is a build that nobody wants any more.
func canceled(ctx context.Context, s *suite) (any, error) {
	def, err := marshal(ctx, s.base().Run(llb.Shlex("sleep 60")).Root())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	time.AfterFunc(2*time.Second, cancel)
	start := time.Now()
	_, err = s.Solve(ctx, client.SolveOpt{Definition: def, Attach: s.attach()}, &names{})
	return fmt.Sprint(err != nil, time.Since(start) < 30*time.Second), nil
}
