// Package secret hands secrets of the client to the steps of a build that ask
// for them: the client's side reads files and environment variables, the
// daemon's asks the sessions of the work at hand. A secret is never stored.
package secret

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/secrets"
	"github.com/kiln-build/kiln/internal/session"
)

// MaxSize is the size of the largest secret, bytes (BuildKit's session/secrets).
const MaxSize = 500 << 10

// Source says where a client has a secret: in a file, or in a variable of its
// environment.
type Source struct {
	ID        string
	File, Env string // one of them
	// EmptyIfUnset says that a variable that is not set is an empty secret, as for
	// BuildKit's programs, and no mistake.
	EmptyIfUnset bool
	// CacheKey has steps that use the secret run again when its value is another.
	// A daemon that is not Kiln's passes over it.
	CacheKey bool
}

// Provider serves a client's secrets. It is a [session.Attachable].
type Provider struct {
	secrets.UnimplementedSecretsServer
	sources map[string]Source
}

// NewProvider returns the provider of sources. It fails for one that does not
// exist or is too large, so that a build does not find out late.
func NewProvider(sources []Source) (*Provider, error) {
	p := &Provider{sources: map[string]Source{}}
	for _, s := range sources {
		if s.ID == "" {
			return nil, errors.New("secret without an id: want id=NAME")
		}
		if _, err := s.read(); err != nil {
			return nil, fmt.Errorf("secret %q: %w", s.ID, err)
		}
		p.sources[s.ID] = s
	}
	return p, nil
}

// Register attaches the provider to a session.
func (p *Provider) Register(s *grpc.Server) { secrets.RegisterSecretsServer(s, p) }

// GetSecret returns a secret.
func (p *Provider) GetSecret(_ context.Context, req *secrets.GetSecretRequest) (*secrets.GetSecretResponse, error) {
	s, ok := p.sources[req.GetID()]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "secret %s not found", req.GetID())
	}
	data, err := s.read()
	if err != nil {
		return nil, status.Errorf(codes.Unknown, "secret %q: %v", s.ID, err)
	}
	return &secrets.GetSecretResponse{Data: data}, nil
}

func (s Source) read() ([]byte, error) {
	if s.Env != "" {
		v, ok := os.LookupEnv(s.Env)
		switch {
		case !ok && !s.EmptyIfUnset:
			return nil, fmt.Errorf("the environment has no variable %s", s.Env)
		case len(v) > MaxSize:
			return nil, fmt.Errorf("variable %s is of %d bytes: at most %d are allowed", s.Env, len(v), MaxSize)
		}
		return []byte(v), nil
	}
	f, err := os.Open(s.File)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("file %s is larger than the %d bytes that a secret may have", s.File, MaxSize)
	}
	return data, nil
}

// Daemon asks the sessions that a context carries for secrets.
type Daemon struct{}

// Secret returns the secret id of the first session that has it, and
// [fs.ErrNotExist] if none does.
func (Daemon) Secret(ctx context.Context, id string) ([]byte, error) {
	for _, c := range session.FromContext(ctx) {
		if !c.Supports(secrets.Secrets_GetSecret_FullMethodName) {
			continue
		}
		r, err := secrets.NewSecretsClient(c.Conn()).GetSecret(ctx, &secrets.GetSecretRequest{ID: id})
		switch code := status.Code(err); {
		case code == codes.NotFound || code == codes.Unimplemented:
			continue
		case err != nil:
			return nil, fmt.Errorf("ask the client for secret %q: %w", id, err)
		case len(r.GetData()) > MaxSize:
			return nil, fmt.Errorf("secret %q is of %d bytes: at most %d are allowed", id, len(r.GetData()), MaxSize)
		}
		return r.GetData(), nil
	}
	return nil, fmt.Errorf("secret %q: %w", id, fs.ErrNotExist)
}
