package frontend

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The kinds of attestations that a request may ask for.
const (
	AttestSBOM       = "sbom"
	AttestProvenance = "provenance"
)

// AttestOptions are the attestations that a request asks for, by kind, with
// what is said of each: "attest:provenance=mode=max,version=v0.2", or the same
// as the build argument BUILDKIT_ATTEST_PROVENANCE, which wins. That one is not
// wanted, clients say by leaving it out: "false" and "disabled=true" are for them.
func AttestOptions(opts map[string]string) (map[string]map[string]string, error) {
	texts := map[string]string{}
	for _, prefix := range []string{"attest:", "build-arg:BUILDKIT_ATTEST_"} {
		for k, v := range opts {
			if kind, ok := strings.CutPrefix(k, prefix); ok {
				texts[strings.ToLower(kind)] = v
			}
		}
	}
	out := map[string]map[string]string{}
	for kind, text := range texts {
		if kind != AttestSBOM && kind != AttestProvenance {
			return nil, fmt.Errorf("unknown attestation type %q: expected %s or %s", kind, AttestSBOM, AttestProvenance)
		}
		values, err := splitValues(text)
		if err != nil {
			return nil, fmt.Errorf("failed to parse %s %q: %w", kind, text, err)
		}
		out[kind] = values
	}
	return out, nil
}

// splitValues reads key=value pairs, separated by commas, with CSV's quotes.
func splitValues(text string) (map[string]string, error) {
	values := map[string]string{}
	if text == "" {
		return values, nil
	}
	r := csv.NewReader(strings.NewReader(text))
	fields, err := r.Read()
	if err != nil {
		return nil, err
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) {
		return nil, errors.New("expected one line of key=value,…")
	}
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		values[k] = v
	}
	return values, nil
}
