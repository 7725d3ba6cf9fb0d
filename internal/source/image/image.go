// Package image brings in images from registries and from Kiln's own store.
//
// A reference is pinned to a digest once a build: all its steps see the same
// image. By default the store is asked first, as users of Docker expect, so
// that an image which was just built needs no registry; then the registry is
// asked what the name means now; and if it cannot be reached, what it said
// last counts, with a warning. Manifests and configs are remembered: neither a
// digest that was seen before nor a rebuild downloads them again.
// Layers stay where they are until somebody looks at their files.
package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/registry"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// Layers is what of [layer.Store] is needed here.
type Layers interface {
	FromBlobs(ctx context.Context, blobs []layer.LazyBlob) (*layer.Ref, error)
}

// Registry is what of [registry.Client] is needed here.
type Registry interface {
	Resolve(ctx context.Context, ref string) (ocispecs.Descriptor, error)
	ReadAll(ctx context.Context, origin string, desc ocispecs.Descriptor) ([]byte, error)
	Referrers(ctx context.Context, origin string, d digest.Digest) ([]ocispecs.Descriptor, error)
}

// Images are the images that Kiln keeps by name.
type Images interface {
	// Image returns what a normalised name stands for.
	Image(name string) (ocispecs.Descriptor, bool)
}

// Config is what a Source is made of.
type Config struct {
	Layers   Layers
	Content  content.Provider // of the images in Images
	Registry Registry
	Images   Images // nil if there is no store
	Memo     source.Memo
}

// Source is a source.Source for images.
type Source struct {
	cfg Config

	mu     sync.Mutex
	builds map[string]map[string]ocispecs.Descriptor // by session and name
}

// New returns a source.
func New(c Config) *Source {
	return &Source{cfg: c, builds: map[string]map[string]ocispecs.Descriptor{}}
}

// Schemes is "docker-image".
func (s *Source) Schemes() []string { return []string{"docker-image"} }

// request is a SourceOp, decoded.
type request struct {
	ref      reference.Named
	mode     string
	limit    int
	checksum digest.Digest
}

func decode(op *llb.SourceOp, opt source.Options) (*request, error) {
	name, ok := strings.CutPrefix(op.Identifier, "docker-image://")
	if !ok {
		return nil, fmt.Errorf("malformed identifier %q: expected docker-image://reference", op.Identifier)
	}
	ref, err := registry.ParseReference(name)
	if err != nil {
		return nil, err
	}
	r := &request{ref: ref, mode: opt.Mode}
	for k, v := range op.Attrs {
		switch k {
		case "image.resolvemode":
			r.mode = v
		case "image.recordtype":
			if !slices.Contains([]string{"", "internal", "frontend", "regular"}, v) {
				err = fmt.Errorf("attribute %s=%q: expected internal, frontend or regular", k, v)
			}
		case "image.layerlimit":
			if r.limit, err = strconv.Atoi(v); err != nil || r.limit <= 0 {
				err = fmt.Errorf("attribute %s: invalid layer limit %q: expected a number above 0", k, v)
			}
		case "image.checksum":
			if r.checksum = digest.Digest(v); r.checksum.Validate() != nil {
				err = fmt.Errorf("attribute %s=%q: expected a digest such as sha256:<64 hex digits>", k, v)
			}
		default:
			err = source.UnknownAttr(k)
		}
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", op.Identifier, err)
		}
	}
	switch r.mode {
	case "":
		r.mode = "default"
	case "default", "pull", "local":
	default:
		return nil, fmt.Errorf("source %s: resolve mode %q is not known: expected default, pull or local", op.Identifier, r.mode)
	}
	return r, nil
}

// private is what a pin remembers.
type private struct {
	image  *source.Image
	origin string // where its blobs are
	limit  int
}

// Resolve pins an image.
func (s *Source) Resolve(ctx context.Context, op *llb.SourceOp, opt source.Options) (*source.Pin, error) {
	r, err := decode(op, opt)
	if err != nil {
		return nil, err
	}
	root, err := s.root(ctx, r)
	if err != nil {
		return nil, err
	}
	if r.checksum != "" && root.Digest != r.checksum {
		return nil, fmt.Errorf("image digest %s for %s does not match expected checksum %s", root.Digest, r.ref, r.checksum)
	}
	pinned, err := reference.WithDigest(reference.TrimNamed(r.ref), root.Digest)
	if err != nil {
		return nil, fmt.Errorf("pin image %s: %w", r.ref, err)
	}
	platform := opt.Platform
	if platform.OS == "" {
		platform = platforms.DefaultSpec()
	}
	platform = platforms.Normalize(platform)
	read := func(ctx context.Context, d ocispecs.Descriptor) ([]byte, error) {
		return s.read(ctx, pinned.String(), d)
	}
	img, err := source.SelectImage(ctx, r.ref.String(), root, platform, read)
	if err != nil {
		return nil, err
	}
	key, err := source.ImageKey(root.Digest, platform, r.limit)
	if err != nil {
		return nil, err
	}
	pin := &source.Pin{
		Op: op, Platform: platform, Key: key, Digest: root.Digest, Name: r.ref.String(),
		Private: &private{image: img, origin: pinned.String(), limit: r.limit},
	}
	if opt.WantConfig {
		if pin.Config, err = read(ctx, img.Manifest.Config); err != nil {
			return nil, err
		}
	}
	if opt.WantChain {
		if pin.Chain, err = s.chain(ctx, pinned.String(), img, opt.Attestations); err != nil {
			return nil, err
		}
	}
	return pin, nil
}

// Fetch returns the image's files. Nothing is pulled but its config.
func (s *Source) Fetch(ctx context.Context, pin *source.Pin) (*layer.Ref, error) {
	p, ok := pin.Private.(*private)
	if !ok {
		return nil, fmt.Errorf("fetch %s: the pin is not of this source", pin.Op.Identifier)
	}
	config := pin.Config
	if config == nil {
		var err error
		if config, err = s.read(ctx, p.origin, p.image.Manifest.Config); err != nil {
			return nil, err
		}
	}
	blobs, err := p.image.LazyBlobs(config, p.limit, p.origin, pin.Platform.OS)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", pin.Name, err)
	}
	return s.cfg.Layers.FromBlobs(ctx, blobs)
}

// root finds out what a reference means.
func (s *Source) root(ctx context.Context, r *request) (ocispecs.Descriptor, error) {
	name := r.ref.String()
	memo := name
	pinned, isPinned := r.ref.(reference.Digested)
	if isPinned {
		memo = pinnedName(r.ref, pinned.Digest())
		if d, ok := s.remembered(memo); ok {
			return d, nil
		}
	}
	if d, ok := s.earlier(ctx, name+" "+r.mode); ok {
		return d, nil
	}
	if r.mode != "pull" && s.cfg.Images != nil {
		if d, ok := s.cfg.Images.Image(name); ok {
			// Whoever pins the name asks next by digest, which no registry may know.
			if err := s.remember(pinnedName(r.ref, d.Digest), d); err != nil {
				return d, err
			}
			s.forBuild(ctx, name+" "+r.mode, d)
			return d, nil
		}
	}
	d, err := s.cfg.Registry.Resolve(ctx, name)
	if err != nil {
		last, ok := s.remembered(memo)
		if !ok || r.mode == "pull" || !registry.IsUnreachable(err) {
			return d, err
		}
		progress.StepFrom(ctx).Warn(progress.Warning{Level: 1, Short: fmt.Appendf(nil,
			"The registry cannot be reached; using %s as it was when it was last seen (%s)", name, last.Digest)})
		d = last
	}
	if isPinned && d.Digest != pinned.Digest() {
		return d, fmt.Errorf("image %s: the registry answered with digest %s", name, d.Digest)
	}
	if err := s.remember(memo, d); err != nil {
		return d, err
	}
	s.forBuild(ctx, name+" "+r.mode, d)
	return d, nil
}

// pinnedName is what a digest is remembered by: that one repository has it does
// not mean that those who name another may have it.
func pinnedName(ref reference.Named, d digest.Digest) string {
	return reference.TrimNamed(ref).Name() + "@" + d.String()
}

func (s *Source) remember(key string, d ocispecs.Descriptor) error {
	b, err := json.Marshal(d)
	if err == nil {
		err = s.cfg.Memo.PutValue(namespaceNames, key, b)
	}
	if err != nil {
		return fmt.Errorf("remember image %s: %w", key, err)
	}
	return nil
}

func (s *Source) remembered(key string) (ocispecs.Descriptor, bool) {
	var d ocispecs.Descriptor
	b, ok := s.cfg.Memo.Value(namespaceNames, key)
	if !ok || json.Unmarshal(b, &d) != nil {
		return d, false
	}
	return d, d.Digest.Validate() == nil
}

// earlier returns what a name meant earlier in this build.
func (s *Source) earlier(ctx context.Context, name string) (ocispecs.Descriptor, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range session.FromContext(ctx) {
		if d, ok := s.builds[c.ID()][name]; ok {
			return d, true
		}
	}
	return ocispecs.Descriptor{}, false
}

// forBuild makes a name mean the same for as long as the build's client is there.
func (s *Source) forBuild(ctx context.Context, name string, d ocispecs.Descriptor) {
	callers := session.FromContext(ctx)
	if len(callers) == 0 {
		return
	}
	id := callers[0].ID()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.builds[id] == nil {
		s.builds[id] = map[string]ocispecs.Descriptor{}
		context.AfterFunc(callers[0].Context(), func() {
			s.mu.Lock()
			delete(s.builds, id)
			s.mu.Unlock()
		})
	}
	s.builds[id][name] = d
}

// Where things are remembered.
const (
	namespaceNames     = "source.image.names"     // name:tag or name@digest: descriptor
	namespaceDocuments = "source.image.documents" // digest: manifest, index or config
)

// read returns a manifest, index or config, over the network only if it is not here.
func (s *Source) read(ctx context.Context, origin string, d ocispecs.Descriptor) ([]byte, error) {
	right := func(b []byte) bool { return d.Digest.Algorithm().FromBytes(b) == d.Digest }
	if b, ok := s.cfg.Memo.Value(namespaceDocuments, d.Digest.String()); ok && right(b) {
		return b, nil
	}
	b, err := content.ReadBlob(ctx, s.cfg.Content, d)
	if err == nil && right(b) {
		return b, nil
	}
	if b, err = s.cfg.Registry.ReadAll(ctx, origin, d); err != nil {
		return nil, err
	}
	if err := s.cfg.Memo.PutValue(namespaceDocuments, d.Digest.String(), b); err != nil {
		return nil, fmt.Errorf("keep %s of image %s: %w", d.Digest, origin, err)
	}
	return b, nil
}
