package gc

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/internal/store"
)

func TestPlan(t *testing.T) {
	const gb = 1 << 30
	for name, tc := range map[string]struct {
		policy Policy
		disk   Disk
		act    bool
		keep   int64
	}{
		"no limits":            {Policy{}, Disk{Total: 100 * gb, Free: 90 * gb, Used: gb}, true, 0},
		"nothing there":        {Policy{MaxUsed: gb}, Disk{Total: 100 * gb, Free: 100 * gb}, false, 0},
		"below the limit":      {Policy{MaxUsed: 2 * gb}, Disk{Total: 100 * gb, Free: 9 * gb, Used: 2 * gb}, false, 0},
		"above the limit":      {Policy{MaxUsed: 2 * gb}, Disk{Total: 100 * gb, Free: 9 * gb, Used: 3 * gb}, true, 2 * gb},
		"disk is full":         {Policy{MinFree: 10 * gb}, Disk{Total: 100 * gb, Free: 4 * gb, Used: 20 * gb}, true, 14 * gb},
		"disk has room":        {Policy{MinFree: 10 * gb}, Disk{Total: 100 * gb, Free: 11 * gb, Used: 20 * gb}, false, 0},
		"others filled it":     {Policy{MinFree: 10 * gb}, Disk{Total: 100 * gb, Free: 0, Used: 3 * gb}, true, 0},
		"but some is ours":     {Policy{MinFree: 10 * gb, Reserved: 2 * gb}, Disk{Total: 100 * gb, Free: 0, Used: 3 * gb}, true, 2 * gb},
		"and that is all":      {Policy{MinFree: 10 * gb, Reserved: 3 * gb}, Disk{Total: 100 * gb, Free: 0, Used: 3 * gb}, false, 0},
		"the tighter one":      {Policy{MaxUsed: 15 * gb, MinFree: 10 * gb}, Disk{Total: 100 * gb, Free: 4 * gb, Used: 20 * gb}, true, 14 * gb},
		"only a floor":         {Policy{Reserved: 5 * gb}, Disk{Total: 100 * gb, Free: 50 * gb, Used: 20 * gb}, true, 5 * gb},
		"floor above the rest": {Policy{MaxUsed: gb, Reserved: 5 * gb}, Disk{Total: 100 * gb, Free: 50 * gb, Used: 20 * gb}, true, 5 * gb},
	} {
		if plan := tc.policy.Plan(tc.disk); plan.Act != tc.act || plan.Keep != tc.keep {
			t.Errorf("%s: plan is %+v, want act %v, keep %d", name, plan, tc.act, tc.keep)
		}
	}
}

func TestFilters(t *testing.T) {
	u := layer.Usage{
		Record:  layer.Record{ID: "abc123", Parent: "p", Type: "regular", Description: "RUN apt-get update"},
		Parents: []string{"p"}, Shared: true,
	}
	for text, want := range map[string]bool{
		"type==regular":            true,
		"type==source.local":       false,
		"type!=source.local":       true,
		"type!=regular":            false,
		"id==abc123":               true,
		"":                         true,
		"shared":                   true,
		"private":                  false,
		"inuse":                    false,
		"immutable":                true,
		"id~=^abc[0-9]+$":          true,
		"parents==p":               true,
		"description~=apt-get":     true,
		"type==x,type==regular":    false,
		"type==regular,id==abc123": true,
	} {
		f, err := ParseFilters([]string{text})
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if f(u) != want {
			t.Errorf("%q is %v", text, !want)
		}
	}
	for _, text := range []string{"type=x", "id~=[", "type==a,", "==x"} {
		if _, err := ParseFilters([]string{text}); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	some, err := ParseFilters([]string{"type==regular", "id==x"})
	if err != nil || !some(u) {
		t.Errorf("one of two filters is not enough (%v)", err)
	}
	all, err := ParseFilters(nil)
	if err != nil || !all(u) {
		t.Errorf("without filters not all holds (%v)", err)
	}
}

// fakeLayers removes what it is told to.
type fakeLayers struct {
	usage  []layer.Usage
	prunes int
	fail   error
}

func (f *fakeLayers) DiskUsage(context.Context) ([]layer.Usage, error) { return f.usage, nil }
func (f *fakeLayers) Sweep(context.Context) (int64, error)             { return 0, nil }
func (f *fakeLayers) Folders() (counted, linked []string)              { return nil, nil }

func (f *fakeLayers) Prune(_ context.Context, o layer.PruneOptions, report func(layer.Usage)) error {
	f.prunes++
	f.usage = slices.DeleteFunc(slices.Clone(f.usage), func(u layer.Usage) bool {
		gone := !u.InUse && (o.Filter == nil || o.Filter(u.Record))
		if gone {
			report(u)
		}
		return gone
	})
	return f.fail
}

func TestRun(t *testing.T) {
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	saved := time.Now().Add(-time.Minute)
	for key, outputs := range map[solver.Key][]store.Output{
		"old": {{Layer: "old"}}, "both": {{Layer: "new"}, {Layer: "old"}}, "new": {{Layer: "new"}}, "empty": {{}},
	} {
		if err := st.PutResult(key, store.Result{Outputs: outputs, SavedAt: saved}); err != nil {
			t.Fatal(err)
		}
	}
	if err := st.PutStep("old", store.Step{Name: "RUN"}); err != nil {
		t.Fatal(err)
	}
	layers := &fakeLayers{usage: []layer.Usage{
		{Record: layer.Record{ID: "old"}, Size: 100}, {Record: layer.Record{ID: "new"}, Size: 10},
	}}
	c := Collector{Root: t.TempDir(), Layers: layers, Store: st}
	var gone []string
	report := func(u layer.Usage) { gone = append(gone, u.ID) }
	policies := []Policy{{MaxUsed: 1000}, {MaxUsed: 50, Filters: []string{"id==old"}, By: "by a test"}, {MaxUsed: 50}}
	if err := c.Run(context.Background(), policies, report); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(gone, []string{"old"}) || layers.prunes != 1 {
		t.Errorf("gone are %v by %d", gone, layers.prunes)
	}
	for key, want := range map[solver.Key]bool{"old": false, "both": false, "new": true, "empty": true} {
		if _, ok := st.Result(key); ok != want {
			t.Errorf("result %q is kept: %v", key, ok)
		}
	}
	if st, _ := st.Step("old"); st.EvictedBy != "by a test" || time.Since(st.EvictedAt) > time.Minute {
		t.Errorf("what is known of the removed step is %+v", st)
	}
	if err := st.PutDigest("part", "sha256:0"); err != nil {
		t.Fatal(err)
	}
	if err := c.Run(context.Background(), []Policy{{Filters: []string{"id==none"}}}, nil); err != nil {
		t.Fatal(err)
	}
	if _, ok := st.Digest("part"); !ok {
		t.Error("to prune a part has forgotten what contents there are")
	}
	if err := c.Run(context.Background(), []Policy{{All: true}}, nil); err != nil {
		t.Fatal(err)
	}
	for _, key := range []solver.Key{"new", "empty"} {
		if _, ok := st.Result(key); ok {
			t.Errorf("result %q is left when everything was removed", key)
		}
	}
	if _, ok := st.Digest("part"); ok {
		t.Error("a digest of content is left when everything was removed")
	}
	layers.usage = []layer.Usage{{Record: layer.Record{ID: "more"}, Size: 100}}
	layers.fail = errors.New("disk is on fire")
	if err := c.Run(context.Background(), []Policy{{}}, nil); !errors.Is(err, layers.fail) {
		t.Errorf("error is %v", err)
	}
	if err := (&Collector{Root: "/nowhere", Layers: layers, Store: st}).Run(context.Background(), policies, nil); err == nil {
		t.Error("a disk that is not there is no error")
	}
}

// shelf is a Keeper for tests.
type shelf struct {
	usage   []layer.Usage
	removed []string
}

func (s *shelf) Usage() ([]layer.Usage, error) { return slices.Clone(s.usage), nil }

func (s *shelf) Remove(id string) (bool, error) {
	i := slices.IndexFunc(s.usage, func(u layer.Usage) bool { return u.ID == id && !u.InUse })
	if i < 0 {
		return false, nil
	}
	s.removed = append(s.removed, id)
	s.usage = slices.Delete(s.usage, i, i+1)
	return true, nil
}

func thing(id, kind string, age time.Duration, size int64) layer.Usage {
	return layer.Usage{Record: layer.Record{ID: id, Type: kind, LastUsed: time.Now().Add(-age)}, Size: size}
}

// TestOthers prunes what is no layer beside what is one.
func TestOthers(t *testing.T) {
	day := 24 * time.Hour
	for name, tc := range map[string]struct {
		policy Policy
		want   []string // removed: others in their order, then layers
	}{
		"everything":            {Policy{}, []string{"git", "mount", "a"}},
		"internals too":         {Policy{All: true}, []string{"git", "mount", "a", "b"}},
		"by type":               {Policy{Filters: []string{"type==exec.cachemount", "type==source.git.checkout"}}, []string{"git", "mount"}},
		"what is old":           {Policy{KeepFor: 3 * day}, []string{"git"}},
		"the oldest first":      {Policy{MaxUsed: 350}, []string{"git"}},
		"layers too":            {Policy{MaxUsed: 250}, []string{"git", "a"}},
		"all of the candidates": {Policy{MaxUsed: 1}, []string{"git", "mount", "a"}},
		"enough room":           {Policy{MaxUsed: 450}, nil},
		"another's filter":      {Policy{Filters: []string{"id==nothing"}}, nil},
	} {
		st, err := store.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		layers := &fakeLayers{usage: []layer.Usage{thing("a", "regular", 2*day, 100), thing("b", "internal", 9*day, 100)}}
		others := &shelf{usage: []layer.Usage{
			thing("mount", "exec.cachemount", day, 100), thing("git", "source.git.checkout", 5*day, 100),
		}}
		others.usage = append(others.usage, layer.Usage{Record: layer.Record{ID: "busy", LastUsed: time.Time{}}, InUse: true})
		c := Collector{Root: t.TempDir(), Layers: layers, Store: st, Others: others}
		var gone []string
		if err := c.Run(t.Context(), []Policy{tc.policy}, func(u layer.Usage) { gone = append(gone, u.ID) }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !slices.Equal(gone, tc.want) {
			t.Errorf("%s: removed %v, want %v", name, gone, tc.want)
		}
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestFiltersSeeAll prunes by a field that is not a part of a layer's record.
func TestFiltersSeeAll(t *testing.T) {
	st, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	layers := &fakeLayers{usage: []layer.Usage{
		{Record: layer.Record{ID: "shared"}, Shared: true, Size: 1}, {Record: layer.Record{ID: "own"}, Size: 1},
	}}
	var gone []string
	report := func(u layer.Usage) { gone = append(gone, u.ID) }
	err = (&Collector{Root: t.TempDir(), Layers: layers, Store: st}).Run(t.Context(), []Policy{{Filters: []string{"private"}}}, report)
	if err != nil || !slices.Equal(gone, []string{"own"}) {
		t.Errorf("gone are %v (%v)", gone, err)
	}
}
