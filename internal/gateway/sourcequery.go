package gateway

import (
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/api/gateway"
)

// readQueries reads what a request wants to know of git references and files.
func readQueries(r *gateway.ResolveSourceMetaRequest, o *frontend.ResolveOpt) error {
	o.GitObjects = r.GetGit().GetReturnObject()
	q := r.GetHTTP().GetChecksumRequest()
	if q == nil {
		return nil
	}
	o.Checksum = &frontend.ChecksumQuery{Suffix: q.GetSuffix()}
	switch q.GetAlgo() {
	case gateway.ChecksumRequest_CHECKSUM_ALGO_SHA256:
		o.Checksum.Algorithm = digest.SHA256
	case gateway.ChecksumRequest_CHECKSUM_ALGO_SHA384:
		o.Checksum.Algorithm = digest.SHA384
	case gateway.ChecksumRequest_CHECKSUM_ALGO_SHA512:
		o.Checksum.Algorithm = digest.SHA512
	default:
		return status.Errorf(codes.InvalidArgument, "unsupported checksum algorithm %d", q.GetAlgo())
	}
	return nil
}

func wireGit(g *frontend.GitMeta) *gateway.ResolveSourceGitResponse {
	if g == nil {
		return nil
	}
	return &gateway.ResolveSourceGitResponse{
		Checksum: g.Checksum, Ref: g.Ref, CommitChecksum: g.CommitChecksum, CommitObject: g.CommitObject, TagObject: g.TagObject,
	}
}

func wireHTTP(m *frontend.SourceMeta) *gateway.ResolveSourceHTTPResponse {
	if m.HTTP == nil {
		return nil
	}
	w := &gateway.ResolveSourceHTTPResponse{Checksum: string(m.Digest), Filename: m.HTTP.Filename}
	if t := m.HTTP.LastModified; t != nil {
		w.LastModified = &timestamppb.Timestamp{Seconds: t.Unix()}
	}
	if m.HTTP.Checksum != "" {
		w.ChecksumResponse = &gateway.ChecksumResponse{Digest: string(m.HTTP.Checksum), Suffix: m.HTTP.Suffix}
	}
	return w
}
