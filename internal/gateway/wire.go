package gateway

import (
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// WirePlatform is a platform as messages have it.
func WirePlatform(p ocispecs.Platform) *pb.Platform {
	return &pb.Platform{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

// ReadPlatform reads a platform; nil is nil.
func ReadPlatform(p *pb.Platform) *ocispecs.Platform {
	if p == nil {
		return nil
	}
	return &ocispecs.Platform{Architecture: p.Architecture, OS: p.OS, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
}

// WireSourceOp is a source as messages have it.
func WireSourceOp(op *llb.SourceOp) *pb.SourceOp {
	return &pb.SourceOp{Identifier: op.Identifier, Attrs: op.Attrs}
}

// ReadSourceOp reads a source; nil is nil.
func ReadSourceOp(op *pb.SourceOp) *llb.SourceOp {
	if op == nil {
		return nil
	}
	return &llb.SourceOp{Identifier: op.GetIdentifier(), Attrs: op.GetAttrs()}
}

// ReadGraphs decodes the inputs of a request, by their names.
func ReadGraphs(defs map[string]*pb.Definition) (map[string]*llb.Graph, error) {
	if len(defs) == 0 {
		return nil, nil
	}
	out := map[string]*llb.Graph{}
	for name, d := range defs {
		g, err := llb.Unmarshal(d)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "decode input %q: %v", name, err)
		}
		out[name] = g
	}
	return out, nil
}

// readCacheImports reads which caches one request of a frontend names.
func readCacheImports(r *gateway.SolveRequest) (out []build.CacheOption) {
	for _, i := range r.GetCacheImports() {
		out = append(out, build.CacheOption{Type: i.GetType(), Attrs: i.GetAttrs()})
	}
	return out
}
