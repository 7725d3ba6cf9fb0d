package provenance

import (
	"fmt"
	"strconv"
)

// Versions of the predicate.
const (
	V1  = "v1"
	V02 = "v0.2"
)

// Options say what a provenance attestation is to be like.
type Options struct {
	Min       bool   // leave out how it was built, and the request's private parts
	BuilderID string // a URI, as the user gave it
	Filename  string // of the statement in exports of files
	Version   string // V1 or V02
	// Reproducible is what the user promises of the build.
	Reproducible bool
	// InlineOnly keeps the statement out of exports of files and archives.
	InlineOnly bool
	// Complete refuses a build that used something that is not recorded.
	Complete bool
}

// ParseOptions reads the values of the option "attest:provenance". Keys that are
// unknown belong to somebody else.
func ParseOptions(values map[string]string) (Options, error) {
	o := Options{Filename: "provenance.json", Version: V1, BuilderID: values["builder-id"]}
	switch mode := values["mode"]; mode {
	case "", "max", "full":
	case "min":
		o.Min = true
	default:
		return o, fmt.Errorf("attest:provenance: invalid mode %q: expected min or max", mode)
	}
	switch version := values["version"]; version {
	case "":
	case V1, V02:
		o.Version = version
	default:
		return o, fmt.Errorf("attest:provenance: invalid provenance SLSA version: %s: expected %s or %s", version, V1, V02)
	}
	if name, ok := values["filename"]; ok {
		if name == "" || name == "." || name == ".." {
			return o, fmt.Errorf("attest:provenance: filename %q names no file", name)
		}
		o.Filename = name
	}
	for key, to := range map[string]*bool{
		"reproducible": &o.Reproducible, "inline-only": &o.InlineOnly, "complete-materials": &o.Complete,
	} {
		v, ok := values[key]
		if !ok {
			continue
		}
		b, err := strconv.ParseBool(v)
		if err != nil {
			return o, fmt.Errorf("attest:provenance: failed to parse %s flag %q: expected true or false", key, v)
		}
		*to = b
	}
	return o, nil
}

// PredicateType is the URI of the predicate's type.
func (o Options) PredicateType() string {
	if o.Version == V02 {
		return "https://slsa.dev/provenance/v0.2"
	}
	return "https://slsa.dev/provenance/v1"
}
