// Package content lets the daemon use content stores of a client: OCI layouts to
// build from, and places for archives and caches that are written blob by blob
// (BuildKit's session/content). Both sides are here.
package content

import (
	"context"
	"fmt"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/kiln-build/kiln/internal/session"
)

// keyStore is the request metadata that names the store.
const keyStore = "buildkit-attachable-store-id"

// MethodRead is what a client serves that has content stores.
const MethodRead = "/containerd.services.content.v1.Content/Read"

// Store returns the content store that a client offers under an id, such as
// "export" or "oci:<name>".
func Store(caller *session.Caller, id string) (content.Store, error) {
	if !caller.Supports(MethodRead) {
		return nil, fmt.Errorf("use content store %q of client: %w: it offers none", id, session.ErrNoSession)
	}
	return named{proxy.NewContentStore(caller.Conn()), id}, nil
}

// named puts a store's id into every call.
type named struct {
	store content.Store
	id    string
}

func (n named) ctx(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, keyStore, n.id)
}

func (n named) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	return n.store.Info(n.ctx(ctx), d)
}

func (n named) Update(ctx context.Context, info content.Info, fields ...string) (content.Info, error) {
	return n.store.Update(n.ctx(ctx), info, fields...)
}

func (n named) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	return n.store.Walk(n.ctx(ctx), fn, filters...)
}

func (n named) Delete(ctx context.Context, d digest.Digest) error {
	return n.store.Delete(n.ctx(ctx), d)
}

func (n named) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	return n.store.ReaderAt(n.ctx(ctx), desc)
}

func (n named) Status(ctx context.Context, ref string) (content.Status, error) {
	return n.store.Status(n.ctx(ctx), ref)
}

func (n named) ListStatuses(ctx context.Context, filters ...string) ([]content.Status, error) {
	return n.store.ListStatuses(n.ctx(ctx), filters...)
}

func (n named) Abort(ctx context.Context, ref string) error { return n.store.Abort(n.ctx(ctx), ref) }

func (n named) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	return n.store.Writer(n.ctx(ctx), opts...)
}

// Provider offers content stores by id. It is a [session.Attachable].
type Provider struct{ stores chosen }

// NewProvider returns the provider of stores by id.
func NewProvider(stores map[string]content.Store) *Provider { return &Provider{stores} }

// Register attaches the provider to a session.
func (p *Provider) Register(s *grpc.Server) {
	contentapi.RegisterContentServer(s, contentserver.New(p.stores))
}

// chosen is the store that a call names.
type chosen map[string]content.Store

func (c chosen) store(ctx context.Context) (content.Store, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	ids := md.Get(keyStore)
	if len(ids) != 1 {
		return nil, fmt.Errorf("metadata %s: want one store's id, got %d: %w", keyStore, len(ids), errdefs.ErrInvalidArgument)
	}
	s, ok := c[ids[0]]
	if !ok {
		return nil, fmt.Errorf("the client has no content store %q: %w", ids[0], errdefs.ErrNotFound)
	}
	return s, nil
}

func (c chosen) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	s, err := c.store(ctx)
	if err != nil {
		return content.Info{}, err
	}
	return s.Info(ctx, d)
}

func (c chosen) Update(ctx context.Context, info content.Info, fields ...string) (content.Info, error) {
	s, err := c.store(ctx)
	if err != nil {
		return content.Info{}, err
	}
	return s.Update(ctx, info, fields...)
}

func (c chosen) Walk(ctx context.Context, fn content.WalkFunc, filters ...string) error {
	s, err := c.store(ctx)
	if err != nil {
		return err
	}
	return s.Walk(ctx, fn, filters...)
}

func (c chosen) Delete(ctx context.Context, d digest.Digest) error {
	s, err := c.store(ctx)
	if err != nil {
		return err
	}
	return s.Delete(ctx, d)
}

func (c chosen) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	s, err := c.store(ctx)
	if err != nil {
		return nil, err
	}
	return s.ReaderAt(ctx, desc)
}

func (c chosen) Status(ctx context.Context, ref string) (content.Status, error) {
	s, err := c.store(ctx)
	if err != nil {
		return content.Status{}, err
	}
	return s.Status(ctx, ref)
}

func (c chosen) ListStatuses(ctx context.Context, filters ...string) ([]content.Status, error) {
	s, err := c.store(ctx)
	if err != nil {
		return nil, err
	}
	return s.ListStatuses(ctx, filters...)
}

func (c chosen) Abort(ctx context.Context, ref string) error {
	s, err := c.store(ctx)
	if err != nil {
		return err
	}
	return s.Abort(ctx, ref)
}

func (c chosen) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	s, err := c.store(ctx)
	if err != nil {
		return nil, err
	}
	return s.Writer(ctx, opts...)
}
