package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/kiln"
)

// Outcome is what became of a step of a build.
type Outcome string

// The outcomes.
const (
	OutcomeCached    Outcome = "cached"
	OutcomeRan       Outcome = "ran"
	OutcomeFailed    Outcome = "failed"
	OutcomeNotNeeded Outcome = "not needed"
	// OutcomeEveryBuild is that of a step that no cache keeps, such as the transfer
	// of a client's folder.
	OutcomeEveryBuild Outcome = "ran as in every build"
)

// Explanation tells what the cache had of a build, and why it had no more.
type Explanation struct {
	Ref   string        `json:"ref"`
	Steps []StepOutcome `json:"steps"` // each after those that it reads
	Cache CacheStats    `json:"cache"`
}

// StepOutcome is what became of a step, and why.
type StepOutcome struct {
	Number      int           `json:"number"` // from 1
	Name        string        `json:"name"`
	Key         string        `json:"key"`
	Outcome     Outcome       `json:"outcome"`
	Took        time.Duration `json:"took,omitempty"`   // nanoseconds, if it ran
	Reason      string        `json:"reason,omitempty"` // why it ran
	Differences []Difference  `json:"differences,omitempty"`
	// ComparedWith is the ref of the build that had the step which the
	// differences are to.
	ComparedWith string `json:"comparedWith,omitempty"`
}

// Difference is a part of a step's key that is not as it was.
type Difference struct {
	// Kind is what differs: "build-arg", "env", "file", "folder", "files", "image",
	// "source", "platform", "mount", "instruction", "data", "setting", "secret",
	// "input", "no-cache", "evicted", "result", "further" or "definition".
	Kind     string `json:"kind"`
	Name     string `json:"name,omitempty"` // such as a path
	Was      string `json:"was,omitempty"`
	Now      string `json:"now,omitempty"`
	Step     string `json:"step,omitempty"` // whose part it is, if it is a step's below
	Sentence string `json:"sentence"`       // the same in words
}

// CacheStats is what the cache was worth to a build.
type CacheStats struct {
	Steps      int           `json:"steps"` // that a cache can have
	Hits       int           `json:"hits"`
	SavedBytes int64         `json:"savedBytes"` // of files that were not made again
	SavedTime  time.Duration `json:"savedTime"`  // nanoseconds that the steps took when they ran
}

// ErrNotKiln says that a daemon lacks what only Kiln's has.
var ErrNotKiln = errors.New("the daemon is not Kiln's, or an older one")

// own makes an error of a call of Kiln's own service one for people.
func (c *Client) own(err error) error {
	if status.Code(err) == codes.Unimplemented {
		return fmt.Errorf("%w: it does not know this command", ErrNotKiln)
	}
	return c.wrap(err)
}

// Why tells why steps of a build ran and were not cached. Without a ref it is
// of the build that ended last.
func (c *Client) Why(ctx context.Context, ref string) (*Explanation, error) {
	r, err := kiln.NewKilnClient(c.conn).Why(ctx, &kiln.WhyRequest{Ref: ref})
	if err != nil {
		return nil, c.own(err)
	}
	out := &Explanation{Ref: r.GetRef(), Steps: []StepOutcome{}, Cache: CacheStats{
		Steps: int(r.GetStats().GetSteps()), Hits: int(r.GetStats().GetHits()), SavedBytes: r.GetStats().GetSavedBytes(),
		SavedTime: time.Duration(r.GetStats().GetSavedNanoseconds()),
	}}
	for _, s := range r.GetSteps() {
		out.Steps = append(out.Steps, StepOutcome{
			Number: int(s.GetNumber()), Name: s.GetName(), Key: s.GetKey(), Outcome: outcome(s.GetOutcome()), Reason: s.GetReason(),
			Took: time.Duration(s.GetNanoseconds()), Differences: differences(s.GetDifferences()), ComparedWith: s.GetComparedWith(),
		})
	}
	return out, nil
}

func outcome(o kiln.Outcome) Outcome {
	switch o {
	case kiln.Outcome_CACHED:
		return OutcomeCached
	case kiln.Outcome_RAN:
		return OutcomeRan
	case kiln.Outcome_FAILED:
		return OutcomeFailed
	case kiln.Outcome_EVERY_BUILD:
		return OutcomeEveryBuild
	}
	return OutcomeNotNeeded
}

func differences(ds []*kiln.Difference) (out []Difference) {
	for _, d := range ds {
		out = append(out, Difference{
			Kind: d.GetKind(), Name: d.GetName(), Was: d.GetWas(), Now: d.GetNow(), Step: d.GetStep(), Sentence: d.GetSentence(),
		})
	}
	return out
}

// CacheRecord is a step that the cache knows.
type CacheRecord struct {
	Key       string        `json:"key"`
	Name      string        `json:"name"`
	Operation string        `json:"operation"` // digest of what the step does
	Parts     []KeyPart     `json:"parts,omitempty"`
	Inputs    []KeyInput    `json:"inputs,omitempty"`
	Kept      bool          `json:"kept"` // there is a result
	Outputs   []CacheOutput `json:"outputs,omitempty"`
	Size      int64         `json:"size"` // bytes of the result's files
	Took      time.Duration `json:"took"` // nanoseconds
	Made      time.Time     `json:"made"`
	Build     string        `json:"build,omitempty"` // ref of the build that made it
	Evicted   time.Time     `json:"evicted,omitzero"`
	EvictedBy string        `json:"evictedBy,omitempty"`
}

// KeyPart is a part of what a step does.
type KeyPart struct {
	Kind  string `json:"kind"`
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
}

// KeyInput is what a step reads.
type KeyInput struct {
	Key      string `json:"key"`
	Name     string `json:"name,omitempty"` // of the step that makes it, if that is known
	Selector string `json:"selector,omitempty"`
	Content  string `json:"content,omitempty"` // digest, where the content counts
	Files    int    `json:"files,omitempty"`   // of which the digests are known
}

// CacheOutput is a result of a step.
type CacheOutput struct {
	Layer  string `json:"layer,omitempty"`
	Size   int64  `json:"size"`             // bytes
	Absent bool   `json:"absent,omitempty"` // it was not made: nobody wanted it
}

func cacheRecord(r *kiln.CacheRecord) CacheRecord {
	out := CacheRecord{
		Key: r.GetKey(), Name: r.GetName(), Operation: r.GetOperation(), Kept: r.GetKept(), Size: r.GetSize(),
		Took: time.Duration(r.GetNanoseconds()), Build: r.GetBuild(), EvictedBy: r.GetEvictedBy(), Made: r.GetMadeAt().AsTime(),
	}
	if t := r.GetEvictedAt(); t != nil {
		out.Evicted = t.AsTime()
	}
	for _, p := range r.GetParts() {
		out.Parts = append(out.Parts, KeyPart{p.GetKind(), p.GetName(), p.GetValue()})
	}
	for _, in := range r.GetInputs() {
		out.Inputs = append(out.Inputs, KeyInput{in.GetKey(), in.GetName(), in.GetSelector(), in.GetContent(), int(in.GetFiles())})
	}
	for _, o := range r.GetOutputs() {
		out.Outputs = append(out.Outputs, CacheOutput{o.GetLayer(), o.GetSize(), o.GetAbsent()})
	}
	return out
}

// ListCache calls f for each step that the cache knows and whose name has a
// word in it, those made last first. Parts and Inputs are left out.
func (c *Client) ListCache(ctx context.Context, word string, f func(CacheRecord) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := kiln.NewKilnClient(c.conn).ListCache(ctx, &kiln.ListCacheRequest{Filter: word})
	if err != nil {
		return c.own(err)
	}
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return c.own(err)
		}
		if err := f(cacheRecord(r)); err != nil {
			return err
		}
	}
}

// ShowCache tells all that the cache knows of a step. The key may be cut short.
func (c *Client) ShowCache(ctx context.Context, key string) (CacheRecord, error) {
	r, err := kiln.NewKilnClient(c.conn).ShowCache(ctx, &kiln.ShowCacheRequest{Key: key})
	if err != nil {
		return CacheRecord{}, c.own(err)
	}
	return cacheRecord(r), nil
}

// CacheDiff tells how two steps differ.
type CacheDiff struct {
	A           CacheRecord  `json:"a"`
	B           CacheRecord  `json:"b"`
	Differences []Difference `json:"differences"` // from A to B; none if it is one step
}

// DiffCache compares the keys of two steps. Keys may be cut short.
func (c *Client) DiffCache(ctx context.Context, a, b string) (*CacheDiff, error) {
	r, err := kiln.NewKilnClient(c.conn).DiffCache(ctx, &kiln.DiffCacheRequest{A: a, B: b})
	if err != nil {
		return nil, c.own(err)
	}
	return &CacheDiff{A: cacheRecord(r.GetA()), B: cacheRecord(r.GetB()), Differences: differences(r.GetDifferences())}, nil
}
