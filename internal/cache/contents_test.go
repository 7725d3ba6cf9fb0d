package cache_test

import (
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/cache/cachetest"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// Two daemons run a step that does not make the same twice. Whoever finds the result of
// the one does not find the digest that the other has told of its own, however late each
// comes to the shelf; and who has the result that is there mends what is told of it.
func TestContentOfWhatIsThere(t *testing.T) {
	shelf := cachetest.NewShelf()
	ours, theirs := newMachine(t, 1), newMachine(t, 2)
	write := func(m *machine, known recipes, ref *layer.Ref, steps ...int) {
		t.Helper()
		u := cache.NewUploader(t.Context(), cache.UploaderConfig{
			Shelf: shelf, Identity: m.id, Layers: opener{m.layers}, Whole: true, Warn: func(err error) { t.Error(err) },
		})
		defer u.Close()
		for _, i := range steps {
			u.Step(step(i), known, []solver.Result{ref})
		}
		if err := u.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	run := func(m *machine, text string) (recipes, *layer.Ref) {
		t.Helper()
		ref, err := m.step(nil, "file", text)
		if err != nil {
			t.Fatal(err)
		}
		return recipes{step(0): {Digest: "step"}, step(1): {Digest: "copy", Inputs: []solver.Ingredient{
			{Key: step(0), Selector: "/file", Content: digest.FromString(text).String(), Of: ref.ID()},
		}}}, ref
	}
	content := func() (solver.Content, error) {
		var w warnings
		return finder(t, shelf, &w, cache.Trust{}).Content(t.Context(), solver.Ingredient{Key: step(0), Selector: "/file"})
	}
	ourSteps, ourRef := run(ours, "ours")
	theirSteps, theirRef := run(theirs, "theirs")

	// Theirs comes first with a digest alone, as a cache without all results has it.
	write(theirs, theirSteps, theirRef, 1)
	if got, err := content(); err != nil || got.Digest != digest.FromString("theirs").String() || !theirRef.Is(got.Of) || ourRef.Is(got.Of) {
		t.Errorf("without a result, the digest is %+v, %v", got, err)
	}
	write(ours, ourSteps, ourRef, 0)
	if got, err := content(); !errors.Is(err, solver.ErrNotFound) {
		t.Errorf("the digest of another run than the result's is found: %+v, %v", got, err)
	}
	write(theirs, theirSteps, theirRef, 0, 1)
	if got, err := content(); !errors.Is(err, solver.ErrNotFound) {
		t.Errorf("the digest of another run than the result's is found: %+v, %v", got, err)
	}
	write(ours, ourSteps, ourRef, 1)
	if got, err := content(); err != nil || got.Digest != digest.FromString("ours").String() || !ourRef.Is(got.Of) || theirRef.Is(got.Of) {
		t.Errorf("the digest of the result that is there is %+v, %v", got, err)
	}
}
