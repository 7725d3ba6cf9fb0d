// Package upload moves single files from a client to the daemon that are not
// part of a directory, such as a build context that comes on standard input as
// a tar.
package upload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/upload"
	"github.com/kiln-build/kiln/internal/session"
)

// Host is the host of URLs whose files come over the session.
const Host = "buildkit-session"

// Metadata of Upload/Pull (BuildKit's session/upload).
const (
	keyPath = "urlpath"
	keyHost = "urlhost"
)

// chunk is the most bytes in one message.
const chunk = 256 << 10

// Provider serves readers, each once. It is a [session.Attachable].
type Provider struct {
	upload.UnimplementedUploadServer
	mu      sync.Mutex
	readers map[string]io.Reader // by the path of the URL
}

// NewProvider returns a provider that has nothing to offer yet.
func NewProvider() *Provider { return &Provider{readers: map[string]io.Reader{}} }

// Add offers r and returns the URL under which the daemon can get it, once. name
// is a word that is unique in the session.
func (p *Provider) Add(name string, r io.Reader) string {
	u := url.URL{Scheme: "http", Host: Host, Path: "/" + name}
	p.mu.Lock()
	p.readers[u.Path] = r
	p.mu.Unlock()
	return u.String()
}

// Register attaches the provider to a session.
func (p *Provider) Register(s *grpc.Server) { upload.RegisterUploadServer(s, p) }

// Pull sends a reader's bytes.
func (p *Provider) Pull(stream grpc.BidiStreamingServer[upload.BytesMessage, upload.BytesMessage]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	path := ""
	if v := md.Get(keyPath); len(v) > 0 {
		path = v[0]
	}
	p.mu.Lock()
	r := p.readers[path]
	delete(p.readers, path)
	p.mu.Unlock()
	if r == nil {
		return status.Errorf(codes.NotFound, "the client has nothing to upload at %q, or not any more", path)
	}
	buf := make([]byte, chunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if err := stream.Send(&upload.BytesMessage{Data: buf[:n]}); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return status.Errorf(codes.Unknown, "read upload: %v", err)
		}
	}
}

// Open gets the file at a URL's path from the first session in ctx that has it.
func Open(ctx context.Context, path string) (io.ReadCloser, error) {
	var out io.ReadCloser
	err := session.Any(ctx, upload.Upload_Pull_FullMethodName, func(ctx context.Context, c *session.Caller) error {
		r, err := pull(ctx, c, path)
		out = r
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get %q from the client: %w", path, err)
	}
	return out, nil
}

func pull(ctx context.Context, c *session.Caller, path string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, keyPath, path, keyHost, Host))
	stop := context.AfterFunc(c.Context(), cancel)
	r := &reader{cancel: func() { stop(); cancel() }, session: c.Context()}
	var err error
	if r.stream, err = upload.NewUploadClient(c.Conn()).Pull(ctx); err == nil {
		if err = r.stream.CloseSend(); err == nil {
			// The first message tells whether this client has it.
			if err = r.fill(); errors.Is(err, io.EOF) {
				err = nil
			}
		}
	}
	if err != nil {
		r.cancel()
		return nil, err
	}
	return r, nil
}

// reader is the daemon's end of an upload.
type reader struct {
	stream  grpc.BidiStreamingClient[upload.BytesMessage, upload.BytesMessage]
	session context.Context
	cancel  func()
	rest    []byte
	err     error
}

// fill waits for the next message.
func (r *reader) fill() error {
	m, err := r.stream.Recv()
	if err != nil && !errors.Is(err, io.EOF) && r.session.Err() != nil {
		err = errors.New("the client's session ended")
	}
	r.rest, r.err = m.GetData(), err
	return err
}

func (r *reader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		// The error is kept and told by the next turn.
		_ = r.fill()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *reader) Close() error {
	r.cancel()
	return nil
}
