package daemon

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/gateway"
	"github.com/kiln-build/kiln/internal/history"
)

// keepUnrecorded is how long a build that is in no history can still be asked
// for its progress: some clients ask late.
const keepUnrecorded = 10 * time.Second

// builds are the builds under way, and, of those that are in no history, the
// ones that ended lately, by the ref that the client gave them.
type builds struct {
	mu    sync.Mutex
	byRef map[string]*running
	total int           // builds that ended
	came  chan struct{} // closed and replaced whenever a build begins
	busy  int           // builds under way
	idle  time.Time     // since when there is none
	many  chan struct{} // told after every trimBuilds builds
}

func newBuilds() *builds {
	return &builds{byRef: map[string]*running{}, came: make(chan struct{}), idle: time.Now(), many: make(chan struct{}, 1)}
}

// running is one build as the daemon's services see it.
type running struct {
	ref   string
	began time.Time
	meta  map[string][]byte // of the result; what runs the build sets it

	phase *gateway.Phase // of a client that acts as the frontend
	done  chan struct{}

	opened chan struct{}  // closed once record and events are set
	record *history.Build // nil if it could not be made
	events *eventLog

	ctx     context.Context         // set once the build has begun; guarded by builds.mu
	stop    context.CancelCauseFunc // with ctx
	reasons reasons
}

// begin registers a build, whose record open makes. The caller must call end.
// Clients that act as its frontend are answered meanwhile.
func (b *builds) begin(ref string, open func() (*history.Build, error)) (*running, error) {
	r, err := b.register(ref)
	if err != nil {
		return nil, err
	}
	defer close(r.opened)
	if r.record, err = open(); err != nil {
		close(r.done)
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.byRef, ref)
		b.left()
		return nil, err
	}
	r.events = newEventLog(r.record.Log())
	return r, nil
}

// register makes a build known, before there is a record of it.
func (b *builds) register(ref string) (*running, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "a build needs a ref")
	}
	if _, ok := b.byRef[ref]; ok {
		return nil, status.Errorf(codes.AlreadyExists, "a build with ref %q exists: give every build a ref of its own", ref)
	}
	r := &running{ref: ref, began: time.Now(), done: make(chan struct{}), opened: make(chan struct{})}
	r.phase = gateway.NewPhase(ref, r.done)
	b.byRef[ref] = r
	b.busy++
	close(b.came)
	b.came = make(chan struct{})
	return r, nil
}

// left notes that a build is no longer under way. The caller holds b.mu.
func (b *builds) left() {
	if b.busy--; b.busy == 0 {
		b.idle = time.Now()
	}
}

// log waits for the record of a build, and returns what the build tells.
func (r *running) log(ctx context.Context) (*history.Log, error) {
	select {
	case <-r.opened:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if r.record == nil {
		return nil, noBuild(r.ref)
	}
	return r.record.Log(), nil
}

// noBuild is what is said of a build that never began; BuildKit's clients know the words.
func noBuild(ref string) error { return status.Errorf(codes.NotFound, "no such job %s", ref) }

// end forgets a build whose record, if there is one, is complete.
func (b *builds) end(r *running) {
	close(r.done)
	forget := func() {
		b.mu.Lock()
		delete(b.byRef, r.ref)
		b.mu.Unlock()
		r.record.Release()
	}
	if r.record.Recorded() {
		forget()
	} else {
		time.AfterFunc(keepUnrecorded, forget)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.total++; b.total%trimBuilds == 0 {
		select {
		case b.many <- struct{}{}:
		default: // it is being done
		}
	}
	b.left()
}

// ended is how many builds have ended.
func (b *builds) ended() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.total
}

// idleFor is how long there has been no build.
func (b *builds) idleFor() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.busy > 0 {
		return 0
	}
	return time.Since(b.idle)
}

// untouched tells whether no build has come yet.
func (b *builds) untouched() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.busy == 0 && b.total == 0
}

// now returns a build that is under way, or nil.
func (b *builds) now(ref string) *running {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.byRef[ref]
}

// get returns a build, waiting for a while until it begins: clients ask for its
// progress before they start it (BuildKit's client/solve.go).
func (b *builds) get(ctx context.Context, ref string, wait time.Duration) (*running, error) {
	timeout := time.NewTimer(wait)
	defer timeout.Stop()
	for {
		b.mu.Lock()
		r, came := b.byRef[ref], b.came
		b.mu.Unlock()
		if r != nil {
			return r, nil
		}
		select {
		case <-came:
		case <-timeout.C:
			return nil, noBuild(ref)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// running is how many builds are under way.
func (b *builds) running() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.busy
}
