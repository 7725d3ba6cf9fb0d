package llb

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/distribution/reference"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// source returns a State of a source. Only images have a platform.
func source(id string, attrs map[string]string, c *Constraints, problem error) State {
	return NewState(sourceOutput(id, attrs, c, problem))
}

func sourceOutput(id string, attrs map[string]string, c *Constraints, problem error) Output {
	n := &node{own: c, make: func(b *builder) (*Vertex, error) {
		if problem != nil {
			return nil, problem
		}
		op := &SourceOp{Identifier: id, Attrs: attrs}
		var platform *ocispecs.Platform
		switch op.Scheme() {
		case "docker-image", "oci-layout":
			platform = b.platform(c.Platform)
		case "local":
			op.Attrs = withUniqueID(attrs, c, b.constraints)
		}
		return b.finish(&Vertex{Op: op}, c, platform), nil
	}}
	return &nodeOutput{node: n, plat: c.Platform}
}

// ImageInfo is how to get an image.
type ImageInfo struct {
	Constraints
	metaResolver  ImageMetaResolver
	resolveDigest bool
	resolveMode   ResolveMode
	layerLimit    *int
	checksum      digest.Digest
	RecordType    string
}

// ImageOption is an option of [Image].
type ImageOption interface{ SetImageOption(*ImageInfo) }

type imageOptionFunc func(*ImageInfo)

func (f imageOptionFunc) SetImageOption(i *ImageInfo) { f(i) }

// RecordType says what a cache record is for. It is an option of [Image].
type RecordType string

// MarkImageInternal has the image counted as the daemon's own in its disk usage.
const MarkImageInternal RecordType = "internal"

// SetImageOption sets the record type of an image.
func (r RecordType) SetImageOption(i *ImageInfo) { i.RecordType = string(r) }

// ResolveMode is where to look an image up. It is an option of [Image].
type ResolveMode int

// Ways to look an image up.
const (
	ResolveModeDefault     ResolveMode = iota
	ResolveModeForcePull               // ask the registry
	ResolveModePreferLocal             // take what is there
)

// SetImageOption sets the mode of an image.
func (r ResolveMode) SetImageOption(i *ImageInfo) { i.resolveMode = r }

// String returns the attribute's value.
func (r ResolveMode) String() string {
	switch r {
	case ResolveModeDefault:
		return ResolveDefault
	case ResolveModeForcePull:
		return ResolvePull
	case ResolveModePreferLocal:
		return ResolveLocal
	}
	return ""
}

// ImageMetaResolver looks up the configuration of images. It returns the
// reference, which may have changed, the digest, and the JSON of the config.
type ImageMetaResolver interface {
	ResolveImageConfig(ctx context.Context, ref string, opt ResolveImageOpt) (string, digest.Digest, []byte, error)
}

// ResolveImageOpt says which image to look up.
type ResolveImageOpt struct {
	Platform    *ocispecs.Platform
	ResolveMode string
}

// WithMetaResolver has the State take its surroundings from the image's config.
func WithMetaResolver(r ImageMetaResolver) ImageOption {
	return imageOptionFunc(func(i *ImageInfo) { i.metaResolver = r })
}

// ResolveDigest has the meta resolver's digest put into the reference.
func ResolveDigest(v bool) ImageOption {
	return imageOptionFunc(func(i *ImageInfo) { i.resolveDigest = v })
}

// WithLayerLimit takes only the first n layers.
func WithLayerLimit(n int) ImageOption {
	return imageOptionFunc(func(i *ImageInfo) { i.layerLimit = &n })
}

// WithImageChecksum fails the build if the image has another digest.
func WithImageChecksum(d digest.Digest) ImageOption {
	return imageOptionFunc(func(i *ImageInfo) { i.checksum = d })
}

// Image returns the file system of an image in a registry, such as "alpine:3.20".
func Image(ref string, opts ...ImageOption) State {
	named, problem := reference.ParseNormalizedNamed(ref)
	if problem == nil {
		named = reference.TagNameOnly(named)
		ref = named.String()
	} else {
		problem = fmt.Errorf("parse image reference %q: %w", ref, problem)
	}
	info := &ImageInfo{}
	for _, o := range opts {
		o.SetImageOption(info)
	}
	attrs := attributes{}
	if info.resolveMode != ResolveModeDefault {
		attrs.set(AttrImageResolveMode, info.resolveMode.String())
	}
	attrs.set(AttrImageRecordType, info.RecordType)
	attrs.setLimit(AttrImageLayerLimit, info.layerLimit)
	attrs.set(AttrImageChecksum, info.checksum.String())
	st := source("docker-image://"+ref, attrs, &info.Constraints, problem)
	if problem != nil || info.metaResolver == nil {
		return st
	}
	_, digested := named.(reference.Digested)
	return st.Async(func(ctx context.Context, st State, c *Constraints) (State, error) {
		return info.resolve(ctx, st, c, ref, attrs, info.resolveDigest && !digested)
	})
}

// resolve looks up the image's config.
func (i *ImageInfo) resolve(ctx context.Context, st State, c *Constraints, ref string, attrs map[string]string, pin bool) (State, error) {
	opt := ResolveImageOpt{Platform: i.Platform, ResolveMode: i.resolveMode.String()}
	if opt.Platform == nil {
		opt.Platform = c.Platform
	}
	ref, dgst, config, err := i.metaResolver.ResolveImageConfig(ctx, ref, opt)
	if err != nil {
		return State{}, fmt.Errorf("resolve image %q: %w", ref, err)
	}
	if pin {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil {
			return State{}, fmt.Errorf("parse resolved image reference %q: %w", ref, err)
		}
		if dgst != "" {
			if named, err = reference.WithDigest(named, dgst); err != nil {
				return State{}, fmt.Errorf("pin image %q: %w", ref, err)
			}
		}
		st = source("docker-image://"+named.String(), attrs, &i.Constraints, nil)
	}
	return st.WithImageConfig(config)
}

// fileInfo is the file that a download or a blob becomes.
type fileInfo struct {
	Filename string
	Perm     int
	UID      int
	GID      int
}

func (f *fileInfo) setAttrs(attrs attributes) {
	attrs.set(AttrHTTPFilename, f.Filename)
	if f.Perm != 0 {
		attrs[AttrHTTPPerm] = "0" + strconv.FormatInt(int64(f.Perm), 8)
	}
	if f.UID != 0 {
		attrs[AttrHTTPUID] = strconv.Itoa(f.UID)
	}
	if f.GID != 0 {
		attrs[AttrHTTPGID] = strconv.Itoa(f.GID)
	}
}

// FileInfoOption is an option of [HTTP], [ImageBlob] and [OCILayoutBlob].
type FileInfoOption interface {
	HTTPOption
	ImageBlobOption
}

type fileInfoOptFunc func(*fileInfo)

func (f fileInfoOptFunc) SetHTTPOption(i *HTTPInfo)           { f(&i.fileInfo) }
func (f fileInfoOptFunc) SetImageBlobOption(i *ImageBlobInfo) { f(&i.fileInfo) }

// Chmod sets the permission bits of the file.
func Chmod(perm os.FileMode) FileInfoOption {
	return fileInfoOptFunc(func(f *fileInfo) { f.Perm = int(perm & 0o777) })
}

// Filename sets the name of the file.
func Filename(name string) FileInfoOption {
	return fileInfoOptFunc(func(f *fileInfo) { f.Filename = name })
}

// Chown sets the owner of the file.
func Chown(uid, gid int) FileInfoOption {
	return fileInfoOptFunc(func(f *fileInfo) { f.UID, f.GID = uid, gid })
}

// ImageBlobInfo is how to get a blob.
type ImageBlobInfo struct {
	Constraints
	fileInfo
	sessionID string
	storeID   string
}

// ImageBlobOption is an option of [ImageBlob] and [OCILayoutBlob].
type ImageBlobOption interface{ SetImageBlobOption(*ImageBlobInfo) }

type imageBlobOptionFunc func(*ImageBlobInfo)

func (f imageBlobOptionFunc) SetImageBlobOption(i *ImageBlobInfo) { f(i) }

// ImageBlobOCIStore says which store of which session has the blob.
func ImageBlobOCIStore(sessionID, storeID string) ImageBlobOption {
	return imageBlobOptionFunc(func(i *ImageBlobInfo) { i.sessionID, i.storeID = sessionID, storeID })
}

// ImageBlob returns a file system of one file: a blob in a registry, named as
// repository@digest.
func ImageBlob(ref string, opts ...ImageBlobOption) State {
	return blob("docker-image+blob://", ref, opts)
}

// OCILayoutBlob returns a file system of one file: a blob in a client's store,
// named as name@digest.
func OCILayoutBlob(ref string, opts ...ImageBlobOption) State {
	return blob("oci-layout+blob://", ref, opts)
}

func blob(scheme, ref string, opts []ImageBlobOption) State {
	info := &ImageBlobInfo{}
	for _, o := range opts {
		o.SetImageBlobOption(info)
	}
	attrs := attributes{}
	info.setAttrs(attrs)
	if scheme == "oci-layout+blob://" {
		attrs.set(AttrOCISession, info.sessionID)
		attrs.set(AttrOCIStore, info.storeID)
	}
	named, problem := reference.ParseNormalizedNamed(ref)
	if problem == nil {
		_, tagged := named.(reference.Tagged)
		_, digested := named.(reference.Digested)
		if tagged || !digested {
			problem = errors.New("expected repository@digest")
		} else {
			ref = named.String()
		}
	}
	if problem != nil {
		problem = fmt.Errorf("parse blob reference %q: %w", ref, problem)
	}
	return source(scheme+ref, attrs, &info.Constraints, problem)
}

// OCILayoutInfo is how to get an image from a client's store.
type OCILayoutInfo struct {
	Constraints
	sessionID  string
	storeID    string
	layerLimit *int
	checksum   digest.Digest
}

// OCILayoutOption is an option of [OCILayout].
type OCILayoutOption interface{ SetOCILayoutOption(*OCILayoutInfo) }

type ociLayoutOptionFunc func(*OCILayoutInfo)

func (f ociLayoutOptionFunc) SetOCILayoutOption(i *OCILayoutInfo) { f(i) }

// OCIStore says which store of which session has the image.
func OCIStore(sessionID, storeID string) OCILayoutOption {
	return ociLayoutOptionFunc(func(i *OCILayoutInfo) { i.sessionID, i.storeID = sessionID, storeID })
}

// OCILayerLimit takes only the first n layers.
func OCILayerLimit(n int) OCILayoutOption {
	return ociLayoutOptionFunc(func(i *OCILayoutInfo) { i.layerLimit = &n })
}

// OCIChecksum is accepted for compatibility. As in BuildKit's library, it is
// not sent: the reference has a digest already.
func OCIChecksum(d digest.Digest) OCILayoutOption {
	return ociLayoutOptionFunc(func(i *OCILayoutInfo) { i.checksum = d })
}

// OCILayout returns the file system of an image in a client's store, named as
// name@digest.
func OCILayout(ref string, opts ...OCILayoutOption) State {
	info := &OCILayoutInfo{}
	for _, o := range opts {
		o.SetOCILayoutOption(info)
	}
	attrs := attributes{}
	attrs.set(AttrOCISession, info.sessionID)
	attrs.set(AttrOCIStore, info.storeID)
	attrs.setLimit(AttrOCILayerLimit, info.layerLimit)
	return source("oci-layout://"+ref, attrs, &info.Constraints, nil)
}
