package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/kiln-build/kiln/internal/api/fsutil"
)

// Tree is a tree of files that can be sent.
type Tree interface {
	// Walk calls f with every entry below the root, in the protocol's order (see
	// [ComparePaths]), and stops at f's first error. f may keep st.
	Walk(ctx context.Context, f func(st *fsutil.Stat) error) error
	// Open returns the content of a regular file that Walk told of. It is called
	// concurrently, also while Walk runs.
	Open(path string) (io.ReadCloser, error)
}

// smallChunk is the most content in a DATA packet that BuildKit sends, bytes.
const smallChunk = 32 << 10

// readers is how many files are read at a time.
const readers = 4

// sender is the sending side of one transfer.
type sender struct {
	stream packetStream
	tree   Tree
	chunk  int         // bytes of content in one packet
	sent   func(int64) // told of bytes of content, may be nil

	sending sync.Mutex // held while a packet is sent

	mu     sync.Mutex
	cond   sync.Cond // queue or over changed
	files  map[uint32]string
	queue  []uint32 // requests, as many as the peer likes: none may ever wait
	over   bool
	failed error
	done   chan struct{}
}

// send is the sending side of the protocol (as in tonistiigi/fsutil).
func send(ctx context.Context, stream packetStream, tree Tree, chunk int, sent func(int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &sender{
		stream: stream, tree: tree, chunk: chunk, sent: sent,
		files: map[uint32]string{}, done: make(chan struct{}),
	}
	s.cond.L = &s.mu
	var work sync.WaitGroup
	work.Go(func() {
		if err := s.walk(ctx); err != nil && !errors.Is(err, errStreamEnded) {
			s.finish(err)
		}
	})
	for range readers {
		work.Go(s.serve)
	}
	go func() { s.finish(s.read()) }()
	select {
	case <-s.done:
	case <-ctx.Done():
		s.finish(context.Cause(ctx))
	}
	cancel()
	err := s.err()
	if err != nil {
		// A goroutine may hang in Send until the stream ends, which it does when
		// this returns.
		return err
	}
	work.Wait()
	return s.put(&fsutil.Packet{Type: fsutil.Packet_PACKET_FIN})
}

func (s *sender) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *sender) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return
	}
	s.over, s.failed = true, err
	s.cond.Broadcast()
	close(s.done)
}

// errStreamEnded says that a packet could not be sent since the stream has ended,
// for a reason that reading tells.
var errStreamEnded = errors.New("the stream has ended")

// put sends one packet. It is called concurrently.
func (s *sender) put(p *fsutil.Packet) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	err := s.stream.Send(p)
	if errors.Is(err, io.EOF) {
		return errStreamEnded
	}
	return err
}

// walk lists the tree.
func (s *sender) walk(ctx context.Context) error {
	id := uint32(0)
	err := s.tree.Walk(ctx, func(st *fsutil.Stat) error {
		if isRegular(st) {
			s.mu.Lock()
			s.files[id] = st.GetPath()
			s.mu.Unlock()
		}
		id++
		return s.put(&fsutil.Packet{Type: fsutil.Packet_PACKET_STAT, Stat: st})
	})
	if err != nil {
		return err
	}
	return s.put(&fsutil.Packet{Type: fsutil.Packet_PACKET_STAT})
}

// read takes the peer's packets until its FIN.
func (s *sender) read() error {
	for {
		p, err := s.stream.Recv()
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		switch p.GetType() {
		case fsutil.Packet_PACKET_REQ:
			s.mu.Lock()
			s.queue = append(s.queue, p.GetID())
			s.cond.Signal()
			s.mu.Unlock()
		case fsutil.Packet_PACKET_FIN:
			return nil
		case fsutil.Packet_PACKET_ERR:
			return fmt.Errorf("peer: %s", p.GetData())
		default:
			return fmt.Errorf("packet of type %d from a receiver", p.GetType())
		}
	}
}

// serve sends one requested file after another.
func (s *sender) serve() {
	buf := make([]byte, s.chunk)
	for {
		s.mu.Lock()
		for len(s.queue) == 0 && !s.over {
			s.cond.Wait()
		}
		if s.over {
			s.mu.Unlock()
			return
		}
		id := s.queue[0]
		s.queue = s.queue[1:]
		name, ok := s.files[id]
		delete(s.files, id) // each file can be had once
		s.mu.Unlock()
		if !ok {
			s.finish(fmt.Errorf("request for entry %d, which is no file, or was sent before", id))
			return
		}
		if err := s.file(id, name, buf); errors.Is(err, errStreamEnded) {
			return
		} else if err != nil {
			s.finish(fmt.Errorf("send %q: %w", name, err))
			return
		}
	}
}

func (s *sender) file(id uint32, name string, buf []byte) (err error) {
	r, err := s.tree.Open(name)
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := r.Close(); err == nil {
			err = closeErr
		}
	}()
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			p := &fsutil.Packet{Type: fsutil.Packet_PACKET_DATA, ID: id, Data: buf[:n]}
			if err := s.put(p); err != nil {
				return err
			}
			if s.sent != nil {
				s.sent(int64(n))
			}
		}
		switch err {
		case nil:
		case io.EOF, io.ErrUnexpectedEOF:
			return s.put(&fsutil.Packet{Type: fsutil.Packet_PACKET_DATA, ID: id})
		default:
			return err
		}
	}
}
