package history

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// A step that ran has a reason: what is not as it was when it last ran.
func TestReasons(t *testing.T) {
	source := Step{Name: "FROM", Key: "source", Operation: "pinned"}
	copied := Step{
		Name: "COPY", Key: "copy", Operation: "op", Ran: true,
		Inputs: []StepInput{{Key: "source"}, {Key: "context", Selector: "/src", Content: "one"}},
	}
	for name, tc := range map[string]struct {
		change func(*Step)
		want   string
	}{
		"the same":        {func(*Step) {}, "its result is no longer kept"},
		"no cache wanted": {func(s *Step) { s.Fresh = true }, "was not wanted"},
		"another name":    {func(s *Step) { s.Name = "COPY more" }, "no build of late has a step of this name"},
		"the step itself": {func(s *Step) { s.Key, s.Operation = "x", "other" }, "the step itself has changed"},
		"content":         {func(s *Step) { s.Key, s.Inputs[1].Content = "x", "two" }, "the files /src of an input have changed"},
		"what is below":   {func(s *Step) { s.Key, s.Inputs[0].Key = "x", "newer" }, "FROM, which it is built on, has changed"},
		"what it reads":   {func(s *Step) { s.Key, s.Inputs[1].Selector = "x", "/lib" }, `it reads "/lib" of an input, read "/src"`},
		"more inputs":     {func(s *Step) { s.Key, s.Inputs = "x", s.Inputs[:1] }, "it has 1 inputs, had 2"},
		"local":           {func(s *Step) { s.Local = true }, "looked at in every build"},
		"two things": {func(s *Step) { s.Key, s.Operation, s.Inputs[1].Content = "x", "other", "two" },
			"the step itself has changed; the files /src of an input have changed"},
		"cached":                {func(s *Step) { s.Ran = false }, ""},
		"same files, made anew": {func(s *Step) { s.Key, s.Operation, s.Inputs[1].Key = "x", "other", "newer" }, "the step itself has changed"},
	} {
		w := newWorld(t, DefaultRetention())
		steps := func(ref string, steps ...Step) []Step {
			b, err := w.Begin(Record{Ref: ref}, false)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Release()
			if err := w.RecordSteps(ref, steps); err != nil {
				t.Error(err)
			}
			if err := b.End(Outcome{}); err != nil {
				t.Error(err)
			}
			r, err := w.Get(ref)
			if err != nil {
				t.Fatal(err)
			}
			var got []Step
			if err := json.Unmarshal([]byte(w.read(r.CacheReasons.Digest)), &got); err != nil {
				t.Error(err)
			}
			return got
		}
		steps("before", source, copied)
		for i := range 3 { // of other builds that have a step of this name, none is nearer
			other := Step{Name: "COPY", Key: fmt.Sprint("other", i), Operation: fmt.Sprint("other", i), Ran: true}
			steps(fmt.Sprint("other", i), other)
		}
		now, below := copied, source
		now.Inputs = append([]StepInput{}, copied.Inputs...)
		tc.change(&now)
		below.Key = now.Inputs[0].Key
		got := steps("now", below, now)
		if got[0].Reason != "" || !strings.Contains(got[1].Reason, tc.want) || (got[1].Reason == "") != (tc.want == "") {
			t.Errorf("%s: reason is %q, want %q", name, got[1].Reason, tc.want)
		}
	}
}
