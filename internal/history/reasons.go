package history

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Step is a step of a build as its cache saw it. The JSON form of a list of
// them is what [MediaTypeCacheReasons] holds.
type Step struct {
	Name      string      `json:"name"`
	Key       string      `json:"key"`       // of the result
	Operation string      `json:"operation"` // digest of what the step does
	Inputs    []StepInput `json:"inputs,omitempty"`
	Ran       bool        `json:"ran,omitempty"`    // it was not cached
	Fresh     bool        `json:"fresh,omitempty"`  // the cache was not wanted
	Local     bool        `json:"local,omitempty"`  // it holds for one build only
	Reason    string      `json:"reason,omitempty"` // why it ran, in words
}

// StepInput is what a step reads: some files by their content, or all that
// another step makes by how it is made.
type StepInput struct {
	Key      string `json:"key"`
	Selector string `json:"selector,omitempty"`
	Content  string `json:"content,omitempty"` // digest, where that is what counts
}

const (
	compareBuilds = 10      // ended builds that steps are compared with
	largestSteps  = 8 << 20 // bytes of their description
)

// RecordSteps keeps the steps of a build and says of each that ran why, by
// comparing it with the steps of the same name of the builds before.
func (h *History) RecordSteps(ref string, steps []Step) error {
	var before map[string][]Step
	if slices.ContainsFunc(steps, func(s Step) bool { return s.Ran && !s.Local && !s.Fresh }) {
		before = h.stepsBefore()
	}
	explain(steps, before)
	data, err := json.Marshal(steps)
	if err != nil {
		return fmt.Errorf("encode steps of build %s: %w", ref, err)
	}
	return h.AttachCacheReasons(ref, Blob{MediaType: MediaTypeCacheReasons, Data: data})
}

// stepsBefore are the steps of the last builds by name, the newest first. What
// cannot be read is left out: it would only have made reasons better.
func (h *History) stepsBefore() map[string][]Step {
	h.mu.Lock()
	type build struct {
		ref string
		ended
	}
	var builds []build
	for ref, e := range h.ended {
		builds = append(builds, build{ref, e})
	}
	h.mu.Unlock()
	slices.SortFunc(builds, func(a, b build) int { return b.completed.Compare(a.completed) })
	before := map[string][]Step{}
	for _, b := range builds[:min(len(builds), compareBuilds)] {
		for _, s := range h.stepsOf(b.ref) {
			before[s.Name] = append(before[s.Name], s)
		}
	}
	return before
}

func (h *History) stepsOf(ref string) (steps []Step) {
	r, err := h.Get(ref)
	if err != nil || r.CacheReasons == nil || r.CacheReasons.Size > largestSteps {
		return nil
	}
	b, err := h.Open(r.CacheReasons.Digest)
	if err != nil {
		return nil
	}
	defer b.Close()
	if json.NewDecoder(io.NewSectionReader(b, 0, b.Size())).Decode(&steps) != nil {
		return nil
	}
	return steps
}

// explain gives every step that ran its reason.
func explain(steps []Step, before map[string][]Step) {
	names := map[string]string{}
	for _, s := range steps {
		names[s.Key] = s.Name
	}
	for i := range steps {
		if steps[i].Ran {
			steps[i].Reason = steps[i].why(before[steps[i].Name], names)
		}
	}
}

// why compares the step with the one that it has most in common with.
func (s Step) why(before []Step, names map[string]string) string {
	switch {
	case s.Fresh:
		return "the cache was not wanted, for it or for a step that it is built on"
	case s.Local:
		return "what it brings in is looked at in every build"
	case len(before) == 0:
		return "no build of late has a step of this name"
	}
	near := slices.MaxFunc(before, func(a, b Step) int { return s.common(a) - s.common(b) })
	if near.Key == s.Key {
		return "its result is no longer kept, or not for other builds"
	}
	var parts []string
	if near.Operation != s.Operation {
		parts = append(parts, "the step itself has changed")
	}
	if len(near.Inputs) != len(s.Inputs) {
		parts = append(parts, fmt.Sprintf("it has %d inputs, had %d", len(s.Inputs), len(near.Inputs)))
	} else {
		for i, in := range s.Inputs {
			if text := in.differs(near.Inputs[i], names); text != "" {
				parts = append(parts, text)
			}
		}
	}
	return strings.Join(parts, "; ")
}

// common counts what two steps have in common.
func (s Step) common(o Step) (n int) {
	if s.Key == o.Key {
		n += len(s.Inputs) + 2
	}
	if s.Operation == o.Operation {
		n++
	}
	for i, in := range s.Inputs {
		if i < len(o.Inputs) && in.differs(o.Inputs[i], nil) == "" {
			n++
		}
	}
	return n
}

// differs says in what way an input is another, or "".
func (in StepInput) differs(o StepInput, names map[string]string) string {
	name := names[in.Key]
	if name == "" {
		name = "an input"
	}
	switch {
	case in.Selector != o.Selector:
		return fmt.Sprintf("it reads %q of %s, read %q", in.Selector, name, o.Selector)
	case in.Content != "" && o.Content != "" && in.Content != o.Content:
		if strings.HasPrefix(in.Selector, "/") {
			return fmt.Sprintf("the files %s of %s have changed", in.Selector, name)
		}
		return fmt.Sprintf("the files that it reads of %s have changed", name) // the selector of many paths is a digest
	case (in.Content == "" || o.Content == "") && in.Key != o.Key:
		return fmt.Sprintf("%s, which it is built on, has changed", name)
	}
	return ""
}
