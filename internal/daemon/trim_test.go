package daemon

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kiln-build/kiln/internal/history"
)

func TestMemoryIsTrimmedAfterManyBuilds(t *testing.T) {
	past := openHistory(t)
	trimmed := make(chan struct{}, 10)
	s := &Server{builds: newBuilds(), config: Config{Trim: func() { trimmed <- struct{}{} }}}
	stop := make(chan struct{})
	ended := make(chan struct{})
	go func() { s.trimMemory(stop); close(ended) }()
	for i := range trimBuilds {
		if len(trimmed) > 0 {
			t.Fatalf("trimmed after %d builds", i)
		}
		ref := fmt.Sprint("build", i)
		r, err := s.builds.begin(ref, func() (*history.Build, error) { return past.Begin(history.Record{Ref: ref}, false) })
		if err != nil {
			t.Fatal(err)
		}
		if err := r.record.End(history.Outcome{}); err != nil {
			t.Fatal(err)
		}
		s.builds.end(r)
	}
	select {
	case <-trimmed:
	case <-time.After(2 * time.Minute):
		t.Errorf("not trimmed after %d builds", trimBuilds)
	}
	close(stop)
	<-ended
}

func TestMemoryIsTrimmedAfterTheStart(t *testing.T) {
	for _, built := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			trimmed := 0
			s := &Server{builds: newBuilds(), config: Config{Trim: func() { trimmed++ }}}
			if built {
				s.builds.busy = 1
			}
			stop := make(chan struct{})
			go s.trimStart(stop)
			synctest.Wait()
			if trimmed != 0 {
				t.Errorf("trimmed at once")
			}
			time.Sleep(10 * trimSoon)
			synctest.Wait()
			if want := map[bool]int{false: 1, true: 0}[built]; trimmed != want {
				t.Errorf("a build came: %v: trimmed %d times, want %d", built, trimmed, want)
			}
			close(stop)
		})
	}
}
