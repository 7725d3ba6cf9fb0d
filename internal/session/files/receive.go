package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/filesync"
	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session"
)

// MethodDiffCopy is what a client serves that lets its directories be read.
const MethodDiffCopy = filesync.FileSync_DiffCopy_FullMethodName

// Destination takes a tree of files as it arrives.
//
// What reaches it is valid: paths are relative, slash-separated and clean, they
// come in the protocol's order without repetition, each entry's parent came
// before it as a directory, and a hard link names an earlier path.
type Destination interface {
	// Stat tells of an entry, one at a time, parents before children. Mode holds
	// the bits of an [io/fs.FileMode]. For a regular file (no type bits, no link
	// name) want asks for the content; for anything else it is ignored.
	Stat(st *fsutil.Stat) (want bool, err error)
	// Create begins the content of a file that was wanted. It is called
	// concurrently with Stat and with other files.
	Create(st *fsutil.Stat) (Content, error)
}

// Content takes the content of one file. Exactly one of Commit and Abort is
// called in the end, by the goroutine that writes.
type Content interface {
	// Write must not keep p.
	io.Writer
	// Commit says that the content is whole.
	Commit() error
	// Abort says that the transfer failed: what was written is of no use.
	Abort()
}

// ReceiveOptions say what to ask a client for (BuildKit's session/filesync).
type ReceiveOptions struct {
	Name        string   // of the directory, such as "context"
	Include     []string // patterns; none includes all
	Exclude     []string // patterns in the manner of .dockerignore
	FollowPaths []string // paths whose symlinks' targets are to come along
}

// Receive reads a directory of a client into dst. It returns once all that dst
// wanted was committed, or with the first error; dst is not called after that.
func Receive(ctx context.Context, caller *session.Caller, opt ReceiveOptions, dst Destination) error {
	if !caller.Supports(MethodDiffCopy) {
		return fmt.Errorf("read directory %q of client: %w: no local sources enabled", opt.Name, session.ErrNoSession)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(caller.Context(), cancel)
	defer stop()

	md := metadata.MD{}
	session.SetMetadata(md, keyDirName, []string{opt.Name})
	session.SetMetadata(md, keyInclude, opt.Include)
	session.SetMetadata(md, keyExclude, opt.Exclude)
	session.SetMetadata(md, keyFollow, opt.FollowPaths)
	md.Set(keyChunk, fmt.Sprint(session.LargeChunk))
	stream, err := filesync.NewFileSyncClient(caller.Conn()).
		DiffCopy(metadata.NewOutgoingContext(ctx, md), grpc.MaxCallRecvMsgSize(session.MaxMessage))
	if err != nil {
		return fmt.Errorf("read directory %q of client: %w", opt.Name, err)
	}
	if err := receive(stream, dst); err != nil {
		if caller.Context().Err() != nil {
			err = errors.New("the client's session ended")
		}
		return fmt.Errorf("read directory %q of client: %w", opt.Name, remoteError{err})
	}
	if err := stream.CloseSend(); err != nil {
		return fmt.Errorf("read directory %q of client: %w", opt.Name, err)
	}
	return nil
}

// remoteError is an error that came over the wire, told without the wire's own
// words.
type remoteError struct{ err error }

// Error is what the other side said.
func (e remoteError) Error() string {
	text := e.err.Error()
	for {
		rest, ok := strings.CutPrefix(text, "rpc error: code = ")
		if !ok {
			return text
		}
		if _, text, ok = strings.Cut(rest, " desc = "); !ok {
			return rest
		}
	}
}

// Is says of a directory that the client does not share that it may not be
// read: whoever needs it only if it is there can tell by that.
func (e remoteError) Is(target error) bool {
	return target == fs.ErrPermission && status.Code(e.err) == codes.NotFound
}

// Unwrap is the error with its code.
func (e remoteError) Unwrap() error { return e.err }

// writers is how many files are written at a time.
const writers = 4

// chunk is a piece of a file; one without data ends the file.
type chunk struct {
	stat   *fsutil.Stat
	packet *session.Packet
}

// receiver is the receiving side of one transfer.
type receiver struct {
	stream packetStream
	dst    Destination
	order  pathOrder
	listed bool // the end of the listing was seen
	shifts *shifts

	mu      sync.Mutex
	cond    sync.Cond // out or closed changed
	out     []*fsutil.Packet
	closed  bool // no more to send
	failed  error
	wanted  map[uint32]*wanted
	open    int           // files not committed yet, or the listing goes on
	done    chan struct{} // closed at the first failure, or at the end
	stopped bool          // done is closed

	gate sync.Mutex // held while a packet is taken
	over bool       // take no more
}

// receive is the receiving side of the protocol (as in tonistiigi/fsutil).
// Requests leave on a goroutine of their own, so that reading never waits for the
// peer to take them: otherwise both sides could wait for each other.
func receive(stream packetStream, dst Destination) error {
	r := &receiver{
		stream: stream, dst: dst, shifts: newShifts(),
		wanted: map[uint32]*wanted{}, open: 1, done: make(chan struct{}),
	}
	r.cond.L = &r.mu
	var work sync.WaitGroup
	for _, from := range r.shifts.writers {
		work.Go(func() { r.write(from) })
	}
	sent := make(chan struct{})
	go func() { defer close(sent); r.send() }()
	read := make(chan struct{})
	go func() { defer close(read); r.finish(r.read()) }()
	<-r.done
	r.shifts.end()
	work.Wait()
	r.shut()
	err := r.err()
	if err == nil {
		// Having seen the peer's FIN, both end by themselves. After a failure
		// they end with the stream.
		<-read
		<-sent
	}
	return err
}

func (r *receiver) err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

// finish ends the transfer with err, unless it has ended before.
func (r *receiver) finish(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return
	}
	r.stopped, r.failed = true, err
	close(r.done)
}

// shut lets the sending goroutine leave, and dst alone.
func (r *receiver) shut() {
	r.gate.Lock()
	r.over = true
	r.gate.Unlock()
	r.mu.Lock()
	r.closed = true
	if r.failed != nil {
		r.out = nil // the stream's end tells the peer
	}
	r.cond.Broadcast()
	r.mu.Unlock()
}

// send sends what is queued, in order.
func (r *receiver) send() {
	for {
		r.mu.Lock()
		for len(r.out) == 0 && !r.closed {
			r.cond.Wait()
		}
		batch := r.out
		r.out = nil
		r.mu.Unlock()
		if len(batch) == 0 {
			return
		}
		for _, p := range batch {
			if err := r.stream.Send(p); err != nil {
				// The reason is what reading gives; this is only its echo.
				return
			}
		}
	}
}

// read takes packets until the peer's FIN.
func (r *receiver) read() error {
	packets := session.NewPackets()
	for id := uint32(0); ; {
		p, err := packets.Recv(r.stream)
		if errors.Is(err, io.EOF) {
			return io.ErrUnexpectedEOF
		} else if err != nil {
			return err
		}
		if p.GetType() == fsutil.Packet_PACKET_FIN {
			return r.fin()
		}
		if err := r.take(id, p); err != nil {
			return err
		}
		if p.GetType() == fsutil.Packet_PACKET_STAT {
			id++
		}
	}
}

// take takes one packet; id is the next entry's.
func (r *receiver) take(id uint32, p *session.Packet) error {
	r.gate.Lock()
	defer r.gate.Unlock()
	if r.over {
		return errOver
	}
	switch p.GetType() {
	case fsutil.Packet_PACKET_STAT:
		return r.stat(id, p.GetStat())
	case fsutil.Packet_PACKET_DATA:
		return r.data(p)
	case fsutil.Packet_PACKET_ERR:
		return fmt.Errorf("peer: %s", p.GetData())
	default:
		return fmt.Errorf("packet of unknown type %d", p.GetType())
	}
}

// errOver ends a reader whose transfer has ended before; nobody sees it.
var errOver = errors.New("the transfer is over")

// stat takes one entry of the listing; nil ends it.
func (r *receiver) stat(id uint32, st *fsutil.Stat) error {
	if r.listed {
		return errors.New("an entry after the listing's end")
	}
	if st == nil {
		r.listed = true
		r.mu.Lock()
		r.closeOneLocked()
		r.mu.Unlock()
		return nil
	}
	if err := r.order.check(st); err != nil {
		return err
	}
	want, err := r.dst.Stat(st)
	if err != nil {
		return err
	}
	if !want || !isRegular(st) {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wanted[id] = &wanted{stat: st}
	r.open++
	r.out = append(r.out, &fsutil.Packet{Type: fsutil.Packet_PACKET_REQ, ID: id})
	r.cond.Broadcast()
	return nil
}

// closeOneLocked counts a file, or the listing, as whole, and says FIN once
// nothing is missing.
func (r *receiver) closeOneLocked() {
	if r.open--; r.open == 0 && !r.stopped {
		r.out = append(r.out, &fsutil.Packet{Type: fsutil.Packet_PACKET_FIN})
		r.cond.Broadcast()
	}
}

// data hands a piece of a file to the writer of that file.
func (r *receiver) data(p *session.Packet) error {
	r.mu.Lock()
	file, ok := r.wanted[p.GetID()]
	if len(p.GetData()) == 0 {
		delete(r.wanted, p.GetID())
	}
	r.mu.Unlock()
	if !ok {
		return fmt.Errorf("content of entry %d, which was not asked for", p.GetID())
	}
	if file.writer == nil {
		file.writer = r.shifts.of(file.stat)
	}
	file.writer.push(chunk{file.stat, p})
	return nil
}

func (r *receiver) fin() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open > 0 {
		return errors.New("the peer ended before all was sent")
	}
	return nil
}

// write writes the files of one backlog until the transfer ends.
func (r *receiver) write(from *backlog) {
	contents := map[uint32]Content{}
	defer func() {
		for _, c := range contents {
			c.Abort()
		}
	}()
	for chunks := from.take(nil); len(chunks) > 0; chunks = from.take(chunks) {
		for _, c := range chunks {
			if err := r.writeChunk(contents, c); err != nil {
				r.finish(err)
				return
			}
		}
	}
}

func (r *receiver) writeChunk(contents map[uint32]Content, c chunk) error {
	defer c.packet.Free()
	id := c.packet.GetID()
	w, ok := contents[id]
	if !ok {
		var err error
		if w, err = r.dst.Create(c.stat); err != nil {
			return err
		}
		contents[id] = w
	}
	if data := c.packet.GetData(); len(data) > 0 {
		_, err := w.Write(data)
		return err
	}
	delete(contents, id)
	if err := w.Commit(); err != nil {
		return err
	}
	r.mu.Lock()
	r.closeOneLocked()
	r.mu.Unlock()
	return nil
}
