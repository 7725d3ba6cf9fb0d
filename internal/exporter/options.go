package exporter

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
)

// The kinds of exporters of images.
const (
	KindImage  = "image"
	KindOCI    = "oci"
	KindDocker = "docker"
)

// ImageOptions is how an image is to be made, decoded from the attributes of
// BuildKit's exporter/containerimage/exptypes.
type ImageOptions struct {
	Kind          string   // one of the kinds above
	Names         []string // as given
	NamesFromMeta bool     // "name=*": take Meta's image.name
	Push          bool
	ByDigest      bool // push no tag
	Insecure      bool // push to a registry without a valid certificate
	Store         bool // keep the image under its names
	Unpack        bool // Kiln's store needs none: its layers are unpacked as they are read
	NameCanonical bool // keep it under name@digest, too
	// DanglingPrefix, if set, names an image prefix@digest: always, or only one
	// without a name if DanglingEmptyOnly is set.
	DanglingPrefix    string
	DanglingEmptyOnly bool
	// OCITypes asks for OCI's media types, not Docker's, OCIArtifact for
	// attestations as artifacts. Nil follows from the compatibility version.
	OCITypes, OCIArtifact *bool
	Tar                   bool // archives: one tar stream, not the client's content store
	Epoch                 Epoch
	Variant               layer.Variant // Epoch and DockerTypes left out: see layerVariant
	// RewriteTimes clamps files' times in new layers when there is an epoch.
	RewriteTimes bool
	// InlineAll attaches attestations that are for images of a store only.
	InlineAll bool
	// ForeignLayers keeps the URLs of layers that their owner does not let others distribute.
	ForeignLayers bool
	Annotations   []Annotation
	// Meta are attributes that stand for the result's own metadata, such as
	// "containerimage.config".
	Meta map[string]string
	// noteTimes marks layers whose times were clamped, as clients who ask for
	// that expect.
	noteTimes bool
}

// Epoch is a SOURCE_DATE_EPOCH that an exporter was given. One that is given
// but empty stands against that of the result.
type Epoch struct {
	Given bool
	Time  *time.Time
}

// Annotation is one annotation and where it goes.
type Annotation struct {
	Target   string // "manifest", "index", "manifest-descriptor" or "index-descriptor"
	Platform *ocispecs.Platform
	Key      string
	Value    string
}

// DecodeImage reads the attributes of the image, oci and docker exporters.
// Keys that are unknown belong to somebody else; values that are unknown are
// an error.
func DecodeImage(kind string, attrs map[string]string) (ImageOptions, error) {
	o := ImageOptions{Kind: kind, Tar: true, RewriteTimes: true, Store: true, InlineAll: kind == KindImage, Meta: map[string]string{}}
	d := decoder{attrs: attrs}
	if name := attrs["name"]; name == "*" {
		o.NamesFromMeta = true
	} else {
		o.Names = splitNames(name)
	}
	for key, to := range map[string]*bool{
		"push": &o.Push, "push-by-digest": &o.ByDigest, "registry.insecure": &o.Insecure, "store": &o.Store, "unpack": &o.Unpack,
		"name-canonical": &o.NameCanonical, "tar": &o.Tar, "force-compression": &o.Variant.Force,
		"danging-name-empty-only":  &o.DanglingEmptyOnly, // the misspelling is the protocol's
		"dangling-name-empty-only": &o.DanglingEmptyOnly,
		"rewrite-timestamp":        &o.RewriteTimes, "attestation-inline": &o.InlineAll, "prefer-nondist-layers": &o.ForeignLayers,
	} {
		d.bool(key, to)
	}
	o.OCITypes, o.OCIArtifact = d.choice("oci-mediatypes"), d.choice("oci-artifact")
	o.DanglingPrefix = attrs["dangling-name-prefix"]
	o.noteTimes = attrs["rewrite-timestamp"] != "" && o.RewriteTimes
	for key, value := range attrs {
		if strings.HasPrefix(key, metaConfig) || strings.HasPrefix(key, metaBaseConfig) {
			o.Meta[key] = value
		}
	}
	o.Epoch = d.epoch()
	d.compression(&o.Variant)
	for key, value := range attrs {
		if isAnnotation(key) {
			d.annotation(key, value, &o)
		}
	}
	if d.err == nil {
		d.err = o.conflict()
	}
	return o, d.err
}

// conflict is about options that exclude each other.
func (o ImageOptions) conflict() error {
	if o.OCITypes == nil || *o.OCITypes {
		return nil
	}
	const conflicts = "conflicts with \"oci-mediatypes=false\": leave one out"
	if o.Variant.Compression == "estargz" {
		return fmt.Errorf("exporter option \"compression=%s\" %s", o.Variant.Compression, conflicts)
	}
	if o.OCIArtifact != nil && *o.OCIArtifact {
		return fmt.Errorf("exporter option \"oci-artifact=true\" %s", conflicts)
	}
	return nil
}

// The versions of behaviour that a client may ask for (SolveRequest.CompatibilityVersion).
const (
	Compat013     = 10 // BuildKit 0.13 to 0.14
	Compat015     = 20 // 0.15 to 0.30
	Compat031     = 30 // from 0.31
	CompatCurrent = Compat031
)

// FeatureError says that an older version of behaviour lacks a feature.
type FeatureError struct {
	Version int
	Feature string
}

// Error names both.
func (e *FeatureError) Error() string {
	return fmt.Sprintf("unsupported compatibility-version %d feature %s", e.Version, e.Feature)
}

// settle decides what follows from the result and the version of behaviour.
func (o ImageOptions) settle(in Input) (ImageOptions, error) {
	version := in.CompatibilityVersion
	if version == 0 {
		version = CompatCurrent
	}
	if version == Compat013 && o.Variant.Compression == "zstd" {
		return o, &FeatureError{version, o.Kind + " exporter compression=zstd"}
	}
	attested := slices.ContainsFunc(in.Platforms, func(p Platform) bool { return len(p.Attestations) > 0 })
	if o.OCITypes == nil {
		oci := o.Kind == KindOCI || version >= Compat031 || attested
		o.OCITypes = &oci
	}
	if o.OCIArtifact == nil {
		artifact := version >= Compat031 && *o.OCITypes
		o.OCIArtifact = &artifact
	}
	d := decoder{}
	for key, value := range in.Meta {
		if isAnnotation(key) {
			d.annotation(key, string(value), &o)
		}
	}
	if d.err != nil {
		return o, d.err
	}
	if err := o.conflict(); err != nil {
		return o, err
	}
	return o, o.checkAnnotations(in)
}

// checkAnnotations refuses annotations that have no place in the result.
func (o ImageOptions) checkAnnotations(in Input) error {
	for _, a := range o.Annotations {
		if !*o.OCITypes && a.Target != "manifest" {
			return errors.New("cannot export annotations with \"oci-mediatypes=false\": only those of a manifest")
		}
		if a.Platform == nil || !isSplit(in) {
			continue
		}
		id := platforms.FormatAll(*a.Platform)
		if !slices.ContainsFunc(in.Platforms, func(p Platform) bool { return p.ID == id || platforms.FormatAll(p.Platform) == id }) {
			return fmt.Errorf("invalid annotation: no platform %s found in source", id)
		}
	}
	return nil
}

// layerVariant is how layers are to be written, given the result's epoch.
func (o ImageOptions) layerVariant(epoch *time.Time) layer.Variant {
	v := o.Variant
	v.DockerTypes = !*o.OCITypes
	if epoch != nil && o.RewriteTimes {
		s := epoch.Unix()
		v.Epoch = &s
	}
	return v
}

// What a result's metadata, or an attribute in its place, says of the images' configs.
const (
	metaConfig     = "containerimage.config"
	metaBaseConfig = "containerimage.base.config"
)

// configs are the configs of a platform's image and of its base, by attributes
// if they tell, or else by the result.
func (o ImageOptions) configs(p Platform) (config, base []byte) {
	config, base = p.Config, p.Base
	for key, to := range map[string]*[]byte{metaConfig: &config, metaBaseConfig: &base} {
		for _, id := range []string{"/" + p.ID, "/" + platforms.FormatAll(p.Platform), ""} {
			if v, ok := o.Meta[key+id]; ok {
				*to = []byte(v)
				break
			}
		}
	}
	return config, base
}

// of is the epoch of a platform's result: the exporter's own, that of the whole
// result or that of the platform.
func (e Epoch) of(in Input, p Platform) *time.Time {
	switch {
	case e.Given:
		return e.Time
	case in.Epoch != nil:
		return in.Epoch
	}
	return p.Epoch
}

// FilesOptions is how files are to be handed over, for local and tar.
type FilesOptions struct {
	PlatformSplit     bool   // a folder for each platform
	Delete            bool   // remove what is at the destination and not in the result
	Src               string // directory of the result that becomes the top; "" is all of it
	AttestationPrefix string // leads the names of attestations' files
	Epoch             Epoch
}

// CheckFiles reads the attributes of the local and tar exporters before there
// is a result.
func CheckFiles(attrs map[string]string) (FilesOptions, error) {
	o := FilesOptions{Src: attrs["src"], AttestationPrefix: attrs["attestation-prefix"]}
	d := decoder{attrs: attrs}
	d.bool("platform-split", &o.PlatformSplit)
	switch mode := attrs["mode"]; mode {
	case "", "copy":
	case "delete":
		o.Delete = true
	default:
		d.fail("mode", mode, `"copy" or "delete"`)
	}
	if src, told := attrs["src"]; told && src == "" {
		d.fail("src", src, "a directory of the result, or no src for all of it")
	}
	if strings.Contains(o.AttestationPrefix, "/") {
		d.fail("attestation-prefix", o.AttestationPrefix, "the beginning of a file name")
	}
	o.Epoch = d.epoch()
	return o, d.err
}

// DecodeFiles reads the attributes of the local and tar exporters. Results for
// several platforms are split unless told otherwise.
func DecodeFiles(attrs map[string]string, in Input) (FilesOptions, error) {
	o, err := CheckFiles(attrs)
	if err != nil {
		return o, err
	}
	if _, told := attrs["platform-split"]; !told {
		o.PlatformSplit = isSplit(in)
	}
	if len(in.Platforms) == 0 {
		return o, errors.New("export files: the result is for no platform")
	}
	return o, nil
}

// isSplit tells whether the result is one of several, by the request's form.
func isSplit(in Input) bool { return len(in.Platforms) > 0 && in.Platforms[0].ID != "" }

func splitNames(csv string) []string {
	var names []string
	for name := range strings.SplitSeq(csv, ",") {
		if name = strings.TrimSpace(name); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// decoder keeps the first error.
type decoder struct {
	attrs map[string]string
	err   error
}

func (d *decoder) fail(key, value, expected string) {
	if d.err == nil {
		d.err = fmt.Errorf("export option %s=%q is not valid: expected %s", key, value, expected)
	}
}

// choice is a bool that may be left open.
func (d *decoder) choice(key string) *bool {
	if _, ok := d.attrs[key]; !ok {
		return nil
	}
	var b bool
	d.bool(key, &b)
	return &b
}

func (d *decoder) bool(key string, to *bool) {
	s, ok := d.attrs[key]
	if !ok {
		return
	}
	if s == "" { // as in "push" alone
		*to = true
		return
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		if d.err == nil {
			d.err = fmt.Errorf("non-bool value specified for %s: %q is neither true nor false", key, s)
		}
		return
	}
	*to = b
}

func (d *decoder) epoch() Epoch {
	const key = "source-date-epoch"
	s, given := d.attrs[key]
	if s == "" {
		return Epoch{Given: given}
	}
	t, err := ParseEpoch(s)
	if err != nil {
		d.fail(key, s, "seconds since 1970")
	}
	return Epoch{given, t}
}

// The years 1 to 9999 are those of which all formats have times.
const (
	earliestEpoch = -62135596800
	latestEpoch   = 253402300799
)

// ParseEpoch reads a SOURCE_DATE_EPOCH; the empty one is none.
func ParseEpoch(s string) (*time.Time, error) {
	if s == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < earliestEpoch || n > latestEpoch {
		return nil, fmt.Errorf("invalid SOURCE_DATE_EPOCH %q: expected seconds since 1970", s)
	}
	t := time.Unix(n, 0).UTC()
	return &t, nil
}

// levels are the compressions and their highest levels.
var levels = map[string]int{"gzip": 9, "estargz": 9, "zstd": 22, "uncompressed": 0}

func (d *decoder) compression(v *layer.Variant) {
	v.Compression = d.attrs["compression"]
	if v.Compression == "" {
		v.Compression = "gzip"
	}
	most, ok := levels[v.Compression]
	if !ok {
		if d.err == nil {
			d.err = fmt.Errorf("unsupported compression type %s: expected gzip, estargz, zstd or uncompressed", v.Compression)
		}
		return
	}
	s := d.attrs["compression-level"]
	if s == "" {
		return
	}
	n, err := strconv.Atoi(s)
	switch {
	case err != nil:
		if d.err == nil {
			d.err = fmt.Errorf("non-integer value %s specified for compression-level", s)
		}
	case n < 0 || n > most && most > 0:
		d.fail("compression-level", s, fmt.Sprintf("a number from 0 to %d for %s", most, v.Compression))
	case n == 0 && v.Compression == "gzip":
		v.Level = layer.LevelStore
	case most > 0:
		v.Level = n
	}
}

// isAnnotation tells the attributes that are annotations from others.
func isAnnotation(key string) bool {
	rest, ok := strings.CutPrefix(key, "annotation")
	return ok && (rest == "" || strings.IndexByte(".-[", rest[0]) >= 0)
}

// annotationKey is annotation[-target][\[platform\]].key
var annotationKey = regexp.MustCompile(`^annotation(?:-(manifest|index|manifest-descriptor|index-descriptor))?(?:\[([^\]]+)\])?\.(.+)$`)

func (d *decoder) annotation(key, value string, o *ImageOptions) {
	m := annotationKey.FindStringSubmatch(key)
	if m == nil {
		d.fail(key, value, "annotation[-manifest|-index|-manifest-descriptor|-index-descriptor][[platform]].key=value")
		return
	}
	a := Annotation{Target: m[1], Key: m[3], Value: value}
	if a.Target == "" {
		a.Target = "manifest"
	}
	if m[2] != "" {
		p, err := platforms.Parse(m[2])
		if err != nil {
			d.fail(key, value, "a platform such as linux/amd64 in the brackets")
			return
		}
		p = platforms.Normalize(p)
		a.Platform = &p
	}
	o.Annotations = append(o.Annotations, a)
}

// annotationsFor selects what goes to a target; platform is nil for an index,
// which takes those of all platforms.
func (o ImageOptions) annotationsFor(target string, platform *ocispecs.Platform) map[string]string {
	var out map[string]string
	// What is said of a platform goes before what is said of all.
	for _, specific := range []bool{false, true} {
		for _, a := range o.Annotations {
			if a.Target != target || (a.Platform != nil) != specific {
				continue
			}
			if specific && platform != nil && platforms.Format(*a.Platform) != platforms.Format(*platform) {
				continue
			}
			if out == nil {
				out = map[string]string{}
			}
			out[a.Key] = a.Value
		}
	}
	return out
}
