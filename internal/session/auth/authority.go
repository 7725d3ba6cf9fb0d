package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/docker/cli/cli/config"
	"github.com/gofrs/flock"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/auth"
)

// A token authority is a key pair by which sessions prove to the daemon that they
// have the same credentials for a host, so that they may share its token without
// showing them (BuildKit's session/auth). It is made of the daemon's salt and a seed
// that never leaves this machine: the daemon, which chooses the salt, learns nothing
// of the credentials. Those who have none all have the same authority.

// GetTokenAuthority returns the public key for a host.
func (p *Provider) GetTokenAuthority(ctx context.Context, req *auth.GetTokenAuthorityRequest) (*auth.GetTokenAuthorityResponse, error) {
	key, err := p.authority(ctx, req.GetHost(), req.GetSalt())
	if err != nil {
		return nil, err
	}
	return &auth.GetTokenAuthorityResponse{PublicKey: key.Public().(ed25519.PublicKey)}, nil
}

// VerifyTokenAuthority signs what the daemon sends: the answer is the signature,
// followed by what is signed.
func (p *Provider) VerifyTokenAuthority(ctx context.Context, req *auth.VerifyTokenAuthorityRequest) (*auth.VerifyTokenAuthorityResponse, error) {
	key, err := p.authority(ctx, req.GetHost(), req.GetSalt())
	if err != nil {
		return nil, err
	}
	signature := ed25519.Sign(key, req.GetPayload())
	return &auth.VerifyTokenAuthorityResponse{Signed: append(signature, req.GetPayload()...)}, nil
}

func (p *Provider) authority(ctx context.Context, host string, salt []byte) (ed25519.PrivateKey, error) {
	if noTokens() {
		return nil, status.Error(codes.Unavailable, "client side tokens disabled")
	}
	_, secret, err := p.credentials(ctx, host)
	if err != nil {
		return nil, status.Errorf(codes.Unknown, "credentials of %s: %v", host, err)
	}
	mac := hmac.New(sha256.New, salt)
	if secret != "" {
		seed, err := p.seeds.of(host)
		if err != nil {
			return nil, status.Errorf(codes.Unknown, "seed of the token authority of %s: %v", host, err)
		}
		mac.Write(seed)
	}
	return ed25519.NewKeyFromSeed(mac.Sum(nil)[:ed25519.SeedSize]), nil
}

// noTokens tells whether the user wants no tokens to be fetched on this side.
func noTokens() bool {
	no, err := strconv.ParseBool(os.Getenv("BUILDKIT_NO_CLIENT_TOKEN"))
	return err == nil && no
}

// seeds are the random seeds of a user's token authorities, by host. They are kept
// in a file, so that all of the user's sessions have the same.
type seeds struct {
	dir string
	mu  sync.Mutex
	all map[string]seed
}

type seed struct{ Seed []byte }

// seedFile is its name in the directory of the Docker configuration, as BuildKit's
// clients have it.
const seedFile = ".token_seed"

// of returns a host's seed. On a disk that cannot be written to it holds for this
// session alone.
func (s *seeds) of(host string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if own, ok := s.all[host]; ok {
		return own.Seed, nil
	}
	dir := s.dir
	if dir == "" {
		dir = config.Dir()
	}
	if err := os.MkdirAll(dir, 0o700); err != nil && !readOnly(err) {
		return nil, err
	}
	lock := flock.New(filepath.Join(dir, seedFile+".lock"))
	if err := lock.Lock(); err != nil {
		if !readOnly(err) {
			return nil, fmt.Errorf("lock %s: %w", lock.Path(), err)
		}
	} else {
		defer lock.Unlock() //nolint:errcheck // it goes with the process at the latest
	}
	return s.load(filepath.Join(dir, seedFile), host)
}

// load reads the file, and adds a seed for a host that has none.
func (s *seeds) load(file, host string) ([]byte, error) {
	if s.all == nil {
		s.all = map[string]seed{}
	}
	data, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !readOnly(err) {
		return nil, err
	}
	known := map[string]seed{}
	if json.Unmarshal(data, &known) == nil { // a broken file is made anew
		maps.Copy(s.all, known)
	}
	if own, ok := s.all[host]; ok && len(own.Seed) > 0 {
		return own.Seed, nil
	}
	fresh := make([]byte, 16)
	_, _ = rand.Read(fresh) // it never fails
	s.all[host] = seed{fresh}
	if data, err = json.MarshalIndent(s.all, "", "  "); err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, data, 0o600); err != nil && !readOnly(err) {
		return nil, err
	}
	return fresh, nil
}

// readOnly tells whether an error says that nothing can be written there.
func readOnly(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}
