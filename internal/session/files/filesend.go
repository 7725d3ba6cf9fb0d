package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/filesync"
	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session"
)

// Request metadata of FileSend.DiffCopy (BuildKit's session/filesync).
const (
	keyExporterID    = "buildkit-attachable-exporter-id"
	keyMultiPlatform = "buildkit-exporter-multi-platform"
	prefixExporterMD = "exporter-md-"
)

// SendOptions say what a tree is that is sent to a client.
type SendOptions struct {
	// ExporterID is the exporter's number in the request of the build.
	ExporterID int
	// Meta is what the exporter has to tell of the result.
	Meta map[string]string
	// MultiPlatform says that the tree holds a directory for each platform.
	MultiPlatform bool
	// Sent, if not nil, is told of each run of bytes of content that went out.
	Sent func(n int64)
}

// Send writes tree into the directory that the client has for an exporter. It
// returns once the client has all of it.
func Send(ctx context.Context, caller *session.Caller, tree Tree, opt SendOptions) error {
	if !caller.Supports(filesync.FileSend_DiffCopy_FullMethodName) {
		return errors.New("send files to client: it takes none: it has no output directory for this build")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(caller.Context(), cancel)
	defer stop()
	md := metadata.MD{}
	md.Set(keyExporterID, strconv.Itoa(opt.ExporterID))
	if opt.MultiPlatform {
		md.Set(keyMultiPlatform, "1")
	}
	for k, v := range opt.Meta {
		session.SetMetadata(md, prefixExporterMD+k, []string{v})
	}
	stream, err := filesync.NewFileSendClient(caller.Conn()).DiffCopy(metadata.NewOutgoingContext(ctx, md))
	if err != nil {
		return fmt.Errorf("send files to client: %w", err)
	}
	chunk := max(smallChunk, min(caller.Chunk(), session.LargeChunk))
	packets := packetsOf{stream}
	err = send(ctx, packets, tree, chunk, opt.Sent)
	if err == nil || errors.Is(err, errStreamEnded) {
		err = finishSend(stream, packets)
	}
	switch {
	case status.Code(err) == codes.AlreadyExists:
		return nil // the client does not want it
	case err != nil && caller.Context().Err() != nil:
		return errors.New("send files to client: the client's session ended")
	case err != nil:
		return fmt.Errorf("send files to client: %w", err)
	}
	return nil
}

// finishSend waits for the client to have written all.
func finishSend(stream grpc.ClientStream, packets packetsOf) error {
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		if _, err := packets.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// messages is either side of a gRPC stream.
type messages interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

// packetsOf is a stream of packets on an rpc that was declared for other
// messages, as FileSend.DiffCopy is.
type packetsOf struct{ stream messages }

func (p packetsOf) Send(m *fsutil.Packet) error { return p.stream.SendMsg(m) }

func (p packetsOf) Recv() (*fsutil.Packet, error) {
	m := new(fsutil.Packet)
	if err := p.stream.RecvMsg(m); err != nil {
		return nil, err
	}
	return m, nil
}

func (p packetsOf) RecvMsg(m any) error { return p.stream.RecvMsg(m) }

// DirTarget is a directory of the client that takes an exporter's files; it is
// an export target.
type DirTarget struct {
	// Name is the directory. It is made if it is not there.
	Name string
	// Delete removes what is in the directory and not in the result.
	Delete bool
}

// Receive takes the files that the daemon sends on stream.
func (t DirTarget) Receive(stream grpc.ServerStream) error {
	dst, err := OpenDestination(t.Name, t.Delete)
	if err != nil {
		return err
	}
	err = receive(packetsOf{stream}, dst)
	if err == nil {
		err = dst.Finish()
	}
	if file := (*fs.PathError)(nil); errors.As(err, &file) {
		err = fmt.Errorf("in %s: %w", t.Name, err) // where all paths begin
	}
	return errors.Join(err, dst.Close())
}
