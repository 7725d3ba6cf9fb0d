package daemon

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/progress"
)

// reasons are why steps of a build ran, by their keys.
type reasons struct {
	args map[string]string // build arguments of the request

	mu    sync.Mutex
	known map[build.Key]*history.Reason
	steps map[build.Key]history.Step // that others were compared by: what of them counts does not change
}

// explainer has each step that runs though an earlier build had it say why.
func (s *Server) explainer(run *running, attrs map[string]string) func(build.Step, *progress.Step, func(build.Key) (build.Step, bool)) {
	r := &run.reasons
	r.args, r.known = map[string]string{}, map[build.Key]*history.Reason{}
	r.steps = map[build.Key]history.Step{}
	for k, v := range attrs {
		if name, ok := strings.CutPrefix(k, "build-arg:"); ok {
			r.args[name] = v
		}
	}
	explainer := s.config.Ledger.Explainer()
	return func(st build.Step, to *progress.Step, other func(build.Key) (build.Step, bool)) {
		reason := explainer.Explain(r.step(st), func(key string) (history.Step, bool) {
			return r.other(build.Key(key), other)
		})
		if reason == nil {
			return
		}
		r.mu.Lock()
		r.known[st.Key] = reason
		r.mu.Unlock()
		to.Note("not cached: " + reason.Sentence())
	}
}

// other is another step of the build as the history has it. A step that many
// are built on is asked for by each of them.
func (r *reasons) other(key build.Key, find func(build.Key) (build.Step, bool)) (history.Step, bool) {
	r.mu.Lock()
	known, ok := r.steps[key]
	r.mu.Unlock()
	if ok {
		return known, true
	}
	found, ok := find(key)
	if !ok {
		return history.Step{}, false
	}
	known = r.step(found)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.steps[key] = known
	return known, true
}

// step is a step as the history has it.
func (r *reasons) step(st build.Step) history.Step {
	out := history.Step{
		Name: st.Name, Key: string(st.Key), Operation: st.Recipe.Digest, Ran: st.Ran, Cached: st.Cached, Made: st.Made,
		Fresh: st.Fresh, Local: st.Recipe.Local,
	}
	if st.Ran {
		out.Took = st.Took
	}
	for _, in := range st.Recipe.Inputs {
		out.Inputs = append(out.Inputs, history.StepInput{Key: string(in.Key), Selector: in.Selector, Content: in.Content})
	}
	for _, p := range st.Parts {
		p.Value = withoutPassword(p.Value)
		kind := p.Kind
		if v, ok := r.args[p.Name]; ok && kind == history.KindEnv && v == p.Value {
			kind = history.KindBuildArg
		}
		out.Parts = append(out.Parts, history.Part{Kind: kind, Name: withoutPassword(p.Name), Value: p.Value})
	}
	for _, name := range slices.Sorted(maps.Keys(r.args)) {
		value := r.args[name]
		if value != "" && slices.ContainsFunc(out.Parts, func(p history.Part) bool {
			return p.Kind != history.KindBuildArg && (strings.Contains(p.Value, value) || strings.Contains(p.Name, value))
		}) {
			if out.Args == nil {
				out.Args = map[string]string{}
			}
			out.Args[name] = withoutPassword(value)
		}
	}
	return out
}

// noteSteps has the ledger and the record know what the cache had of each step,
// and why the others ran.
func (s *Server) noteSteps(run *running, steps []build.Step) {
	r := &run.reasons
	var all []history.Step
	for _, st := range steps {
		out := r.step(st)
		r.mu.Lock()
		if why := r.known[st.Key]; why != nil && st.Ran {
			out.Reason, out.Differences, out.Near = why.Sentence(), why.Differences, why.Near
		}
		r.mu.Unlock()
		if out.Ran && out.Reason == "" {
			out.Reason = "no earlier build had a step like it"
			if uncached(out) {
				out.Reason = "what it brings in is looked at in every build"
			}
		}
		all = append(all, out)
	}
	stats := s.cacheStats(all)
	s.metrics.cached(stats)
	if err := s.config.Ledger.Record(run.ref, all); err != nil {
		slog.Error("note steps", "ref", run.ref, "error", err)
	}
	if !run.record.Recorded() {
		return
	}
	if err := s.config.History.RecordSteps(run.ref, all, stats); err != nil {
		slog.Error("record steps", "ref", run.ref, "error", err)
	}
}

// uncached tells whether no cache keeps the step: it holds for one build only, or
// costs nothing, as an image that nobody has to pull.
func uncached(st history.Step) bool {
	return st.Local || slices.ContainsFunc(st.Parts, func(p history.Part) bool { return p.Kind == history.KindImage })
}

// cacheStats is what the cache was worth to a build.
func (s *Server) cacheStats(steps []history.Step) (c history.CacheStats) {
	for _, st := range steps {
		if uncached(st) || !st.Ran && !st.Cached {
			continue
		}
		c.Steps++
		if st.Ran {
			continue
		}
		c.Hits++
		size, took := s.config.Ledger.Cached(st.Key)
		c.SavedBytes += size
		c.SavedTime += took
	}
	return c
}
