package corpus

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Document is any JSON text that is an object.
type Document = map[string]any

// varying is what no two runs share: digests, times, ids and sizes.
var varying = regexp.MustCompile(`"(sha256:)?[0-9a-f]{64}"|"20\d\d-[^"]*Z"|("invocationId": |"buildInvocationID": )"[^"]*"|"size": \d+`)

// Shape is a document, indented, without what no two builds share.
func Shape(d Document) (string, error) {
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return "", fmt.Errorf("write the shape of a document: %w", err)
	}
	text := string(varying.ReplaceAll(data, []byte("$2…")))
	// Each notes its own name as one that worked on an SBOM, and the library that
	// BuildKit rewrites it by adds empty texts.
	for pattern, to := range map[string]string{
		`(digest=)sha256:[0-9a-f]{64}`: "$1…", `"Tool: (kiln|buildkit)-[^"]*"`: `"Tool: …"`, `\n *"copyrightText": "",`: "",
	} {
		text = regexp.MustCompile(pattern).ReplaceAllString(text, to)
	}
	return text, nil
}

// ForgetOwn removes from the predicate of a provenance what is each builder's
// own: the version of its Dockerfile frontend, what layers the cache happens to
// have of steps in between, a client's session, which Kiln does not tell, and
// which digest has which step. Steps without a place in the Dockerfile are listed
// by BuildKit all the same.
func ForgetOwn(p Document) {
	for _, path := range [][]string{
		{"buildDefinition", "internalParameters", "dockerfileVersion"}, {"invocation", "environment", "dockerfileVersion"},
		{"runDetails", "metadata", "buildkit_metadata", "layers"}, {"metadata", "https://mobyproject.org/buildkit@v1#metadata", "layers"},
	} {
		d := p
		for _, key := range path[:len(path)-1] {
			d, _ = d[key].(Document)
		}
		delete(d, path[len(path)-1])
	}
	forgetWithin(p)
}

func forgetWithin(v any) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			forgetWithin(e)
		}
	case Document:
		delete(v, "oci.session")
		if m, ok := v["digestMapping"].(Document); ok {
			v["digestMapping"] = len(m)
		}
		if m, ok := v["locations"].(Document); ok {
			maps.DeleteFunc(m, func(_ string, place any) bool { d, ok := place.(Document); return ok && len(d) == 0 })
		}
		for _, e := range v {
			forgetWithin(e)
		}
	}
}

// isAttestation tells whether a manifest is about another one.
func isAttestation(d ocispecs.Descriptor) bool {
	return d.Annotations["vnd.docker.reference.type"] != ""
}

// readAttestation reads a manifest of statements, with what varies left out.
// Layers of the image that it is about are called by their places in it.
func readAttestation(blobs map[string][]byte, d ocispecs.Descriptor) (Image, error) {
	var img Image
	about, err := imageManifest(blobs, d.Annotations["vnd.docker.reference.digest"])
	if err != nil {
		return img, err
	}
	var pairs []string
	for i, l := range about.Layers {
		pairs = append(pairs, l.Digest.String(), fmt.Sprintf("layer %d", i))
	}
	places := strings.NewReplacer(pairs...)
	var manifest ocispecs.Manifest
	data := blobs[d.Digest.Encoded()]
	if err := json.Unmarshal(data, &manifest); err != nil {
		return img, fmt.Errorf("read manifest of attestations: %w", err)
	}
	var whole Document
	if err := json.Unmarshal(data, &whole); err != nil {
		return img, fmt.Errorf("read manifest of attestations: %w", err)
	}
	parts := []Document{{"annotations": keysOf(d.Annotations)}, whole}
	for _, l := range manifest.Layers {
		var statement Document
		if err := json.Unmarshal([]byte(places.Replace(string(blobs[l.Digest.Encoded()]))), &statement); err != nil {
			return img, fmt.Errorf("read statement: %w", err)
		}
		if p, ok := statement["predicate"].(Document); ok {
			ForgetOwn(p)
		}
		parts = append(parts, statement)
	}
	for _, part := range parts {
		text, err := Shape(part)
		if err != nil {
			return img, err
		}
		img.Config += text + "\n"
	}
	for _, part := range parts[2:] {
		materials, err := json.MarshalIndent(materialsOf(part), "", "  ")
		if err != nil {
			return img, err
		}
		img.Config += string(materials) + "\n"
	}
	return img, nil
}

// materialsOf are the sources that a provenance lists, whose digests count.
func materialsOf(statement Document) []any {
	p, _ := statement["predicate"].(Document)
	definition, _ := p["buildDefinition"].(Document)
	for _, list := range []any{p["materials"], definition["resolvedDependencies"]} {
		if list, ok := list.([]any); ok {
			return list
		}
	}
	return nil
}

func keysOf(m map[string]string) map[string]bool {
	keys := map[string]bool{}
	for k := range m {
		keys[k] = true
	}
	return keys
}

func imageManifest(blobs map[string][]byte, digest string) (m ocispecs.Manifest, err error) {
	if err := json.Unmarshal(blobs[strings.TrimPrefix(digest, "sha256:")], &m); err != nil {
		return m, fmt.Errorf("read manifest of the image %q that attestations are about: %w", digest, err)
	}
	return m, nil
}

// ScanScript is a scanner: it makes a statement about each place that it is to scan.
func ScanScript() string {
	return `set -e
scan() {
	cat > "$BUILDKIT_SCAN_DESTINATION/$1.spdx.json" <<END
{"_type": "https://in-toto.io/Statement/v0.1", "predicateType": "https://spdx.dev/Document", "predicate": {
  "SPDXID": "SPDXRef-DOCUMENT", "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "name": "$1", "documentNamespace": "https://example.org/$1",
  "creationInfo": {"created": "2024-01-01T00:00:00Z", "creators": ["Tool: script-$BUILDKIT_SCAN_FLAVOR"]},
  "files": [$(cd "$2"; sep=; for f in *; do [ -f "$f" ] || continue; echo "$sep{\"fileName\": \"/$f\", \"SPDXID\": \"SPDXRef-$f\", \"checksums\": [{\"algorithm\": \"SHA1\", \"checksumValue\": \"da39a3ee5e6b4b0d3255bfef95601890afd80709\"}]}"; sep=,; done)]
}}
END
}
scan sbom "$BUILDKIT_SCAN_SOURCE"
for extra in ${BUILDKIT_SCAN_SOURCE_EXTRAS:+"$BUILDKIT_SCAN_SOURCE_EXTRAS"/*}; do
	name=${extra##*/}
	scan "$name" "$extra"
done
! touch "$BUILDKIT_SCAN_SOURCE/written" 2> /dev/null
touch /tmp/fine
`
}
