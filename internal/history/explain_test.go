package history

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/internal/store"
)

func openLedger(t *testing.T) *Ledger {
	t.Helper()
	db, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return NewLedger(db)
}

// before is a build: a base, a copy of files and a run on top of both.
func before() []Step {
	return []Step{
		{Name: "[build 1/3] FROM base", Key: "base", Operation: "pin1", Parts: []Part{{Kind: "platform", Value: "linux/amd64"}, {Kind: "image", Name: "base:1", Value: "sha256:1"}}},
		{
			Name: "[build 2/3] COPY . /src", Key: "copy", Operation: "copies", Ran: true, Made: true, Took: time.Second,
			Parts:  []Part{{Kind: "instruction", Value: "copy . to /src"}},
			Inputs: []StepInput{{Key: "base"}, {Key: "context", Selector: "all", Content: "files1"}},
		},
		{
			Name: "[build 3/3] RUN make", Key: "run", Operation: "runs", Ran: true, Made: true,
			Parts: []Part{
				{Kind: "platform", Value: "linux/amd64"}, {Kind: "instruction", Value: "make"}, {Kind: "env", Name: "MODE", Value: "fast"},
				{Kind: KindBuildArg, Name: "VERSION", Value: "1"}, {Kind: "mount", Name: "/cache", Value: "cache"},
				{Kind: "secret", Name: "token", Value: "hmac-sha256:1"}, {Kind: "setting", Name: "user", Value: "root"},
			},
			Inputs: []StepInput{{Key: "copy"}},
		},
	}
}

// TestExplain changes one part of a key after another.
func TestExplain(t *testing.T) {
	set := func(kind, name, value string) func([]Step) {
		return func(s []Step) {
			s[2].Key, s[2].Operation = "run2", "runs2"
			for i, p := range s[2].Parts {
				if p.Kind == kind && p.Name == name {
					s[2].Parts[i].Value = value
				}
			}
		}
	}
	both := func(fs ...func([]Step)) func([]Step) {
		return func(s []Step) {
			for _, f := range fs {
				f(s)
			}
		}
	}
	for name, tc := range map[string]struct {
		change func([]Step)
		step   int
		want   string // begins the reason; "" is none
	}{
		"build argument": {set(KindBuildArg, "VERSION", "2"), 2, `build argument VERSION is "2", was "1"`},
		"default of an argument": {both(set(KindBuildArg, "VERSION", "2"), func(s []Step) { s[2].Parts[3].Kind = KindEnv }), 2,
			`build argument VERSION is "2", was "1"`},
		"variable": {set(KindEnv, "MODE", "slow"), 2, `variable MODE is "slow", was "fast"`},
		"no variable": {both(set("", "", ""), func(s []Step) { s[2].Parts = slices.Delete(s[2].Parts, 2, 3) }), 2,
			`variable MODE is no longer set, was "fast"`},
		"platform": {set("platform", "", "linux/arm64"), 2, `the platform is "linux/arm64", was "linux/amd64"`},
		"instruction": {both(set("instruction", "", "make all"), func(s []Step) { s[2].Name = "[build 3/4] RUN make all" }), 2,
			`the instruction is "make all", was "make"`},
		"mount":   {set("mount", "/cache", "cache, read only"), 2, `mount /cache is "cache, read only", was "cache"`},
		"secret":  {set("secret", "token", "hmac-sha256:2"), 2, `secret token has another value`},
		"setting": {set("setting", "user", "app"), 2, `user is "app", was "root"`},
		"another source": {func(s []Step) {
			s[0].Name, s[0].Key, s[0].Operation, s[0].Parts = "clone", "git2", "pin2", []Part{{Kind: "source", Name: "git://x", Value: "c2"}}
			s[1].Key, s[1].Inputs[0].Key = "copy2", "git2"
		}, 1, `it is built on clone, was on [build 1/3] FROM base`},
		"no name": {func(s []Step) { s[2].Key, s[2].Operation = "run2", "runs2" }, 2, `its definition has changed`},
		"first of two": {both(set(KindEnv, "MODE", "slow"), set("mount", "/cache", "other")), 2,
			`variable MODE is "slow", was "fast"; and 1 more`},
		"file": {func(s []Step) { s[1].Key, s[1].Inputs[1].Content = "copy2", "files2" }, 1,
			`file a/b.go has changed (sha256:new, was sha256:old); and 2 more`},
		"file below": {func(s []Step) {
			s[1].Key, s[1].Inputs[1].Content, s[2].Key, s[2].Inputs[0].Key = "copy2", "files2", "run2", "copy2"
		}, 2,
			`[build 2/3] COPY . /src, which it is built on: file a/b.go has changed (sha256:new, was sha256:old); and 2 more`},
		"files that nobody knows": {func(s []Step) { s[1].Key, s[1].Inputs[1].Content = "copy2", "files9" }, 1,
			`files that it reads of an input have changed (files9, was files1)`},
		"same files, made anew": {func(s []Step) { s[1].Key, s[1].Inputs[1].Key = "copy2", "context2" }, 1, `its definition has changed`},
		"base image": {func(s []Step) {
			s[0].Key, s[0].Operation, s[0].Parts[1] = "base2", "pin2", Part{Kind: "image", Name: "base:2", Value: "sha256:2"}
			s[1].Key, s[1].Inputs[0].Key = "copy2", "base2"
		}, 1, `[build 1/3] FROM base, which it is built on: base image base:2 is "sha256:2", was "base:1@sha256:1"`},
		"no cache":            {func(s []Step) { s[2].Fresh = true }, 2, `no cache was wanted`},
		"no cache, and more":  {both(set(KindEnv, "MODE", "slow"), func(s []Step) { s[2].Fresh = true }), 2, `no cache was wanted, for it or for a step that it is built on; and 1 more`},
		"lost":                {func([]Step) {}, 2, `its result is no longer kept`},
		"other steps":         {func(s []Step) { s[2].Key, s[2].Inputs = "run2", append(s[2].Inputs, StepInput{Key: "more"}) }, 2, `it is built on other steps than before`},
		"something unknown":   {func(s []Step) { s[2].Key, s[2].Inputs[0].Key = "run2", "nobody" }, 2, `it is built on an input, which has changed (nobody, was copy)`},
		"another part of it":  {func(s []Step) { s[2].Key, s[2].Inputs[0].Selector = "run2", "lib" }, 2, `mount of a part of [build 2/3] COPY . /src is "lib", was not set`},
		"a new step":          {func(s []Step) { s[2] = Step{Name: "[other 9/9] RUN else", Key: "else", Operation: "else"} }, 2, ""},
		"for this build only": {func(s []Step) { s[2].Key, s[2].Local = "run2", true }, 2, ""},
		"argument in the text": {func(s []Step) {
			s[1].Key, s[1].Operation, s[1].Args = "copy2", "copies2", map[string]string{"DIR": "there"}
			s[1].Parts[0].Value = "copy there to /src"
		}, 1, `build argument DIR is "there", was "."; and 1 more`},
	} {
		l := openLedger(t)
		for content, files := range map[string][]File{
			"files1": {{Path: "a/b.go", Digest: "sha256:old"}, {Path: "gone", Digest: "sha256:x"}, {Path: "same", Digest: "sha256:y"}},
			"files2": {{Path: "a/b.go", Digest: "sha256:new"}, {Path: "came", Digest: "sha256:z"}, {Path: "same", Digest: "sha256:y"}},
		} {
			if err := l.KeepFiles(content, func() ([]File, error) { return files, nil }); err != nil {
				t.Fatal(err)
			}
		}
		past := before()
		past[1].Args = map[string]string{"DIR": "."}
		if err := l.Record("first", past); err != nil {
			t.Fatal(err)
		}
		now := before()
		tc.change(now)
		r := l.Explainer().Explain(now[tc.step], func(key string) (Step, bool) {
			i := slices.IndexFunc(now, func(s Step) bool { return s.Key == key })
			if i < 0 {
				return Step{}, false
			}
			return now[i], true
		})
		switch {
		case tc.want == "" && r != nil:
			t.Errorf("%s: reason is %q, want none", name, r.Sentence())
		case tc.want != "" && (r == nil || !strings.HasPrefix(r.Sentence(), tc.want)):
			t.Errorf("%s: reason is %+v, want %q", name, r, tc.want)
		case r != nil && r.Near != "first":
			t.Errorf("%s: compared with build %q", name, r.Near)
		}
	}
}

// TestCompare tells in what two keys differ.
func TestCompare(t *testing.T) {
	l := openLedger(t)
	clone := func(key, commit string) Step {
		return Step{Name: "clone", Key: key, Operation: commit, Parts: []Part{{Kind: "source", Name: "git://x", Value: commit}}}
	}
	if err := l.Record("first", []Step{clone("a", "c1"), clone("b", "c2")}); err != nil {
		t.Fatal(err)
	}
	if ds := l.Compare("a", "b"); len(ds) != 1 || ds[0].Sentence() != `source git://x is "c2", was "c1"` {
		t.Errorf("differences are %+v", ds)
	}
	if ds := l.Compare("a", "a"); len(ds) != 0 {
		t.Errorf("a key differs from itself in %+v", ds)
	}
}

// TestEvicted says when a result was removed, and by whom.
func TestEvicted(t *testing.T) {
	l := openLedger(t)
	if err := l.Record("first", before()); err != nil {
		t.Fatal(err)
	}
	if err := l.db.Evict("by garbage collection", "run"); err != nil {
		t.Fatal(err)
	}
	run := before()[2]
	nobody := func(string) (Step, bool) { return Step{}, false }
	want := "its result was removed by garbage collection on " + time.Now().Format("2006-01-02")
	if r := l.Explainer().Explain(run, nobody); r == nil || !strings.HasPrefix(r.Sentence(), want) {
		t.Errorf("reason is %+v, want %q", r, want)
	}
	// Made anew it is there again.
	if err := l.Record("second", []Step{run}); err != nil {
		t.Fatal(err)
	}
	if k, err := l.Find("run"); err != nil || !k.EvictedAt.IsZero() || k.Build != "second" {
		t.Errorf("known is %+v (%v)", k, err)
	}
}

// TestNearest compares with the step that has most in common, of whatever build.
func TestNearest(t *testing.T) {
	l := openLedger(t)
	step := func(key, name, op, content string) Step {
		return Step{Name: name, Key: key, Operation: op, Made: true, Ran: true, Inputs: []StepInput{{Key: "base"}, {Key: "ctx" + key, Content: content}}}
	}
	for i, s := range []Step{
		step("far", "[1/2] COPY . .", "other", "else"), step("near", "[2/9] COPY . .", "op", "one"),
		step("alike", "[2/9] RUN x", "op3", "three"), step("last", "[1/2] COPY . .", "other2", "else2"),
	} {
		if err := l.Record(fmt.Sprint("build", i), []Step{s}); err != nil {
			t.Fatal(err)
		}
	}
	for want, s := range map[string]Step{
		"near":  step("now", "[2/3] COPY . .", "op", "two"),
		"alike": step("now", "[2/3] RUN y", "op9", "three"),
	} {
		if key, ok := l.nearest(s); !ok || key != want {
			t.Errorf("nearest is %q, want %q", key, want)
		}
	}
	// A step that failed was never there.
	failed := step("failed", "[2/3] COPY . .", "op", "two")
	failed.Made = false
	if err := l.Record("failure", []Step{failed}); err != nil {
		t.Fatal(err)
	}
	if key, _ := l.nearest(step("now", "[2/3] COPY . .", "op", "two")); key != "near" {
		t.Errorf("nearest is %q", key)
	}
	if r := l.Explainer().Explain(failed, func(string) (Step, bool) { return Step{}, false }); r == nil || r.Near != "build1" {
		t.Errorf("reason for what failed before is %+v", r)
	}
}

// TestLongChain has each step of a long chain changed. Each tells of itself first,
// and not of all below it: that would be half a million differences.
func TestLongChain(t *testing.T) {
	const long = 1000
	chain := func(build string) (steps []Step) {
		for i := range long {
			s := Step{
				Name: fmt.Sprint("step ", i), Key: fmt.Sprint(build, i), Operation: fmt.Sprint(build, "op", i), Ran: true, Made: true,
				Parts: []Part{{Kind: "instruction", Value: fmt.Sprintf("mkfile /f%d", i)}, {Kind: "data", Name: fmt.Sprint("/f", i), Value: build}},
			}
			if i > 0 {
				s.Inputs = []StepInput{{Key: fmt.Sprint(build, i-1)}}
			}
			steps = append(steps, s)
		}
		return steps
	}
	l := openLedger(t)
	if err := l.Record("first", chain("a")); err != nil {
		t.Fatal(err)
	}
	now := chain("b")
	other := func(key string) (Step, bool) {
		i, err := strconv.Atoi(strings.TrimPrefix(key, "b"))
		if err != nil {
			return Step{}, false
		}
		return now[i], true
	}
	e := l.Explainer()
	for i := range now {
		r := e.Explain(now[i], other)
		if r == nil {
			t.Fatalf("nothing is told of step %d", i)
		}
		now[i].Differences = r.Differences
		last := r.Differences[len(r.Differences)-1]
		switch own := r.Differences[0]; {
		case own.Kind != "data" || own.Step != "":
			t.Fatalf("step %d tells first of %+v", i, own)
		case i < enough && (len(r.Differences) != i+1 || last.Kind != "data"):
			t.Fatalf("step %d tells of %d differences, the last is %+v", i, len(r.Differences), last)
		case i >= enough && (len(r.Differences) != enough+1 || last.Kind != KindFurther):
			t.Fatalf("step %d tells of %d differences, the last is %+v", i, len(r.Differences), last)
		}
	}
	if text, err := json.Marshal(now); err != nil || len(text) > largestSteps {
		t.Errorf("their description takes %d bytes, %d are read (%v)", len(text), largestSteps, err)
	}
}

// TestFolded tells of many files by folders, the same ones whatever the other
// list is folded to.
func TestFolded(t *testing.T) {
	files := func(n int, changed string) (all []File) {
		for i := range n {
			f := File{Path: fmt.Sprintf("dir%d/sub%d/file%d", i%10, i%100, i), Digest: "sha256:" + strings.Repeat("0", 64)}
			if f.Path == changed {
				f.Digest = "sha256:" + strings.Repeat("1", 64)
			}
			all = append(all, f)
		}
		return all
	}
	for name, tc := range map[string]struct {
		was, now []File
		want     []string
	}{
		"few":           {files(1000, ""), files(1000, "dir7/sub77/file77"), []string{"dir7/sub77/file77"}},
		"many":          {files(9000, ""), files(9000, "dir7/sub77/file77"), []string{"dir7/sub77/…"}},
		"few, now many": {files(4096, ""), append(files(4096, ""), File{Path: "dir7/sub77/new", Digest: "sha256:2"}), []string{"dir7/sub77/…"}},
	} {
		l := openLedger(t)
		for content, list := range map[string][]File{"was": tc.was, "now": tc.now} {
			if err := l.KeepFiles(content, func() ([]File, error) { return list, nil }); err != nil {
				t.Fatal(err)
			}
		}
		var got []string
		for _, d := range l.changedFiles("was", "now") {
			got = append(got, d.Name)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: changed are %q, want %q", name, got, tc.want)
		}
		if kept, _ := l.Files("was"); len(kept.Files) > MostFiles {
			t.Errorf("%s: %d files are kept", name, len(kept.Files))
		}
	}
	list := FileList{Files: files(500, "")}
	once, twice := list.fold(1), list.fold(2).fold(1)
	if !slices.Equal(once.Files, twice.Files) || len(once.Files) != 10 {
		t.Errorf("folded to %v and %v", once, twice)
	}
}

func TestFind(t *testing.T) {
	l := openLedger(t)
	if err := l.Record("first", before()); err != nil {
		t.Fatal(err)
	}
	for prefix, want := range map[string]string{"run": "run", "co": "copy", "base": "base"} {
		if k, err := l.Find(prefix); err != nil || k.Key != want {
			t.Errorf("%q finds %q (%v)", prefix, k.Key, err)
		}
	}
	for prefix, want := range map[string]error{"": ErrNotFound, "zzz": ErrNotFound} {
		if _, err := l.Find(prefix); !errors.Is(err, want) || err.Error() != fmt.Sprintf("the cache knows no key %q: see kiln cache ls", prefix) {
			t.Errorf("%q: error is %v", prefix, err)
		}
	}
	more := before()[2]
	more.Key = "run2"
	if err := l.Record("second", []Step{more}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Find("ru"); !errors.Is(err, ErrAmbiguous) {
		t.Errorf("error is %v", err)
	}
	if k, err := l.Find("run"); err != nil || k.Key != "run" {
		t.Errorf("a whole key that another begins with finds %q (%v)", k.Key, err)
	}
	list, err := l.List("MAKE")
	keys := map[string]bool{}
	for _, k := range list {
		keys[k.Key] = true
	}
	if err != nil || !maps.Equal(keys, map[string]bool{"run": true, "run2": true}) {
		t.Errorf("list is %v (%v)", keys, err)
	}
}
