package gateway

import (
	"cmp"
	"context"
	"io"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// mostFed is how many bytes wait for a process that does not read. The client
// is read no further then, its messages for other processes neither.
const mostFed = 1 << 20

// feed is the input of a process. Its reader may be slower than the client.
// The methods of a nil feed do nothing.
type feed struct {
	mu     sync.Mutex
	data   []byte
	closed bool          // nothing more comes
	gone   bool          // nobody reads any more
	change chan struct{} // closed and replaced at every change
}

func newFeed() *feed { return &feed{change: make(chan struct{})} }

func (f *feed) changed() {
	close(f.change)
	f.change = make(chan struct{})
}

// put adds data, and waits while too much of it is there already.
func (f *feed) put(ctx context.Context, data []byte) {
	for {
		f.mu.Lock()
		if f.closed || f.gone {
			f.mu.Unlock()
			return
		}
		n := min(len(data), mostFed-len(f.data))
		f.data, data = append(f.data, data[:n]...), data[n:]
		if n > 0 {
			f.changed()
		}
		if len(data) == 0 {
			f.mu.Unlock()
			return
		}
		change := f.change
		f.mu.Unlock()
		select {
		case <-change:
		case <-ctx.Done():
			return
		}
	}
}

// finish says that nothing more comes.
func (f *feed) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	f.changed()
}

// end says that nobody reads any more.
func (f *feed) end() {
	if f == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gone, f.data = true, nil
	f.changed()
}

// Read waits for data.
func (f *feed) Read(p []byte) (int, error) {
	for {
		f.mu.Lock()
		if len(f.data) > 0 {
			n := copy(p, f.data)
			if f.data = f.data[n:]; len(f.data) == 0 {
				f.data = nil
			}
			f.changed()
			f.mu.Unlock()
			return n, nil
		}
		if f.closed || f.gone {
			f.mu.Unlock()
			return 0, io.EOF
		}
		change := f.change
		f.mu.Unlock()
		<-change
	}
}

// Close frees those who wait.
func (f *feed) Close() error {
	f.end()
	return nil
}

// The real-time signals that clients can send, which have no names of their own: the
// kernel's, without the two that C libraries keep for themselves.
const firstRealTime, lastRealTime = 34, 64

// signalNumber knows a signal by its name without SIG, as clients send it.
func signalNumber(name string) (int, bool) {
	name = strings.TrimPrefix(name, "SIG")
	base := firstRealTime
	offset, ok := strings.CutPrefix(name, "RTMIN")
	if !ok {
		base = lastRealTime
		offset, ok = strings.CutPrefix(name, "RTMAX")
	}
	if ok {
		above, err := strconv.Atoi(cmp.Or(offset, "0"))
		n := base + above
		return n, err == nil && n >= firstRealTime && n <= lastRealTime
	}
	switch name { // of signals with two names clients send either, by chance
	case "CLD":
		name = "CHLD"
	case "IOT":
		name = "ABRT"
	case "POLL":
		name = "IO"
	case "UNUSED":
		name = "SYS"
	}
	n := unix.SignalNum("SIG" + name)
	return int(n), n != 0
}
