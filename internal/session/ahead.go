package session

import (
	"errors"
	"io"
)

// aheadBuffer is what an Ahead hands on at a time, bytes; it has aheadBuffers of
// them.
const (
	aheadBuffer  = 1 << 20
	aheadBuffers = 3
)

// Ahead is a writer to another one that takes what comes while the other is
// still busy with what came before: who reads files and who sends them work at
// the same time. It must be closed.
type Ahead struct {
	cur    []byte
	full   chan []byte
	free   chan []byte
	failed chan struct{} // closed once err is set
	err    error         // of the other writer
	done   chan struct{}
	closed bool
}

// NewAhead returns a writer that hands on to another, which keeps nothing of what
// it is given.
func NewAhead(to io.Writer) *Ahead {
	a := &Ahead{
		full: make(chan []byte, aheadBuffers), free: make(chan []byte, aheadBuffers),
		failed: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadBuffers {
		a.free <- nil // made when it is needed
	}
	a.cur = a.take()
	go a.run(to)
	return a
}

func (a *Ahead) run(to io.Writer) {
	defer close(a.done)
	for b := range a.full {
		if a.err == nil {
			if _, err := to.Write(b); err != nil {
				a.err = err
				close(a.failed)
			}
		}
		a.free <- b
	}
}

func (a *Ahead) take() []byte {
	b := <-a.free
	if b == nil {
		b = make([]byte, 0, aheadBuffer)
	}
	return b[:0]
}

// Write takes p, or tells why what came before could not be written.
func (a *Ahead) Write(p []byte) (int, error) {
	if a.closed {
		return 0, errors.New("write to a closed stream")
	}
	total := len(p)
	for len(p) > 0 {
		if len(a.cur) == aheadBuffer {
			select {
			case <-a.failed:
				return total - len(p), a.err
			default:
			}
			a.full <- a.cur
			a.cur = a.take()
		}
		n := min(len(p), aheadBuffer-len(a.cur))
		a.cur = append(a.cur, p[:n]...)
		p = p[n:]
	}
	return total, nil
}

// Close returns when all is written, or with the error that it failed with.
func (a *Ahead) Close() error {
	if !a.closed {
		a.closed = true
		a.full <- a.cur
		close(a.full)
	}
	<-a.done
	return a.err
}

// Abandon has what was not handed on yet dropped, if it was not closed. It does not wait
// for a write under way.
func (a *Ahead) Abandon() {
	if !a.closed {
		a.closed = true
		close(a.full)
	}
}
