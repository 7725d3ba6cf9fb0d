// Package export hands a build's result over to the client: archives as streams
// of bytes (daemon and client side), and on the client side the one service that
// takes all results, also those of package files.
package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/filesync"
	"github.com/kiln-build/kiln/internal/api/kiln"
	"github.com/kiln-build/kiln/internal/session"
)

// Request metadata of FileSend.DiffCopy (BuildKit's session/filesync).
const (
	keyExporterID    = "buildkit-attachable-exporter-id"
	prefixExporterMD = "exporter-md-"
)

// maxChunk is the most bytes in one message to the client: BuildKit's clients
// take at most 4 MiB.
const maxChunk = 1 << 20

// Open begins an archive for the client's exporter id, of which meta tells. The
// result must be closed or aborted.
func Open(ctx context.Context, caller *session.Caller, id int, meta map[string]string) (*Writer, error) {
	return open(ctx, caller, id, meta, false)
}

// OpenHanding is Open for an archive that has large files, see WriteFile.
func OpenHanding(ctx context.Context, caller *session.Caller, id int, meta map[string]string) (*Writer, error) {
	return open(ctx, caller, id, meta, caller.HandsFiles() && caller.Supports(kiln.Archives_Take_FullMethodName))
}

func open(ctx context.Context, caller *session.Caller, id int, meta map[string]string, handing bool) (*Writer, error) {
	if !caller.Supports(filesync.FileSend_DiffCopy_FullMethodName) {
		return nil, errors.New("send archive to client: it takes none: it has no output file for this build")
	}
	md := metadata.MD{}
	md.Set(keyExporterID, strconv.Itoa(id))
	for k, v := range meta {
		session.SetMetadata(md, prefixExporterMD+k, []string{v})
	}
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(ctx, md))
	stop := context.AfterFunc(caller.Context(), cancel)
	w := &Writer{caller: caller, cancel: func() { stop(); cancel() }}
	var err error
	if handing {
		w.handed, err = kiln.NewArchivesClient(caller.Conn()).Take(ctx)
		w.stream = pieces{w.handed}
	} else {
		var plain grpc.BidiStreamingClient[filesync.BytesMessage, filesync.BytesMessage]
		plain, err = filesync.NewFileSendClient(caller.Conn()).DiffCopy(ctx)
		w.stream = plainStream{plain}
	}
	if err != nil {
		w.cancel()
		return nil, fmt.Errorf("send archive to client: %w", err)
	}
	return w, nil
}

// Writer is an archive on its way to the client. It must be closed or aborted.
type Writer struct {
	stream   stream
	handed   grpc.BidiStreamingClient[kiln.ArchivePiece, kiln.ArchiveTaken] // nil if files cannot be handed over
	cancel   func()
	caller   *session.Caller
	unwanted bool // the client does not want it: the rest is dropped
}

// stream is one of the rpcs that carry archives.
type stream interface {
	send(data []byte) error
	recv() error
	CloseSend() error
}

type plainStream struct {
	grpc.BidiStreamingClient[filesync.BytesMessage, filesync.BytesMessage]
}

func (s plainStream) send(data []byte) error { return s.Send(&filesync.BytesMessage{Data: data}) }

func (s plainStream) recv() error {
	_, err := s.Recv()
	return err
}

// Write sends p. It returns once p is on its way.
func (w *Writer) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0 && !w.unwanted; {
		n := min(len(rest), maxChunk)
		err := w.stream.send(rest[:n])
		if errors.Is(err, io.EOF) { // the client ended it: receiving tells why
			err = w.wait()
		}
		if err != nil {
			return len(p) - len(rest), err
		}
		rest = rest[n:]
	}
	return len(p), nil
}

// Close ends the archive and waits for the client to have it.
func (w *Writer) Close() error {
	defer w.cancel()
	if w.unwanted {
		return nil
	}
	if err := w.stream.CloseSend(); err != nil {
		return fmt.Errorf("send archive to client: %w", err)
	}
	return w.wait()
}

// Abort makes the client throw away what it has, unless the archive is closed.
func (w *Writer) Abort() { w.cancel() }

// wait waits for the client to end the call.
func (w *Writer) wait() error {
	for {
		if err := w.stream.recv(); err != nil {
			return w.ended(err)
		}
	}
}

// ended says what it means that the client has ended the call.
func (w *Writer) ended(err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case status.Code(err) == codes.AlreadyExists:
		w.unwanted = true
		return nil
	case w.caller.Context().Err() != nil:
		return errors.New("send archive to client: the client's session ended")
	default:
		return fmt.Errorf("send archive to client: %w", err)
	}
}

// Target takes the result of one exporter.
type Target interface {
	Receive(stream grpc.ServerStream) error
}

// Targets takes the results of a build's exporters, by their number in the
// request. It is a [session.Attachable].
type Targets struct {
	filesync.UnimplementedFileSendServer
	targets map[int]Target
}

// NewTargets returns what takes the results for targets. A result for none of
// them is refused as not wanted.
func NewTargets(targets map[int]Target) *Targets { return &Targets{targets: targets} }

// Register attaches the targets to a session.
func (t *Targets) Register(s *grpc.Server) {
	filesync.RegisterFileSendServer(s, t)
	kiln.RegisterArchivesServer(s, t)
}

// DiffCopy takes one result.
func (t *Targets) DiffCopy(stream grpc.BidiStreamingServer[filesync.BytesMessage, filesync.BytesMessage]) error {
	target, err := t.target(stream.Context())
	if err != nil {
		return err
	}
	if err := target.Receive(stream); err != nil {
		return status.Errorf(codes.Unknown, "write output: %v", err)
	}
	return nil
}

// target is the one that a call names.
func (t *Targets) target(ctx context.Context) (Target, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	id := 0
	if v := md.Get(keyExporterID); len(v) > 0 {
		n, err := strconv.ParseUint(v[0], 10, 31)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "metadata %s: want a number, not %q", keyExporterID, v[0])
		}
		id = int(n)
	}
	target, ok := t.targets[id]
	if !ok {
		return nil, status.Errorf(codes.AlreadyExists, "target %d already exists", id)
	}
	return target, nil
}
