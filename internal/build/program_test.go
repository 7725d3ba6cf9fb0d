package build

import (
	"errors"
	"testing"

	"github.com/kiln-build/kiln/internal/op"
)

// TestExpect: a container is started ahead for a program that was used twice in a row,
// while no other runs, and one at a time.
func TestExpect(t *testing.T) {
	var r ready
	asked := 0
	expect := func(key string, want int) {
		t.Helper()
		r.expect(key, func() (*op.Standby, error) {
			asked++
			return nil, errors.New("there is none to be had")
		})
		r.giveUp(nil) // waits
		if asked != want {
			t.Errorf("after %q, %d containers were asked for, want %d", key, asked, want)
		}
		asked = 0
	}
	use := func(key string) { r.enter(key) }

	use("a")
	expect("a", 0)
	r.leave()
	use("a")
	expect("a", 1)
	use("a")
	expect("a", 0) // two run
	r.leave()
	expect("a", 1)
	use("b")
	r.leave()
	expect("b", 0)
	expect("a", 0) // it was not the last
	r.leave()
	use("")
	r.leave()
	use("")
	expect("", 0) // programs that are like no other
	r.leave()
	use("a")
	r.leave()
	use("a")
	if r.take("a") != nil {
		t.Error("a container waits that could not be had")
	}
	r.close()
	expect("a", 0)
}
