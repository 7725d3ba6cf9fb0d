package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kiln-build/kiln/internal/config"
)

// defaultProvenanceDir is where an administrator puts what all provenance is to
// tell, unless the configuration names another folder.
const defaultProvenanceDir = "/etc/buildkit/provenance.d"

// mostProvenance is the size of the largest file that is read from there, bytes.
const mostProvenance = 1 << 20

// provenanceEnv reads the fields that the daemon's owner adds to provenance: the
// objects of all *.json files of a folder, those of later names over others.
func provenanceEnv(c *config.Config) (map[string]any, error) {
	dir := c.ProvenanceEnvDir
	if dir == "" {
		dir = defaultProvenanceDir
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read folder of provenance fields: %w", err)
	}
	env := map[string]any{}
	for _, e := range entries {
		if e.IsDir() || !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		file := filepath.Join(dir, e.Name())
		info, err := os.Stat(file)
		if err != nil {
			return nil, fmt.Errorf("read provenance fields: %w", err)
		}
		if !info.Mode().IsRegular() || info.Size() > mostProvenance {
			return nil, fmt.Errorf("read provenance fields: %s is no file of at most %d bytes", file, mostProvenance)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read provenance fields: %w", err)
		}
		if err := json.Unmarshal(data, &env); err != nil {
			return nil, fmt.Errorf("failed to parse %s, which must be a JSON object: %w", file, err)
		}
	}
	return env, nil
}
