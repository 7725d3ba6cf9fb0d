package history

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// Step is a step of a build as its cache saw it. The JSON form of a list of
// them is what [MediaTypeCacheReasons] holds, each after the steps that it reads.
type Step struct {
	Name      string            `json:"name"`
	Key       string            `json:"key"`       // of the result
	Operation string            `json:"operation"` // digest of what the step does
	Parts     []Part            `json:"parts,omitempty"`
	Args      map[string]string `json:"args,omitempty"` // build arguments that parts may come from
	Inputs    []StepInput       `json:"inputs,omitempty"`
	Ran       bool              `json:"ran,omitempty"`    // it was not cached
	Cached    bool              `json:"cached,omitempty"` // its result was there, or not needed
	Made      bool              `json:"made,omitempty"`   // there was a result of it
	Fresh     bool              `json:"fresh,omitempty"`  // the cache was not wanted
	Local     bool              `json:"local,omitempty"`  // it holds for one build only
	Took      time.Duration     `json:"took,omitempty"`   // nanoseconds, if it ran
	// Reason is why it ran, in words. Differences are the same for programs: what
	// is not as it was in the nearest step of an earlier build, which is Near.
	Reason      string       `json:"reason,omitempty"`
	Differences []Difference `json:"differences,omitempty"`
	Near        string       `json:"near,omitempty"` // ref of a build
}

// Difference is a part of a key that is not as it was.
type Difference struct {
	Kind string `json:"kind"`           // see [Sentence]
	Name string `json:"name,omitempty"` // such as a path
	Was  string `json:"was,omitempty"`
	Now  string `json:"now,omitempty"`
	Step string `json:"step,omitempty"` // whose part it is, if it is a step's below
}

// Kinds of differences, besides the kinds of parts that operations have.
const (
	KindBuildArg = "build-arg"
	KindEnv      = "env"
	KindImage    = "image"
	kindSource   = "source"
	KindFile     = "file"
	KindFolder   = "folder" // with so many files that they are not told apart
	KindFiles    = "files"  // of which no more is known
	KindInput    = "input"
	KindNoCache  = "no-cache"
	KindEvicted  = "evicted"
	KindResult   = "result"  // is there no more, for reasons that nobody noted
	KindFurther  = "further" // steps below, of which each has its own reason
	KindUnnamed  = "definition"
)

// Sentence says a difference in words.
func (d Difference) Sentence() string {
	text := d.sentence()
	if d.Step != "" {
		return fmt.Sprintf("%s, which it is built on: %s", d.Step, text)
	}
	return text
}

func (d Difference) sentence() string {
	switch d.Kind {
	case KindBuildArg:
		return "build argument " + d.Name + d.change()
	case KindEnv:
		return "variable " + d.Name + d.change()
	case KindFile:
		switch {
		case d.Was == "":
			return fmt.Sprintf("file %s is new (%s)", d.Name, short(d.Now))
		case d.Now == "":
			return fmt.Sprintf("file %s is gone (was %s)", d.Name, short(d.Was))
		}
		return fmt.Sprintf("file %s has changed (%s, was %s)", d.Name, short(d.Now), short(d.Was))
	case KindFolder:
		return fmt.Sprintf("files below %s have changed (%s, was %s)", strings.TrimSuffix(d.Name, "…"), short(d.Now), short(d.Was))
	case KindFiles:
		return fmt.Sprintf("files that it reads of %s have changed (%s, was %s)", d.Name, short(d.Now), short(d.Was))
	case KindInput:
		if d.Now == d.Name && d.Was != "" {
			return fmt.Sprintf("it is built on %s, was on %s", d.Now, d.Was)
		}
		return fmt.Sprintf("it is built on %s, which has changed (%s, was %s)", d.Name, short(d.Now), short(d.Was))
	case KindNoCache:
		return "no cache was wanted, for it or for a step that it is built on"
	case KindEvicted:
		return fmt.Sprintf("its result was removed %s on %s", d.Name, d.Was)
	case KindFurther:
		return "more of the steps that it is built on have changed: see what is told of them"
	case KindResult:
		return "its result is no longer kept, or not all of it that is needed"
	case "secret":
		return fmt.Sprintf("secret %s has another value", d.Name)
	case KindImage:
		return "base image " + strings.TrimSpace(d.Name+d.change())
	case kindSource:
		return "source " + d.Name + d.change()
	case "platform":
		return "the platform" + d.change()
	case "instruction":
		return "the instruction" + d.change()
	case "mount":
		return "mount " + d.Name + d.change()
	case "data":
		d.Was, d.Now = short(d.Was), short(d.Now)
		return "the content of " + d.Name + d.change()
	case "setting":
		return d.Name + d.change()
	}
	return "its definition has changed in a part that has no name"
}

func (d Difference) change() string {
	switch {
	case d.Was == "":
		return fmt.Sprintf(" is %q, was not set", d.Now)
	case d.Now == "":
		return fmt.Sprintf(" is no longer set, was %q", d.Was)
	}
	return fmt.Sprintf(" is %q, was %q", d.Now, d.Was)
}

// short cuts a digest to what people can compare.
func short(d string) string {
	const shown = len("sha256:") + 12
	if strings.HasPrefix(d, "sha256:") && len(d) > shown {
		return d[:shown]
	}
	return d
}

// reason says differences in one line: the first, and how many more.
func reason(ds []Difference) string {
	switch len(ds) {
	case 0:
		return ""
	case 1:
		return ds[0].Sentence()
	}
	return fmt.Sprintf("%s; and %d more", ds[0].Sentence(), len(ds)-1)
}

const largestSteps = 8 << 20 // bytes of their description

// CacheStats is what the cache was worth to a build.
type CacheStats struct {
	Steps      int           `json:"steps,omitempty"` // that a cache can have
	Hits       int           `json:"hits,omitempty"`
	SavedBytes int64         `json:"savedBytes,omitempty"` // of files that were not made again
	SavedTime  time.Duration `json:"savedTime,omitempty"`  // that steps took when they ran
}

// RecordSteps keeps the steps of a build, and what the cache was worth to it.
func (h *History) RecordSteps(ref string, steps []Step, c CacheStats) error {
	data, err := json.Marshal(steps)
	if err != nil {
		return fmt.Errorf("encode steps of build %s: %w", ref, err)
	}
	if err := h.update(ref, func(r *Record) { r.Cache = c }); err != nil {
		return err
	}
	return h.AttachCacheReasons(ref, Blob{MediaType: MediaTypeCacheReasons, Data: data})
}

// Last returns the ref of the build that ended last, or "".
func (h *History) Last() (ref string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var last time.Time
	for r, e := range h.ended {
		if ref == "" || e.completed.After(last) {
			ref, last = r, e.completed
		}
	}
	return ref
}

// StepsOf returns the steps of a build that has ended.
func (h *History) StepsOf(ref string) (steps []Step, err error) {
	r, err := h.Get(ref)
	if err != nil {
		return nil, err
	}
	if r.CacheReasons == nil {
		return nil, nil
	}
	if r.CacheReasons.Size > largestSteps {
		return nil, fmt.Errorf("steps of build %s take %d bytes, at most %d are read", ref, r.CacheReasons.Size, largestSteps)
	}
	b, err := h.Open(r.CacheReasons.Digest)
	if err != nil {
		return nil, fmt.Errorf("open steps of build %s: %w", ref, err)
	}
	defer b.Close()
	if err := json.NewDecoder(io.NewSectionReader(b, 0, b.Size())).Decode(&steps); err != nil {
		return nil, fmt.Errorf("decode steps of build %s: %w", ref, err)
	}
	return steps, nil
}
