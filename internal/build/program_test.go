package build

import (
	"context"
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
		if err := r.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
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
	if err := r.close(); err != nil {
		t.Error(err)
	}
	expect("a", 0)
}

// TestTakeWaits: a container that is being made is waited for, by who wants it, and
// another one is made meanwhile.
func TestTakeWaits(t *testing.T) {
	var r ready
	r.enter("a")
	r.leave()
	r.enter("a")
	begin, want, second := make(chan struct{}), &op.Standby{}, &op.Standby{}
	r.expect("a", func() (*op.Standby, error) {
		<-begin
		return want, nil
	})
	if a := r.take("b"); a != nil {
		t.Error("who wants another program got this one")
	}
	a := r.take("a")
	r.expect("a", func() (*op.Standby, error) { return second, nil })
	got := make(chan *op.Standby)
	go func() { got <- r.await(t.Context(), a) }()
	if s := r.await(t.Context(), r.take("a")); s != second {
		t.Errorf("got %v, want the container that was made last", s)
	}
	if r.take("a") != nil {
		t.Error("a container that was taken waits")
	}
	close(begin)
	if s := <-got; s != want {
		t.Errorf("got %v, want the container that was being made", s)
	}
}

// TestTakeLeaves: who takes a container and goes before it is made leaves it to be
// ended, and who settles waits for that.
func TestTakeLeaves(t *testing.T) {
	var r ready
	r.enter("a")
	r.leave()
	r.enter("a")
	begin := make(chan struct{})
	r.expect("a", func() (*op.Standby, error) {
		<-begin
		return nil, errors.New("there is none to be had")
	})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if got := r.await(gone, r.take("a")); got != nil {
		t.Error("who has gone got what was not there yet")
	}
	if err := r.settle(gone); err == nil {
		t.Error("a container that is being made is not waited for")
	}
	close(begin)
	if err := r.settle(t.Context()); err != nil {
		t.Error(err)
	}
}
