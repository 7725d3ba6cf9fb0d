package exporter_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/session/exporter"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

// choice is a client's choice.
type choice struct {
	n    int // exporters
	err  error
	told map[string]string
	seen string
}

func (c *choice) Find(_ context.Context, meta map[string][]byte, refs []string) (out []exporter.Exporter, err error) {
	c.seen = fmt.Sprint(string(meta["k"]), refs)
	for i := range c.n {
		out = append(out, exporter.Exporter{Type: fmt.Sprint("t", i), Attrs: map[string]string{"a": "b"}})
	}
	return out, c.err
}

func (c *choice) Done(_ context.Context, r map[string]string) error {
	c.told = r
	return c.err
}

func TestFindAndFinalize(t *testing.T) {
	ch := &choice{n: 2}
	c := sessiontest.Connect(t, exporter.NewProvider(ch))
	var got []string
	add := func(kind string, attrs map[string]string) { got = append(got, kind+attrs["a"]) }
	if err := (exporter.Daemon{}).FindExporters(t.Context(), c, map[string][]byte{"k": []byte("v")}, []string{"r1", "r2"}, add); err != nil {
		t.Fatal(err)
	}
	if strings.Join(got, " ") != "t0b t1b" || ch.seen != "v[r1 r2]" {
		t.Errorf("got exporters %v, the client saw %q", got, ch.seen)
	}
	want := map[string]string{"containerimage.digest": "x"}
	if err := (exporter.Daemon{}).FinalizeExport(t.Context(), c, want); err != nil || !maps.Equal(ch.told, want) {
		t.Errorf("the client was told %v, %v", ch.told, err)
	}
}

func TestTrouble(t *testing.T) {
	nothing := func(string, map[string]string) { t.Error("an exporter was added") }
	for what, test := range map[string]struct {
		choice choice
		fails  string
	}{
		"too many":    {choice{n: 1000}, "at most"},
		"its own":     {choice{err: errors.New("no disk")}, "no disk"},
		"unavailable": {choice{err: status.Error(codes.Unavailable, "not now")}, ""},
		"unknown":     {choice{err: status.Error(codes.Unimplemented, "not me")}, ""},
	} {
		c := sessiontest.Connect(t, exporter.NewProvider(&test.choice))
		err := (exporter.Daemon{}).FindExporters(t.Context(), c, nil, nil, nothing)
		if (err == nil) != (test.fails == "") || err != nil && !strings.Contains(err.Error(), test.fails) {
			t.Errorf("%s: got %v, expected %q", what, err, test.fails)
		}
	}
	none := sessiontest.Connect(t)
	if err := (exporter.Daemon{}).FindExporters(t.Context(), none, nil, nil, nothing); err != nil {
		t.Errorf("a client without the service: %v", err)
	}
	if err := (exporter.Daemon{}).FinalizeExport(t.Context(), none, nil); err != nil {
		t.Errorf("a client without the service: %v", err)
	}
}
