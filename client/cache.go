package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strconv"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
)

// cacheOutput is a directory that a cache is exported to.
type cacheOutput struct {
	store *sessioncontent.Output
	tag   string
	reset bool // remove the blobs of caches that are not in the index any more
}

// finish names what was written in the directory's index.
func (c *cacheOutput) finish(ctx context.Context, manifest string) error {
	if manifest == "" {
		return nil // there was nothing to export
	}
	var desc ocispecs.Descriptor
	if err := json.Unmarshal([]byte(manifest), &desc); err != nil {
		return fmt.Errorf("decode descriptor of the exported cache: %w", err)
	}
	if err := c.store.Tag(desc, c.tag); err != nil {
		return err
	}
	if c.reset {
		return c.store.Sweep(ctx)
	}
	return nil
}

// cacheStores attaches the directories of local caches: content stores that are
// called "local:" and the path, as it was given.
func (s *services) cacheStores(exports, imports []CacheEntry) error {
	for _, e := range exports {
		switch {
		case e.Type == "registry" && e.Attrs["ref"] == "":
			return errors.New("registry cache exporter requires ref")
		case e.Type != "local":
			continue
		}
		if err := s.exportCache(e); err != nil {
			return err
		}
	}
	for _, e := range imports {
		if e.Type == "registry" && e.Attrs["ref"] == "" {
			return errors.New("registry cache importer requires ref")
		}
		if e.Type != "local" {
			s.imports = append(s.imports, e)
			continue
		}
		e, err := s.importCache(e)
		if errors.Is(err, fs.ErrNotExist) && e.Attrs["mounts-replace"] != "true" {
			continue // a first build has no cache yet
		} else if err != nil {
			return err
		}
		s.imports = append(s.imports, e)
	}
	return nil
}

func (s *services) exportCache(e CacheEntry) error {
	dir := e.Attrs["dest"]
	if dir == "" {
		return errors.New("local cache exporter requires dest")
	}
	out := &cacheOutput{tag: "latest"}
	if t, ok := e.Attrs["tag"]; ok {
		out.tag = t
	}
	if v, ok := e.Attrs["reset"]; ok {
		var err error
		if out.reset, err = strconv.ParseBool(v); err != nil {
			return fmt.Errorf("failed to parse reset attribute: %w", err)
		}
	}
	var err error
	if out.store, err = sessioncontent.NewOutput(dir); err != nil {
		return err
	}
	s.stores["local:"+dir] = out.store
	s.caches = append(s.caches, out)
	return nil
}

// importCache completes an entry with the digest that its tag stands for. The error
// is [fs.ErrNotExist] if the cache is not there.
func (s *services) importCache(e CacheEntry) (CacheEntry, error) {
	dir := e.Attrs["src"]
	if dir == "" {
		return e, errors.New("local cache importer requires src")
	}
	if _, err := os.Stat(dir); err != nil {
		return e, err
	}
	store, err := sessioncontent.OpenStore(dir)
	if err != nil {
		return e, err
	}
	e.Attrs = maps.Clone(e.Attrs)
	if e.Attrs["digest"] == "" {
		tag, ok := e.Attrs["tag"]
		if !ok {
			tag = "latest"
		}
		if tag == "" {
			return e, errors.New(`local cache importer requires either explicit digest, "latest" tag or custom tag on index.json`)
		}
		desc, err := store.Resolve(tag)
		if err != nil {
			return e, errors.Join(err, store.Close())
		}
		e.Attrs["digest"] = desc.Digest.String()
	}
	if _, err := store.Info(context.Background(), digest.Digest(e.Attrs["digest"])); err != nil {
		return e, errors.Join(fmt.Errorf("cache in %s: %w: %w", dir, err, fs.ErrNotExist), store.Close())
	}
	s.closers = append(s.closers, store)
	if _, both := s.stores["local:"+dir]; !both {
		s.stores["local:"+dir] = store
	}
	return e, nil
}
