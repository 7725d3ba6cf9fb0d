package provenance

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"

	digest "github.com/opencontainers/go-digest"
)

// SupplementSPDX notes in an SBOM which layer of the image each file came with,
// as a comment on the file where there is none, and tool as one of its makers.
// What is no SPDX document stays as it is.
func SupplementSPDX(ctx context.Context, predicate []byte, tool string, layerOf func(context.Context, string) (digest.Digest, error)) ([]byte, error) {
	doc := decodeObject(predicate)
	if doc == nil {
		return predicate, nil
	}
	files, _ := doc["files"].([]any)
	packages, _ := doc["packages"].([]any)
	for _, p := range packages {
		if p, ok := p.(map[string]any); ok {
			if inner, ok := p["files"].([]any); ok {
				files = append(files, inner...)
			}
		}
	}
	for _, f := range files {
		f, ok := f.(map[string]any)
		if !ok {
			continue
		}
		name, _ := f["fileName"].(string)
		if comment, _ := f["comment"].(string); comment != "" || name == "" {
			continue
		}
		layer, err := layerOf(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("find layer of %s: %w", name, err)
		}
		if layer != "" {
			f["comment"] = "layerID: " + layer.String()
		}
	}
	info, ok := doc["creationInfo"].(map[string]any)
	if !ok {
		info = map[string]any{}
		doc["creationInfo"] = info
	}
	creators, _ := info["creators"].([]any)
	info["creators"] = append(creators, "Tool: "+tool)
	data, err := json.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("encode SPDX document: %w", err)
	}
	return data, nil
}

// decodeObject reads a JSON object with its numbers as they are written; nil if
// it is none, or no SPDX document.
func decodeObject(data []byte) map[string]any {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var doc map[string]any
	if d.Decode(&doc) != nil {
		return nil
	}
	if _, ok := doc["spdxVersion"].(string); !ok {
		return nil
	}
	return doc
}
