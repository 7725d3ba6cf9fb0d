// Package exportertest is what every exporter must pass.
//
// A test of an implementation is one call of [Run] with what is to be
// exported and a client that takes it.
package exportertest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/session"
)

// Subject is an exporter under test.
type Subject struct {
	Exporter exporter.Exporter
	Input    exporter.Input
	Attrs    map[string]string
	// Connect returns a new client, nil for an exporter that needs none, and a
	// function that reads what has come out so far: any text, by any name. It is
	// empty for output that is not whole.
	Connect func(t *testing.T) (client *session.Caller, output func(t *testing.T) map[string]string)
	// Response are keys that the response must have.
	Response []string
	// Digest says that two responses must be equal.
	Digest bool
	// DropsAttestations says that the output has no place for them.
	DropsAttestations bool
}

// Run tests an exporter. fresh returns a subject without history.
func Run(t *testing.T, fresh func(t *testing.T) Subject) {
	t.Run("exports", func(t *testing.T) {
		s := fresh(t)
		client, output := s.Connect(t)
		response, err := s.Exporter.Export(t.Context(), s.Input, exporter.Target{Attrs: s.Attrs, Session: client})
		if err != nil {
			t.Fatal(err)
		}
		if len(output(t)) == 0 {
			t.Error("nothing came out")
		}
		for _, key := range s.Response {
			if response[key] == "" {
				t.Errorf("response %v has no %s", response, key)
			}
		}
	})
	t.Run("same input, same output", func(t *testing.T) {
		var first map[string]string
		var told map[string]string
		for i := range 2 {
			s := fresh(t)
			epoch := time.Unix(1_000_000_000, 0)
			s.Input.Epoch = &epoch
			client, output := s.Connect(t)
			response, err := s.Exporter.Export(t.Context(), s.Input, exporter.Target{Attrs: s.Attrs, Session: client})
			if err != nil {
				t.Fatal(err)
			}
			got := output(t)
			if i > 0 && !maps.Equal(first, got) {
				t.Errorf("output differs: %v, before %v", names(got), names(first))
			}
			if i > 0 && s.Digest && !maps.Equal(told, response) {
				t.Errorf("response %v, before %v", response, told)
			}
			first, told = got, response
		}
	})
	runRefusals(t, fresh)
}

// runRefusals tests what must come to nothing.
func runRefusals(t *testing.T, fresh func(t *testing.T) Subject) {
	t.Run("bad option", func(t *testing.T) {
		s := fresh(t)
		client, output := s.Connect(t)
		attrs := maps.Clone(s.Attrs)
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs["source-date-epoch"] = "yesterday"
		_, err := s.Exporter.Export(t.Context(), s.Input, exporter.Target{Attrs: attrs, Session: client})
		if err == nil || !strings.Contains(err.Error(), "yesterday") {
			t.Errorf("got %v, want an error that quotes the value", err)
		}
		if got := output(t); len(got) > 0 {
			t.Errorf("there is output after an error: %v", names(got))
		}
	})
	t.Run("bad option before there is a result", func(t *testing.T) {
		c, ok := fresh(t).Exporter.(exporter.Checker)
		if !ok {
			t.Fatal("the exporter cannot check attributes")
		}
		if err := c.Check(map[string]string{"source-date-epoch": "yesterday"}); err == nil || !strings.Contains(err.Error(), "yesterday") {
			t.Errorf("got %v, want an error that quotes the value", err)
		}
	})
	t.Run("attestations", func(t *testing.T) { runAttestations(t, fresh) })
	t.Run("no result", func(t *testing.T) {
		s := fresh(t)
		client, _ := s.Connect(t)
		if _, err := s.Exporter.Export(t.Context(), exporter.Input{}, exporter.Target{Attrs: s.Attrs, Session: client}); err == nil {
			t.Error("a result for no platform was exported")
		}
	})
	t.Run("hostile platform", func(t *testing.T) {
		s := fresh(t)
		client, output := s.Connect(t)
		for _, id := range []string{"../x", "..", `..\x`} {
			in := s.Input
			in.Platforms = slices.Clone(in.Platforms)
			in.Platforms[0].ID = id
			// It may be taken, as long as nothing lies outside.
			_, err := s.Exporter.Export(t.Context(), in, exporter.Target{Attrs: s.Attrs, Session: client})
			got := output(t)
			if err == nil && len(got) == 0 {
				t.Errorf("platform %q: no output and no error", id)
			}
			for name := range got {
				if strings.HasPrefix(name, "../") || strings.Contains(name, `\`) || strings.Contains(name, "/../") {
					t.Errorf("platform %q: output %q", id, name)
				}
			}
		}
	})
	t.Run("canceled", func(t *testing.T) {
		s := fresh(t)
		client, output := s.Connect(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := s.Exporter.Export(ctx, s.Input, exporter.Target{Attrs: s.Attrs, Session: client}); err == nil {
			t.Error("a canceled export succeeded")
		}
		if got := output(t); len(got) > 0 {
			t.Errorf("a canceled export has output: %v", names(got))
		}
	})
}

// runAttestations has statements made about the output.
func runAttestations(t *testing.T, fresh func(t *testing.T) Subject) {
	export := func(t *testing.T, statement func() ([]byte, error)) (Subject, map[string]string, error) {
		s := fresh(t)
		client, output := s.Connect(t)
		in := s.Input
		in.Platforms = slices.Clone(in.Platforms)
		in.Platforms[0].Attestations = []exporter.Attestation{{
			Path: "said.json", PredicateType: "https://example.org/said",
			Statement: func(context.Context, exporter.About) ([]byte, error) { return statement() },
		}}
		_, err := s.Exporter.Export(t.Context(), in, exporter.Target{Attrs: s.Attrs, Session: client})
		return s, output(t), err
	}
	const said = "what-is-said"
	s, got, err := export(t, func() ([]byte, error) { return []byte(`{"said":"` + said + `"}`), nil })
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for name, text := range got {
		found = found || strings.Contains(name+text, said) || strings.Contains(name+text, digest.FromString(`{"said":"`+said+`"}`).Encoded())
	}
	if found == s.DropsAttestations {
		t.Errorf("the statement is in the output: %v", found)
	}
	_, got, err = export(t, func() ([]byte, error) { return nil, errors.New("speechless") })
	if s.DropsAttestations {
		return
	}
	if err == nil || !strings.Contains(err.Error(), "speechless") || len(got) > 0 {
		t.Errorf("a statement that cannot be made: %v, %d files of output", err, len(got))
	}
}

func names(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
