package session

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
)

// readBuffer is how much a connection reads ahead, bytes. What is longer is read
// without it; every session has two of them as long as it lasts.
const readBuffer = 32 << 10

// ServerOptions are what a gRPC server that carries sessions, or is reached
// through one, should be made with: large windows and buffers.
func ServerOptions() []grpc.ServerOption {
	pool := newBuffers()
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.InitialWindowSize(Window), grpc.InitialConnWindowSize(2 * Window),
		grpc.ReadBufferSize(readBuffer), grpc.WriteBufferSize(Buffer),
		grpc.ForceServerCodecV2(newCodec(pool)), experimental.BufferPool(pool),
	}
}

// DialOptions are the same for a gRPC client.
func DialOptions() []grpc.DialOption {
	pool := newBuffers()
	return []grpc.DialOption{
		grpc.WithInitialWindowSize(Window), grpc.WithInitialConnWindowSize(2 * Window),
		grpc.WithReadBufferSize(readBuffer), grpc.WithWriteBufferSize(Buffer),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(MaxMessage), grpc.MaxCallSendMsgSize(MaxMessage),
			grpc.ForceCodecV2(newCodec(pool)),
		),
		experimental.WithBufferPool(pool),
	}
}
