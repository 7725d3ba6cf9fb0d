// Package blob brings in one blob of a registry or of a client's OCI layout as a
// file (BuildKit's solver/pb/attr.go): the only file of a file system of its own.
//
// A blob is named by its digest, so it is pinned as it is, and what is brought
// in has that digest or is not brought in. It is downloaded when somebody reads
// the file, not before.
package blob

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// The two schemes.
const (
	schemeImage  = "docker-image+blob"
	schemeLayout = "oci-layout+blob"
)

// Layers is what of [layer.Store] is needed here.
type Layers interface {
	New(ctx context.Context, parent *layer.Ref, opt layer.NewOptions) (*layer.Mutable, error)
	Get(ctx context.Context, id string) (*layer.Ref, error)
}

// Blobs opens blobs by digest: of the repository of a reference, or of the
// client's layout that "oci-layout://<store>" names.
type Blobs interface {
	OpenBlob(ctx context.Context, origin string, d digest.Digest) (io.ReadCloser, int64, error)
}

// Sessions finds a client by its session's id; [session.Manager] does.
type Sessions interface {
	Get(ctx context.Context, id string) (*session.Caller, error)
}

// Config is what a Source is made of.
type Config struct {
	Layers   Layers
	Blobs    Blobs
	Sessions Sessions
	Memo     source.Memo
	MaxBytes int64 // of a blob; 0 is 32 GiB
}

// Source is a source.Source for blobs.
type Source struct{ cfg Config }

// New returns a source.
func New(c Config) *Source {
	if c.MaxBytes == 0 {
		c.MaxBytes = 32 << 30
	}
	return &Source{c}
}

// Schemes are "docker-image+blob" and "oci-layout+blob".
func (s *Source) Schemes() []string { return []string{schemeImage, schemeLayout} }

// request is a SourceOp, decoded.
type request struct {
	origin    string // for Blobs
	digest    digest.Digest
	sessionID string
	file      source.File
}

func decode(op *llb.SourceOp) (*request, error) {
	scheme, body, _ := strings.Cut(op.Identifier, "://")
	name, d, ok := strings.Cut(body, "@")
	r := &request{digest: digest.Digest(d)}
	if !ok || name == "" || r.digest.Validate() != nil || scheme != schemeImage && scheme != schemeLayout {
		return nil, fmt.Errorf("malformed identifier %q: expected %s://name@sha256:<64 hex digits> or %s://name@sha256:<64 hex digits>",
			op.Identifier, schemeImage, schemeLayout)
	}
	store := ""
	for k, v := range op.Attrs {
		var err error
		switch {
		case scheme == schemeLayout && k == llb.AttrOCIStore:
			store = v
		case scheme == schemeLayout && k == llb.AttrOCISession:
			r.sessionID = v
		default:
			err = r.attr(k, v)
		}
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", op.Identifier, err)
		}
	}
	if scheme == schemeLayout {
		if store == "" {
			return nil, fmt.Errorf("source %s: attribute %s is missing: it names the layout of the client", op.Identifier, llb.AttrOCIStore)
		}
		r.origin = "oci-layout://" + store
		return r, nil
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("source %s: malformed reference: %w", op.Identifier, err)
	}
	r.origin = reference.TrimNamed(named).String() + "@" + d
	return r, nil
}

func (r *request) attr(key, value string) error {
	if known, err := r.file.Attr(key, value); known {
		return err
	}
	if key != llb.AttrImageRecordType {
		return source.UnknownAttr(key)
	}
	if !slices.Contains([]string{"", "internal", "frontend", "regular"}, value) {
		return fmt.Errorf("attribute %s=%q: expected internal, frontend or regular", key, value)
	}
	return nil
}

func (r *request) name() string {
	return cmp.Or(r.file.Name, r.digest.Encoded())
}

// key is the cache key of BuildKit's source/containerblob. Fields and order are the
// protocol's.
func (r *request) key() (string, error) {
	b, err := json.Marshal(struct {
		Version        string
		Digest         digest.Digest
		Filename       string
		Perm, UID, GID int
	}{"v1", r.digest, r.file.Name, r.file.Perm, r.file.UID, r.file.GID})
	if err != nil {
		return "", fmt.Errorf("encode cache key: %w", err)
	}
	return digest.FromBytes(b).String(), nil
}

// Resolve pins a blob: it is what its digest says.
func (s *Source) Resolve(_ context.Context, op *llb.SourceOp, opt source.Options) (*source.Pin, error) {
	r, err := decode(op)
	if err != nil {
		return nil, err
	}
	key, err := r.key()
	if err != nil {
		return nil, err
	}
	return &source.Pin{Op: op, Platform: opt.Platform, Key: key, Digest: r.digest, Name: r.name(), Private: r}, nil
}

// memoNamespace is where it is remembered which layer has a blob: by key.
const memoNamespace = "source.blob"

// Fetch downloads a blob, once.
func (s *Source) Fetch(ctx context.Context, pin *source.Pin) (*layer.Ref, error) {
	r, ok := pin.Private.(*request)
	if !ok {
		return nil, fmt.Errorf("fetch %s: the pin is not of this source", pin.Op.Identifier)
	}
	if id, ok := s.cfg.Memo.Value(memoNamespace, pin.Key); ok {
		if ref, err := s.cfg.Layers.Get(ctx, string(id)); err == nil {
			return ref, nil
		}
	}
	ref, err := s.download(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", pin.Op.Identifier, err)
	}
	return ref, s.cfg.Memo.PutValue(memoNamespace, pin.Key, []byte(ref.ID()))
}

func (s *Source) download(ctx context.Context, r *request) (*layer.Ref, error) {
	sctx, err := s.withSession(ctx, r)
	if err != nil {
		return nil, err
	}
	body, size, err := s.cfg.Blobs.OpenBlob(sctx, r.origin, r.digest)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if size > s.cfg.MaxBytes {
		return nil, fmt.Errorf("it has %d bytes, more than the %d that are allowed", size, s.cfg.MaxBytes)
	}
	m, err := s.cfg.Layers.New(ctx, nil, layer.NewOptions{Description: "blob " + r.origin})
	if err != nil {
		return nil, err
	}
	defer m.Discard() //nolint:errcheck // does nothing after Commit, and the first error counts
	dir, release, err := m.Mount(ctx)
	if err != nil {
		return nil, err
	}
	task := progress.StepFrom(ctx).Task(r.digest.String(), size)
	err = r.write(dir, io.LimitReader(task.Reader(body), s.cfg.MaxBytes+1))
	task.Done()
	if err = errors.Join(err, release()); err != nil {
		return nil, err
	}
	return m.Commit(ctx)
}

// withSession puts the session that op names before those of ctx.
func (s *Source) withSession(ctx context.Context, r *request) (context.Context, error) {
	callers := session.FromContext(ctx)
	if r.sessionID == "" || slices.ContainsFunc(callers, func(c *session.Caller) bool { return c.ID() == r.sessionID }) {
		return ctx, nil
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	c, err := s.cfg.Sessions.Get(wait, r.sessionID)
	if err != nil {
		return nil, fmt.Errorf("find session %q: %w", r.sessionID, err)
	}
	return session.WithGroup(ctx, group(append([]*session.Caller{c}, callers...))), nil
}

type group []*session.Caller

// Sessions are the sessions.
func (g group) Sessions() []*session.Caller { return g }

// write makes the file and checks what got into it.
func (r *request) write(dir string, body io.Reader) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.OpenFile(r.name(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	hash := r.digest.Algorithm().Hash()
	if _, err := io.CopyBuffer(io.MultiWriter(f, hash), body, make([]byte, 256<<10)); err != nil {
		return err
	}
	if got := digest.NewDigest(r.digest.Algorithm(), hash); got != r.digest {
		return fmt.Errorf("blob digest mismatch: expected %s, got %s", r.digest, got)
	}
	return r.file.Finish(root, r.name(), f, time.Unix(0, 0))
}
