// Package gc decides what of the cache to keep, and removes the rest.
//
// Deciding is pure: [Policy.Plan] turns limits and the state of the disk into
// what the layer store is to do. The daemon runs a list of policies now and
// then; "kiln prune" runs one of its own.
package gc

import (
	"fmt"
	"math"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kiln-build/kiln/internal/layer"
)

// Policy is one rule. A layer goes if it fits the filters, has not been used
// for KeepDuration, and room is needed or no limit is set.
type Policy struct {
	All     bool          // also internal layers and frontend images
	Filters []string      // each must hold, see [ParseFilter]
	KeepFor time.Duration // 0 spares nothing
	// Limits in bytes, 0 for none. With none set, everything goes that may.
	MaxUsed  int64 // the cache should take no more
	Reserved int64 // the cache may always take this much
	MinFree  int64 // this much of the disk should be free
}

// Disk is the state of the file system that has the cache, in bytes.
type Disk struct {
	Total, Free int64
	Used        int64 // by the cache
}

// Plan is what a policy wants done.
type Plan struct {
	Act     bool
	Options layer.PruneOptions
}

// Plan decides. It does nothing but compute.
func (p Policy) Plan(d Disk) (Plan, error) {
	filter, err := ParseFilters(p.Filters)
	if err != nil {
		return Plan{}, err
	}
	plan := Plan{Act: true, Options: layer.PruneOptions{All: p.All, KeepDuration: p.KeepFor, Filter: filter}}
	if p.MaxUsed == 0 && p.Reserved == 0 && p.MinFree == 0 {
		return plan, nil
	}
	keep := int64(math.MaxInt64)
	if p.MaxUsed > 0 {
		keep = p.MaxUsed
	}
	if p.MinFree > 0 {
		keep = min(keep, d.Used-(p.MinFree-d.Free))
	}
	if p.MaxUsed == 0 && p.MinFree == 0 {
		keep = 0 // nothing but a floor is set
	}
	keep = max(keep, p.Reserved)
	if d.Used <= keep {
		return Plan{}, nil
	}
	// 0 would mean no limit, which comes to the same.
	plan.Options.KeepBytes = max(keep, 0)
	return plan, nil
}

// DefaultPolicies are those of a daemon that is told nothing: things quick to
// have again go first, and the cache stays in its share of the disk.
func DefaultPolicies(d Disk) []Policy {
	const gb = 1e9
	share := func(percent int64, most float64) int64 { return min(d.Total/100*percent, int64(most)) }
	limits := Policy{Reserved: share(10, 10*gb), MaxUsed: share(60, 100*gb), MinFree: share(20, 20*gb)}
	first, second, last := limits, limits, limits
	first.Filters = []string{"type==source.local,type==exec.cachemount"}
	first.KeepFor, first.Reserved, first.MaxUsed, first.MinFree = 48*time.Hour, 0, 512e6, 0
	second.KeepFor = 60 * 24 * time.Hour
	last.All = true
	return []Policy{first, second, limits, last}
}

// ParseFilters returns a function that says whether all filters hold; nil for none.
func ParseFilters(filters []string) (func(layer.Record) bool, error) {
	var all []func(layer.Record) bool
	for _, f := range filters {
		one, err := ParseFilter(f)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	if len(all) == 0 {
		return nil, nil
	}
	return func(r layer.Record) bool {
		return !slices.ContainsFunc(all, func(f func(layer.Record) bool) bool { return !f(r) })
	}, nil
}

// ParseFilter reads alternatives divided by commas, each FIELD==VALUE,
// FIELD!=VALUE or FIELD~=REGEXP. Fields are id, parent, type and description;
// a VALUE of id may have the wildcards of [path.Match].
func ParseFilter(text string) (func(layer.Record) bool, error) {
	var any []func(layer.Record) bool
	for _, term := range strings.Split(text, ",") {
		f, err := parseTerm(term)
		if err != nil {
			return nil, fmt.Errorf("filter %q: %w", text, err)
		}
		any = append(any, f)
	}
	return func(r layer.Record) bool {
		return slices.ContainsFunc(any, func(f func(layer.Record) bool) bool { return f(r) })
	}, nil
}

func parseTerm(term string) (func(layer.Record) bool, error) {
	at := strings.IndexAny(term, "=!~")
	if at < 0 || at+2 > len(term) || term[at+1] != '=' {
		return nil, fmt.Errorf("%q is no condition: want FIELD==VALUE, FIELD!=VALUE or FIELD~=REGEXP", term)
	}
	name, operator, value := term[:at], term[at:at+2], term[at+2:]
	field, ok := fields[name]
	if !ok {
		return nil, fmt.Errorf("field %q is unknown: want id, parent, type or description", name)
	}
	if operator == "~=" {
		re, err := regexp.Compile(value)
		if err != nil {
			return nil, err
		}
		return func(r layer.Record) bool { return re.MatchString(field(r)) }, nil
	}
	if _, err := path.Match(value, ""); err != nil {
		return nil, fmt.Errorf("pattern %q: %w", value, err)
	}
	return func(r layer.Record) bool {
		got := field(r)
		same := got == value
		if name == "id" && !same {
			same, _ = path.Match(value, got) // the pattern was checked
		}
		return same == (operator == "==")
	}, nil
}

var fields = map[string]func(layer.Record) string{
	"id":          func(r layer.Record) string { return r.ID },
	"parent":      func(r layer.Record) string { return r.Parent },
	"type":        func(r layer.Record) string { return r.Type },
	"description": func(r layer.Record) string { return r.Description },
}
