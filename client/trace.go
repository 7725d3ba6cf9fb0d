package client

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/propagation"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// ExportSpans gives the daemon OpenTelemetry spans: those of a build's trace are
// kept with its record, and all go on to the daemon's collector, if it has one.
func (c *Client) ExportSpans(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	_, err := collectorpb.NewTraceServiceClient(c.conn).Export(ctx, &collectorpb.ExportTraceServiceRequest{ResourceSpans: spans})
	if err != nil {
		return fmt.Errorf("export spans: %w", err)
	}
	return nil
}

// traceOptions have each call tell the daemon of the span in its context.
func traceOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(traced(ctx), method, req, reply, conn, opts...)
		}),
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(traced(ctx), desc, conn, method, opts...)
		}),
	}
}

func traced(ctx context.Context) context.Context {
	header := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, header) // nothing, if there is no span
	for key, value := range header {
		ctx = metadata.AppendToOutgoingContext(ctx, key, value)
	}
	return ctx
}
