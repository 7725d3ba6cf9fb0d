// Package gc decides what of the cache to keep, and removes the rest.
//
// Deciding is pure: [Policy.Plan] turns limits and the state of the disk into
// how much may stay, and choose says what goes. The daemon runs a list of
// policies now and then; "kiln prune" runs one of its own. Beside the policies,
// which are about what is worth keeping, there may be one cap on everything
// below the root: [Collector.Hold] makes room before it is passed.
package gc

import (
	"cmp"
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"

	"github.com/kiln-build/kiln/internal/layer"
)

// Policy is one rule. A layer goes if it fits the filters, has not been used
// for KeepDuration, and room is needed or no limit is set.
type Policy struct {
	All     bool          // also internal layers and frontend images
	Filters []string      // one must hold, see [ParseFilters]
	KeepFor time.Duration // 0 spares nothing
	By      string        // who wants it, for people: "by a prune"; "" is the daemon
	// Limits in bytes, 0 for none. With none set, everything goes that may.
	MaxUsed  int64 // the cache should take no more
	Reserved int64 // the cache may always take this much
	MinFree  int64 // this much of the disk should be free
}

// takesAll tells whether the policy leaves nothing but what is in use.
func (p Policy) takesAll() bool {
	return len(p.Filters) == 0 && p.KeepFor == 0 && p.MaxUsed == 0 && p.Reserved == 0 && p.MinFree == 0
}

// Disk is the state of the file system that has the cache, in bytes.
type Disk struct {
	Total, Free int64
	Used        int64 // by the cache
}

// Plan is what a policy wants done.
type Plan struct {
	Act  bool
	Keep int64 // bytes that may stay; 0 takes all that may go
}

// Plan decides. It does nothing but compute.
func (p Policy) Plan(d Disk) Plan {
	if p.MaxUsed == 0 && p.Reserved == 0 && p.MinFree == 0 {
		return Plan{Act: true}
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
		return Plan{}
	}
	return Plan{Act: true, Keep: max(keep, 0)}
}

// ParseFilters returns a function that says whether one of the filters holds;
// without filters all holds. The syntax is containerd's, which BuildKit's clients
// send: FIELD, FIELD==VALUE, FIELD!=VALUE or
// FIELD~=REGEXP, with commas between those that must all hold. Fields are id,
// parents, description, type, inuse, shared, mutable, immutable and private.
func ParseFilters(texts []string) (func(layer.Usage) bool, error) {
	f, err := filters.ParseAll(texts...)
	if err == nil {
		err = checkPatterns(texts)
	}
	if err != nil {
		return nil, fmt.Errorf("filter %q: %w", texts, err)
	}
	return func(u layer.Usage) bool { return f.Match(filters.AdapterFunc(field(u))) }, nil
}

// checkPatterns finds bad regular expressions, which filters take as matching
// nothing.
func checkPatterns(texts []string) error {
	for _, text := range texts {
		for term := range strings.SplitSeq(text, ",") {
			if _, re, ok := strings.Cut(term, "~="); ok {
				if _, err := regexp.Compile(strings.Trim(re, `"/|`)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// field looks a field of u up, as filters want it: a flag is there or not.
func field(u layer.Usage) func(path []string) (string, bool) {
	mutable := u.Type == typeCacheMount
	return func(path []string) (string, bool) {
		if len(path) != 1 {
			return "", false
		}
		switch path[0] {
		case "id":
			return u.ID, true
		case "parents":
			return strings.Join(u.Parents, ";"), len(u.Parents) > 0
		case "description":
			return u.Description, u.Description != ""
		case "type":
			return cmp.Or(u.Type, "regular"), true
		case "inuse":
			return "", u.InUse
		case "mutable":
			return "", mutable
		case "immutable":
			return "", !mutable
		case "shared":
			return "", u.Shared
		case "private":
			return "", !u.Shared
		}
		return "", false
	}
}

// typeCacheMount is the type of what RUN --mount=type=cache keeps.
const typeCacheMount = "exec.cachemount"
