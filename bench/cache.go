package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/conformance/peer"
)

// The cases here exchange caches through a registry that this program serves
// from memory to both daemons.

const (
	cacheSteps   = 14
	cachedLayers = 30
	manyRecords  = 5000
)

func cacheCases() []benchCase {
	return []benchCase{
		{name: "cache-export", rows: []string{"cache-export-max", "cache-export-none"}, rounds: 7, prepare: prepareCacheExport, run: runCacheExport},
		{
			name: "cache-import", rows: []string{"cache-import-last-hit", "cache-import-first-hit", "cache-import-5000-last-hit", "cache-import-5000-first-hit"},
			rounds: 5, prepare: prepareCacheExport, run: runCacheImport,
		},
		{name: "cache-cached-30", rows: []string{"cache-cached-30-export", "cache-cached-30"}, rounds: 7, prepare: prepareCached, run: runCached},
	}
}

// prepareCacheExport makes a build of 14 steps, of which each makes a megabyte.
func prepareCacheExport(r *roundRun) error {
	lines := []string{"FROM base", "ENV N=" + r.nonce}
	for i := range cacheSteps {
		lines = append(lines, fmt.Sprintf("RUN head -c 1000000 /dev/urandom > /made%d && sleep 0.05", i))
	}
	return r.dockerfile(lines...)
}

func prepareCached(r *roundRun) error {
	lines := []string{"FROM base", "ENV N=" + r.nonce}
	for i := range cachedLayers {
		lines = append(lines, fmt.Sprintf("RUN echo %d > /made%d", i, i))
	}
	return r.dockerfile(lines...)
}

// store is a registry for one round of one engine.
type store struct{ host string }

func (r *roundRun) serve() (*store, func()) {
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	return &store{strings.TrimPrefix(server.URL, "http://")}, server.Close
}

func (s *store) ref(tag string) string { return s.host + "/cache:" + tag }

func (s *store) attrs(tag, more string) []string {
	return []string{"type=registry,ref=" + s.ref(tag) + more}
}

// fresh restarts the engine on a root with nothing but the base image.
func (r *roundRun) fresh(ctx context.Context) error {
	r.engine.Stop()
	if err := os.RemoveAll(filepath.Join(r.engine.Dir, "root")); err != nil {
		return err
	}
	if err := r.engine.Start(ctx); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(r.dir, "warm-")
	if err != nil {
		return err
	}
	return r.warmUp(ctx, r.engine, dir)
}

// runCacheExport times a build with an export of all its steps, from its start
// to when all is pushed, and the same build without.
func runCacheExport(ctx context.Context, r *roundRun) error {
	s, stop := r.serve()
	defer stop()
	with := r.spec("")
	with.CacheTo = s.attrs("x", ",mode=max")
	if err := r.timed(ctx, "cache-export-max", with); err != nil {
		return err
	}
	if err := r.fresh(ctx); err != nil {
		return err
	}
	return r.timed(ctx, "cache-export-none", r.spec(""))
}

// runCacheImport times what a fresh root makes of a cache: a build that has all,
// and one that has the first step alone.
func runCacheImport(ctx context.Context, r *roundRun) error {
	s, stop := r.serve()
	defer stop()
	export := r.spec("")
	export.CacheTo = s.attrs("x", ",mode=max")
	if err := r.untimed(ctx, export); err != nil {
		return err
	}
	if err := s.fill("x", "filled"); err != nil {
		return err
	}
	first, err := r.firstStep()
	if err != nil {
		return err
	}
	for _, row := range []struct{ name, tag, dir string }{
		{"cache-import-last-hit", "x", r.dir},
		{"cache-import-first-hit", "x", first},
		{"cache-import-5000-last-hit", "filled", r.dir},
		{"cache-import-5000-first-hit", "filled", first},
	} {
		if err := r.fresh(ctx); err != nil {
			return err
		}
		spec := buildSpec{Build: peer.Build{Context: row.dir, CacheFrom: s.attrs(row.tag, "")}}
		if err := r.timed(ctx, row.name, spec); err != nil {
			return err
		}
		if err := r.hit(); err != nil {
			return err
		}
	}
	return nil
}

// firstStep is a folder with a build of the first step alone.
func (r *roundRun) firstStep() (string, error) {
	text, err := os.ReadFile(filepath.Join(r.dir, "Dockerfile"))
	if err != nil {
		return "", err
	}
	dir := filepath.Join(r.dir, "first-"+r.engine.Name)
	lines := strings.Split(string(text), "\n")
	return dir, peer.WriteFiles(dir, map[string]string{"Dockerfile": strings.Join(lines[:3], "\n") + "\n"})
}

// hit holds that the last build has run nothing: a miss would be no measurement.
func (r *roundRun) hit() error {
	text, err := os.ReadFile(filepath.Join(r.engine.Dir, "client.log"))
	if err != nil {
		return err
	}
	steps := regexp.MustCompile(`(?m)^(#\d+) \[.*\] RUN `).FindAllStringSubmatch(string(text), -1)
	if len(steps) == 0 {
		return fmt.Errorf("%s shows no step: %s", r.engine.Name, peer.Tail(text))
	}
	for _, s := range steps {
		if !strings.Contains(string(text), "\n"+s[1]+" CACHED") {
			return fmt.Errorf("%s ran %s, which the cache has: %s", r.engine.Name, s[0], peer.Tail(text))
		}
	}
	return nil
}

// runCached times a build that has nothing to do, without and with an export of
// what was exported before.
func runCached(ctx context.Context, r *roundRun) error {
	s, stop := r.serve()
	defer stop()
	export := r.spec("")
	export.CacheTo = s.attrs("x", ",mode=max")
	if err := r.untimed(ctx, export); err != nil {
		return err
	}
	if err := r.timed(ctx, "cache-cached-30", r.spec("")); err != nil {
		return err
	}
	return r.timed(ctx, "cache-cached-30-export", export)
}

// fill copies a cache in BuildKit's format to another tag, with thousands of
// further records in its config, and the records by key with thousands more.
func (s *store) fill(from, to string) error {
	var m ocispecs.Manifest
	if err := s.get("manifests/"+from, &m); err != nil {
		return err
	}
	var config map[string]any
	if err := s.get("blobs/"+string(m.Config.Digest), &config); err != nil {
		return err
	}
	records, _ := config["records"].([]any)
	for i := range manyRecords {
		records = append(records, map[string]any{"digest": digest.FromString(fmt.Sprint("filler ", i))})
	}
	config["records"] = records
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	m.Config.Digest, m.Config.Size = digest.FromBytes(data), int64(len(data))
	if err := s.send(http.MethodPost, "blobs/uploads/?digest="+string(m.Config.Digest), "application/octet-stream", data); err != nil {
		return err
	}
	if err := s.put(to, m); err != nil {
		return err
	}
	return s.fillRecords(from, to)
}

// recordPrefix is what tags of records by key begin with.
func recordPrefix(tag string) string {
	return "kiln-" + digest.FromString(tag).Encoded()[:8] + "-"
}

func (s *store) fillRecords(from, to string) error {
	var list struct {
		Tags []string `json:"tags"`
	}
	if err := s.get("tags/list", &list); err != nil {
		return err
	}
	var last ocispecs.Manifest
	for _, tag := range list.Tags {
		name, ok := strings.CutPrefix(tag, recordPrefix(from))
		if !ok {
			continue
		}
		if err := s.get("manifests/"+tag, &last); err != nil {
			return err
		}
		if err := s.put(recordPrefix(to)+name, last); err != nil {
			return err
		}
	}
	if last.MediaType == "" {
		return nil // an engine without records by key
	}
	for i := range manyRecords {
		if err := s.put(recordPrefix(to)+"1-"+digest.FromString(fmt.Sprint(i)).Encoded(), last); err != nil {
			return err
		}
	}
	return nil
}

func (s *store) put(tag string, m ocispecs.Manifest) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.send(http.MethodPut, "manifests/"+tag, m.MediaType, data)
}

func (s *store) get(path string, to any) error {
	resp, err := http.Get("http://" + s.host + "/v2/cache/" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(to)
}

func (s *store) send(method, path, mediaType string, data []byte) error {
	req, err := http.NewRequest(method, "http://"+s.host+"/v2/cache/"+path, bytes.NewReader(data))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: %s", method, path, resp.Status)
	}
	return nil
}
