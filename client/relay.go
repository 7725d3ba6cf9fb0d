package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/session"
)

// Observer is told of each message between a frontend and the daemon: the call's
// name, such as "Solve", and what was said. Calls may overlap.
type Observer func(call string, fromDaemon bool, message proto.Message)

// Relay has the frontend at the other end of conn drive the build, in place of
// this program: its calls go to the daemon as they are, until conn or ctx ends.
// The result is what it returned. observe may be nil.
func (g *Gateway) Relay(ctx context.Context, conn net.Conn, observe Observer) (*BuildResult, error) {
	r := &relay{gateway: g, observe: observe, ended: make(chan struct{})}
	server := grpc.NewServer(
		grpc.Creds(insecure.NewCredentials()), grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(r.handle),
		grpc.MaxRecvMsgSize(session.MaxMessage), grpc.MaxSendMsgSize(session.MaxMessage), grpc.WaitForHandlers(true))
	defer server.Stop()
	defer context.AfterFunc(ctx, server.Stop)()
	_ = server.Serve(&relayListener{conn: conn, relay: r}) // ends with the connection, always by an error
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case r.returned == nil:
		return nil, errors.New("the frontend has ended without a result")
	case r.returned.GetError() != nil:
		return nil, decodeError(status.FromProto(r.returned.GetError()))
	}
	return g.readResult(r.returned.GetResult())
}

// relay is the server's side of a frontend.
type relay struct {
	gateway *Gateway
	observe Observer
	ended   chan struct{} // the connection has
	ending  sync.Once

	mu       sync.Mutex
	returned *gateway.ReturnRequest
}

// handle passes a call on, message by message. A result stays here: the daemon
// gets it when the frontend has ended.
func (r *relay) handle(_ any, front grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(front)
	if !ok {
		return status.Error(codes.Internal, "the call has no name")
	}
	if path.Base(method) == "Return" {
		return r.takeResult(front)
	}
	// The caller's metadata names its own build, not this one.
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(front.Context(), nil))
	defer cancel()
	back, err := r.gateway.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method, grpc.ForceCodecV2(rawCodec{}))
	if err != nil {
		return err
	}
	go func() {
		defer func() { _ = back.CloseSend() }() // receiving tells of errors
		for {
			var m rawMessage
			if front.RecvMsg(&m) != nil {
				return
			}
			r.tell(method, false, m)
			if back.SendMsg(m) != nil {
				return
			}
		}
	}()
	for {
		var m rawMessage
		if err := back.RecvMsg(&m); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		r.tell(method, true, m)
		if err := front.SendMsg(m); err != nil {
			return err
		}
	}
}

// takeResult keeps what the frontend returns.
func (r *relay) takeResult(front grpc.ServerStream) error {
	var m rawMessage
	if err := front.RecvMsg(&m); err != nil {
		return err
	}
	req := &gateway.ReturnRequest{}
	if err := proto.Unmarshal(m, req); err != nil {
		return status.Errorf(codes.InvalidArgument, "decode result: %v", err)
	}
	if r.observe != nil {
		r.observe("Return", false, req)
	}
	r.mu.Lock()
	first := r.returned == nil
	if first {
		r.returned = req
	}
	r.mu.Unlock()
	if !first {
		return status.Error(codes.FailedPrecondition, "gateway result is already set")
	}
	return front.SendMsg(rawMessage{})
}

// tell has the observer see a message, if it can be decoded.
func (r *relay) tell(method string, fromDaemon bool, m rawMessage) {
	if r.observe == nil {
		return
	}
	service, name := path.Split(method)
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(path.Clean(service)[1:]).Append(protoreflect.Name(name)))
	if err != nil {
		return
	}
	desc, ok := d.(protoreflect.MethodDescriptor)
	if !ok {
		return
	}
	kind := desc.Input()
	if fromDaemon {
		kind = desc.Output()
	}
	t, err := protoregistry.GlobalTypes.FindMessageByName(kind.FullName())
	if err != nil {
		return
	}
	msg := t.New().Interface()
	if proto.Unmarshal(m, msg) == nil {
		r.observe(name, fromDaemon, msg)
	}
}

// rawMessage is a message as it is on the wire.
type rawMessage []byte

// rawCodec leaves messages as they are.
type rawCodec struct{}

// Name is that of the codec in whose place this one stands.
func (rawCodec) Name() string { return "proto" }

// Marshal takes rawMessages.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(rawMessage)
	if !ok {
		return nil, fmt.Errorf("relay message of type %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(m)}, nil
}

// Unmarshal makes a rawMessage.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*rawMessage)
	if !ok {
		return fmt.Errorf("relay message of type %T", v)
	}
	*m = data.Materialize()
	return nil
}

// relayListener has one connection to accept, and ends with it.
type relayListener struct {
	conn  net.Conn
	once  sync.Once
	relay *relay
}

// Accept returns the connection, and at the second call waits for its end.
func (l *relayListener) Accept() (c net.Conn, err error) {
	l.once.Do(func() { c = relayConn{l.conn, l} })
	if c != nil {
		return c, nil
	}
	<-l.relay.ended
	return nil, io.EOF
}

// Close has Accept return.
func (l *relayListener) Close() error {
	l.relay.ending.Do(func() { close(l.relay.ended) })
	return nil
}

// Addr is the connection's.
func (l *relayListener) Addr() net.Addr { return l.conn.LocalAddr() }

type relayConn struct {
	net.Conn
	l *relayListener
}

// Close ends the listener, too.
func (c relayConn) Close() error {
	defer c.l.Close()
	return c.Conn.Close()
}
