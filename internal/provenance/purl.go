package provenance

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// The types of package URLs.
const (
	purlDocker = "docker" // an image of a registry
	purlOCI    = "oci"    // an image of an OCI layout
)

// qualifier is a key and value after the question mark of a package URL.
type qualifier struct{ key, value string }

// packageURL names an image as a package URL (the purl specification), such as
// pkg:docker/alpine@3.20?platform=linux%2Famd64, in the form of BuildKit.
func packageURL(kind, ref string, platform *ocispecs.Platform, more ...qualifier) (string, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return "", fmt.Errorf("name image %q as a package: %w", ref, err)
	}
	qualifiers := slices.Clone(more)
	if d, ok := named.(reference.Digested); ok {
		qualifiers = append(qualifiers, qualifier{"digest", d.Digest().String()})
	} else {
		named = reference.TagNameOnly(named)
	}
	if platform != nil {
		qualifiers = append(qualifiers, qualifier{"platform", platforms.Format(platforms.Normalize(*platform))})
	}
	parts := strings.Split(reference.FamiliarName(named), "/")
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(escapePURL(p), ":", "%3A") // a registry's port
	}
	out := "pkg:" + kind + "/" + strings.Join(parts, "/")
	if tagged, ok := named.(reference.Tagged); ok {
		out += "@" + escapePURL(tagged.Tag())
	}
	slices.SortFunc(qualifiers, func(a, b qualifier) int { return strings.Compare(a.key, b.key) })
	sep := "?"
	for _, q := range qualifiers {
		out += sep + q.key + "=" + escapePURL(q.value)
		sep = "&"
	}
	return out, nil
}

// escapePURL percent-encodes all but letters, digits and .-_~ and the colon.
func escapePURL(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', strings.IndexByte(".-_~:", c) >= 0:
			b.WriteByte(c)
		default:
			b.Write([]byte{'%', hex[c>>4], hex[c&15]})
		}
	}
	return b.String()
}
