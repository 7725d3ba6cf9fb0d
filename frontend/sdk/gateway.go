package sdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/frontend"
	wire "github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// gateway is a client's gateway as frontends know it.
type gateway struct{ client *client.Gateway }

// Client is the daemon's whole API, beyond what frontends need that run anywhere:
// containers, processes, directories. It is false in the daemon itself.
func Client(gw frontend.Gateway) (*client.Gateway, bool) {
	g, ok := gw.(*gateway)
	if !ok {
		return nil, false
	}
	return g.client, true
}

// Solve evaluates a graph.
func (g *gateway) Solve(ctx context.Context, graph *llb.Graph) (frontend.Ref, error) {
	r, err := g.solve(ctx, graph)
	if err != nil {
		return nil, err
	}
	return &ref{r}, nil
}

func (g *gateway) solve(ctx context.Context, graph *llb.Graph) (*client.Reference, error) {
	if graph == nil || graph.Root.Vertex == nil {
		return nil, nil
	}
	def, err := graph.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode graph: %w", err)
	}
	res, err := g.client.Solve(ctx, client.SolveRequest{Definition: def})
	if err != nil {
		return nil, err
	}
	return res.SingleRef()
}

// Frontend hands the request over to another frontend.
func (g *gateway) Frontend(ctx context.Context, name string, opts map[string]string, inputs map[string]*llb.Graph) (*frontend.Result, error) {
	req := client.SolveRequest{Frontend: name, FrontendOpt: opts, FrontendInputs: map[string]*pb.Definition{}}
	for name, in := range inputs {
		def, err := in.Marshal()
		if err != nil {
			return nil, fmt.Errorf("encode input %q: %w", name, err)
		}
		req.FrontendInputs[name] = def
	}
	res, err := g.client.Solve(ctx, req)
	if err != nil {
		return nil, err
	}
	return readResult(ctx, res)
}

// ResolveSource asks what a source is at present.
func (g *gateway) ResolveSource(ctx context.Context, op *llb.SourceOp, opt frontend.ResolveOpt) (*frontend.SourceMeta, error) {
	req := &client.SourceMetaRequest{
		Source: &pb.SourceOp{Identifier: op.Identifier, Attrs: op.Attrs}, ResolveMode: opt.Mode, LogName: opt.LogName,
		Image: &client.SourceImageRequest{
			NoConfig: opt.Image.NoConfig, AttestationChain: opt.Image.AttestationChain, ResolveAttestations: opt.Image.Attestations,
		},
	}
	if p := opt.Platform; p != nil {
		req.Platform = &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion, OSFeatures: p.OSFeatures}
	}
	if opt.GitObjects {
		req.Git = &client.SourceGitRequest{ReturnObject: true}
	}
	if c := opt.Checksum; c != nil {
		algorithm, err := checksumAlgorithm(c.Algorithm)
		if err != nil {
			return nil, err
		}
		req.HTTP = &client.SourceHTTPRequest{ChecksumRequest: &wire.ChecksumRequest{Algo: algorithm, Suffix: c.Suffix}}
	}
	resp, err := g.client.ResolveSourceMetadata(ctx, req)
	if err != nil {
		return nil, err
	}
	return readMeta(resp), nil
}

func checksumAlgorithm(a digest.Algorithm) (wire.ChecksumRequest_ChecksumAlgo, error) {
	switch a {
	case digest.SHA256:
		return wire.ChecksumRequest_CHECKSUM_ALGO_SHA256, nil
	case digest.SHA384:
		return wire.ChecksumRequest_CHECKSUM_ALGO_SHA384, nil
	case digest.SHA512:
		return wire.ChecksumRequest_CHECKSUM_ALGO_SHA512, nil
	}
	return 0, fmt.Errorf("checksum algorithm %q: expected sha256, sha384 or sha512", a)
}

// readMeta reads what the daemon tells of a source.
func readMeta(w *client.SourceMeta) *frontend.SourceMeta {
	m := &frontend.SourceMeta{Op: &llb.SourceOp{Identifier: w.GetSource().GetIdentifier(), Attrs: maps.Clone(w.GetSource().GetAttrs())}}
	if i := w.GetImage(); i != nil {
		m.Digest, m.Config, m.Chain = digest.Digest(i.GetDigest()), i.GetConfig(), readChain(i.GetAttestationChain())
	}
	if g := w.GetGit(); g != nil {
		m.Git = &frontend.GitMeta{
			Checksum: g.GetChecksum(), Ref: g.GetRef(), CommitChecksum: g.GetCommitChecksum(),
			CommitObject: g.GetCommitObject(), TagObject: g.GetTagObject(),
		}
	}
	if h := w.GetHTTP(); h != nil {
		m.Digest = digest.Digest(h.GetChecksum())
		m.HTTP = &frontend.HTTPMeta{
			Filename: h.GetFilename(), Checksum: digest.Digest(h.GetChecksumResponse().GetDigest()), Suffix: h.GetChecksumResponse().GetSuffix(),
		}
		if h.GetLastModified() != nil {
			t := h.GetLastModified().AsTime()
			m.HTTP.LastModified = &t
		}
	}
	return m
}

func readChain(w *wire.AttestationChain) *frontend.AttestationChain {
	if w == nil {
		return nil
	}
	c := &frontend.AttestationChain{
		Root: digest.Digest(w.GetRoot()), ImageManifest: digest.Digest(w.GetImageManifest()),
		AttestationManifest: digest.Digest(w.GetAttestationManifest()), Blobs: map[digest.Digest]frontend.Blob{},
	}
	for _, d := range w.GetSignatureManifests() {
		c.SignatureManifests = append(c.SignatureManifests, digest.Digest(d))
	}
	for d, b := range w.GetBlobs() {
		desc := b.GetDescriptor_()
		c.Blobs[digest.Digest(d)] = frontend.Blob{Data: b.GetData(), Desc: ocispecs.Descriptor{
			MediaType: desc.GetMediaType(), Size: desc.GetSize(), Digest: digest.Digest(desc.GetDigest()), Annotations: desc.GetAnnotations(),
		}}
	}
	return c
}

// Warn tells the user. A daemon that does not take warnings shows none.
func (g *gateway) Warn(ctx context.Context, vertex digest.Digest, w frontend.Warning) {
	opts := client.WarnOpts{Level: w.Level, URL: w.URL}
	for _, d := range w.Detail {
		opts.Detail = append(opts.Detail, []byte(d))
	}
	if w.File != nil {
		opts.SourceInfo = &pb.SourceInfo{Filename: w.File.Name, Data: w.File.Data, Language: w.File.Language}
	}
	for _, r := range w.Ranges {
		opts.Range = append(opts.Range, wireRange(r))
	}
	_ = g.client.Warn(ctx, vertex, w.Short, opts) // it stops nothing
}

func wireRange(r llb.Range) *pb.Range {
	return &pb.Range{
		Start: &pb.Position{Line: int32(r.Start.Line), Character: int32(r.Start.Character)},
		End:   &pb.Position{Line: int32(r.End.Line), Character: int32(r.End.Character)},
	}
}

// ref is a client's reference as frontends know it; that to nothing is empty.
type ref struct{ client *client.Reference }

// mostRead is how much of a file ReadFile returns, in bytes.
const mostRead = 16 << 20

// ReadFile returns a file's content.
func (r *ref) ReadFile(ctx context.Context, name string) ([]byte, error) {
	return io.ReadAll(io.LimitReader(frontend.Open(ctx, r, name), mostRead))
}

// ReadPart returns a part of a file.
func (r *ref) ReadPart(ctx context.Context, name string, offset int64, n int) ([]byte, error) {
	if r.client == nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	data, err := r.client.ReadFile(ctx, name, &client.FileRange{Offset: offset, Length: int64(n)})
	var own *client.Error
	if errors.As(err, &own) && (own.Code == codes.NotFound || strings.Contains(own.Message, "no such file or directory")) {
		return nil, fmt.Errorf("%w: %w", &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}, err)
	}
	return data, err
}

// Evaluate makes the files.
func (r *ref) Evaluate(ctx context.Context) error {
	if r.client == nil {
		return nil
	}
	return r.client.Evaluate(ctx)
}

// sortedKeys are the keys of a map, in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
