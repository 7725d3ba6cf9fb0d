package provenance

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// PredicateSPDX is the type of predicates that list what software is in files.
const PredicateSPDX = "https://spdx.dev/Document"

// The types of statements: this one is written, the older one is read as well.
const (
	statementType   = "https://in-toto.io/Statement/v1"
	statementType01 = "https://in-toto.io/Statement/v0.1"
	slsaPredicate   = "https://slsa.dev/provenance/"
)

// Statement is an in-toto statement: a predicate, and what it speaks of.
type Statement struct {
	Type          string          `json:"_type"`
	PredicateType string          `json:"predicateType"`
	Subject       []Subject       `json:"subject"`
	Predicate     json.RawMessage `json:"predicate"`
}

// Subject is what a statement speaks of.
type Subject struct {
	Name   string    `json:"name"`
	Digest DigestSet `json:"digest"`
}

// NewStatement makes a statement.
func NewStatement(predicateType string, predicate []byte, subjects []Subject) Statement {
	if len(predicate) == 0 {
		predicate = []byte("null")
	}
	if subjects == nil {
		subjects = []Subject{}
	}
	return Statement{statementType, predicateType, subjects, predicate}
}

// ImageSubject is an image by one of its names.
func ImageSubject(name string, platform ocispecs.Platform, d digest.Digest) (Subject, error) {
	uri, err := packageURL(purlDocker, name, &platform)
	return Subject{Name: uri, Digest: digestSet(d)}, err
}

// FileSubject is a file by its path.
func FileSubject(path string, d digest.Digest) Subject {
	return Subject{Name: path, Digest: digestSet(d)}
}

// ReadStatement reads a statement that somebody else made. Provenance is
// refused: it is this daemon's to tell.
func ReadStatement(data []byte) (Statement, error) {
	var s Statement
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("cannot decode in-toto statement: %w", err)
	}
	switch s.Type {
	case statementType, statementType01, "": // scanners were seen to leave it out
	default:
		return s, fmt.Errorf("in-toto statement has type %q, expected %s", s.Type, statementType)
	}
	if s.PredicateType == "" {
		return s, errors.New("in-toto statement has no predicateType")
	}
	return s, nil
}

// IsProvenance tells whether a type of predicates is provenance.
func IsProvenance(predicateType string) bool { return strings.HasPrefix(predicateType, slsaPredicate) }

// Encode writes the predicate in the version that o asks for.
func (p *Predicate) Encode(o Options) ([]byte, error) {
	var v any = p
	if o.Version == V02 {
		v = p.v02()
	}
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode provenance: %w", err)
	}
	return data, nil
}

// NamedSubject is what a name and digests say.
func NamedSubject(name string, digests ...digest.Digest) Subject {
	s := Subject{Name: name, Digest: DigestSet{}}
	for _, d := range digests {
		maps.Copy(s.Digest, digestSet(d))
	}
	return s
}

// Encode writes the statement.
func (s Statement) Encode() ([]byte, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode %s statement: %w", s.PredicateType, err)
	}
	return data, nil
}
