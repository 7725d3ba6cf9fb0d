// Package ssh forwards the client's ssh agents to the steps of a build that ask
// for them. Keys stay in the agent; the daemon sees only requests to sign.
package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/sshforward"
	"github.com/kiln-build/kiln/internal/session"
)

// keyID is the metadata of ForwardAgent (BuildKit's session/sshforward).
const keyID = "buildkit.ssh.id"

// DefaultID is the id of the agent of those who name none.
const DefaultID = "default"

// bufferSize is the most bytes in one message.
const bufferSize = 32 << 10

// Provider serves a client's agents. It is a [session.Attachable].
type Provider struct {
	sshforward.UnimplementedSSHServer
	agents map[string]dialer // by id
}

// dialer connects to an agent.
type dialer func(context.Context) (net.Conn, error)

// NewProvider returns the provider of agents: the paths of their unix sockets by
// id.
func NewProvider(sockets map[string]string) *Provider {
	p := &Provider{agents: map[string]dialer{}}
	for id, socket := range sockets {
		p.agents[id] = dialSocket(socket)
	}
	return p
}

func dialSocket(path string) dialer {
	return func(ctx context.Context) (net.Conn, error) {
		return session.DialUnix(ctx, path)
	}
}

// Register attaches the provider to a session.
func (p *Provider) Register(s *grpc.Server) { sshforward.RegisterSSHServer(s, p) }

func (p *Provider) agent(id string) (dialer, error) {
	if id == "" {
		id = DefaultID
	}
	dial, ok := p.agents[id]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "the client offers no ssh agent %q", id)
	}
	return dial, nil
}

// CheckAgent tells whether there is an agent.
func (p *Provider) CheckAgent(_ context.Context, req *sshforward.CheckAgentRequest) (*sshforward.CheckAgentResponse, error) {
	if _, err := p.agent(req.GetID()); err != nil {
		return nil, err
	}
	return &sshforward.CheckAgentResponse{}, nil
}

// ForwardAgent connects the stream to an agent.
func (p *Provider) ForwardAgent(stream grpc.BidiStreamingServer[sshforward.BytesMessage, sshforward.BytesMessage]) error {
	md, _ := metadata.FromIncomingContext(stream.Context())
	id := ""
	if v := md.Get(keyID); len(v) > 0 {
		id = v[0]
	}
	dial, err := p.agent(id)
	if err != nil {
		return err
	}
	conn, err := dial(stream.Context())
	if err != nil {
		return status.Errorf(codes.Unavailable, "connect to ssh agent: %v", err)
	}
	return pipe(stream, conn, func() error { return nil })
}

// messages is either side of the stream that carries an agent's connection.
type messages interface {
	Send(*sshforward.BytesMessage) error
	Recv() (*sshforward.BytesMessage, error)
}

// pipe copies between stream and conn until the agent's side, conn or stream,
// ends; then it closes conn. closeSend ends the sending side of stream.
func pipe(stream messages, conn net.Conn, closeSend func() error) error {
	var once sync.Once
	var result error
	done := make(chan struct{})
	end := func(err error) { once.Do(func() { result = err; close(done) }) }
	go func() { // stream to conn
		for {
			m, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				end(nil)
				return
			}
			if err == nil {
				_, err = conn.Write(m.GetData())
			}
			if err != nil {
				end(err)
				return
			}
		}
	}()
	go func() { // conn to stream
		buf := make([]byte, bufferSize)
		for {
			n, err := conn.Read(buf)
			if n > 0 {
				if err := stream.Send(&sshforward.BytesMessage{Data: buf[:n]}); err != nil {
					end(err)
					return
				}
			}
			if err != nil {
				if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
					err = nil
				}
				end(errors.Join(err, closeSend()))
				return
			}
		}
	}()
	<-done
	return errors.Join(result, conn.Close())
}

// Daemon offers the agents of the sessions that a context carries.
type Daemon struct{}

// Listen makes a unix socket at path whose connections lead to the client's agent
// id, until stop. It returns [fs.ErrNotExist] if no client has the agent.
func (Daemon) Listen(ctx context.Context, id, path string) (stop func(), err error) {
	caller, err := find(ctx, id)
	if err != nil {
		return nil, err
	}
	listener, err := session.ListenUnix(path)
	if err != nil {
		return nil, fmt.Errorf("make socket for ssh agent %q: %w", id, err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unhook := context.AfterFunc(caller.Context(), cancel)
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // closed
			}
			work.Go(func() { forward(ctx, caller, id, conn) })
		}
	})
	return func() {
		unhook()
		cancel()
		// Closing the listener removes the socket; its directory goes in any case.
		_ = listener.Close()
		work.Wait()
	}, nil
}

// find returns the first session with the agent id.
func find(ctx context.Context, id string) (*session.Caller, error) {
	for _, c := range session.FromContext(ctx) {
		if !c.Supports(sshforward.SSH_ForwardAgent_FullMethodName) {
			continue
		}
		_, err := sshforward.NewSSHClient(c.Conn()).CheckAgent(ctx, &sshforward.CheckAgentRequest{ID: id})
		switch code := status.Code(err); {
		case err == nil:
			return c, nil
		case code == codes.NotFound || code == codes.Unimplemented || code == codes.Unknown:
			// BuildKit's clients answer Unknown for an agent that they lack.
			continue
		default:
			return nil, fmt.Errorf("ask the client for ssh agent %q: %w", id, err)
		}
	}
	return nil, fmt.Errorf("ssh agent %q: %w", id, fs.ErrNotExist)
}

// forward connects conn to the agent. An error ends the connection, and whoever
// uses it sees that.
func forward(ctx context.Context, caller *session.Caller, id string, conn net.Conn) {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, keyID, id))
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	stream, err := sshforward.NewSSHClient(caller.Conn()).ForwardAgent(ctx)
	if err != nil {
		_ = conn.Close()
		return
	}
	_ = pipe(stream, conn, stream.CloseSend)
}
