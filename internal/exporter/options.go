package exporter

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
)

// ImageOptions is how an image is to be made, decoded from the attributes of
// WIRE.md section 13.2.
type ImageOptions struct {
	Names         []string // as given
	NamesFromMeta bool     // "name=*": take Meta's image.name
	Push          bool
	ByDigest      bool // push no tag
	Insecure      bool // push to a registry without a valid certificate
	Store         bool // keep the image under its names
	NameCanonical bool // keep it under name@digest, too
	// DanglingPrefix, if set, names an image prefix@digest: always, or only one
	// without a name if DanglingEmptyOnly is set.
	DanglingPrefix    string
	DanglingEmptyOnly bool
	OCITypes          bool // OCI's media types, not Docker's
	Tar               bool // archives: one tar stream, not the client's content store
	Epoch             *time.Time
	Variant           layer.Variant // Epoch and DockerTypes left out: see LayerVariant
	RewriteTimes      bool          // clamp files' times in new layers when there is an epoch
	Annotations       []Annotation
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
func DecodeImage(attrs map[string]string) (ImageOptions, error) {
	o := ImageOptions{OCITypes: true, Tar: true, RewriteTimes: true, Store: true}
	d := decoder{attrs: attrs}
	if name := attrs["name"]; name == "*" {
		o.NamesFromMeta = true
	} else {
		o.Names = splitNames(name)
	}
	d.bool("push", &o.Push)
	d.bool("push-by-digest", &o.ByDigest)
	d.bool("registry.insecure", &o.Insecure)
	d.bool("store", &o.Store)
	d.bool("name-canonical", &o.NameCanonical)
	d.bool("danging-name-empty-only", &o.DanglingEmptyOnly) // the misspelling is the protocol's
	d.bool("dangling-name-empty-only", &o.DanglingEmptyOnly)
	o.DanglingPrefix = attrs["dangling-name-prefix"]
	d.bool("oci-mediatypes", &o.OCITypes)
	d.bool("tar", &o.Tar)
	d.bool("force-compression", &o.Variant.Force)
	d.bool("rewrite-timestamp", &o.RewriteTimes)
	o.Epoch = d.epoch()
	d.compression(&o.Variant)
	for _, key := range []string{"unpack", "oci-artifact", "attestation-inline", "prefer-nondist-layers"} {
		var ignored bool // has no bearing on what Kiln makes; a typing error is told all the same
		d.bool(key, &ignored)
	}
	for key, value := range attrs {
		if strings.HasPrefix(key, "annotation") {
			d.annotation(key, value, &o)
		}
	}
	return o, d.err
}

// LayerVariant is how layers are to be written, given the result's epoch.
func (o ImageOptions) LayerVariant(epoch *time.Time) layer.Variant {
	v := o.Variant
	v.DockerTypes = !o.OCITypes
	if epoch != nil && o.RewriteTimes {
		s := epoch.Unix()
		v.Epoch = &s
	}
	return v
}

// FilesOptions is how files are to be handed over, for local and tar.
type FilesOptions struct {
	PlatformSplit bool // a folder for each platform
	Delete        bool // remove what is at the destination and not in the result
	Src           string
	Epoch         *time.Time
}

// DecodeFiles reads the attributes of the local and tar exporters. Results for
// several platforms are split unless told otherwise.
func DecodeFiles(attrs map[string]string, in Input) (FilesOptions, error) {
	o := FilesOptions{PlatformSplit: isSplit(in), Src: attrs["src"]}
	d := decoder{attrs: attrs}
	d.bool("platform-split", &o.PlatformSplit)
	switch mode := attrs["mode"]; mode {
	case "", "copy":
	case "delete":
		o.Delete = true
	default:
		d.fail("mode", mode, `"copy" or "delete"`)
	}
	if o.Epoch = d.epoch(); o.Epoch == nil {
		o.Epoch = in.Epoch
	}
	if d.err == nil && len(in.Platforms) == 0 {
		d.err = fmt.Errorf("export files: the result is for no platform")
	}
	if d.err == nil && !o.PlatformSplit && len(in.Platforms) > 1 {
		d.err = fmt.Errorf("export for %d platforms needs a folder for each: platform-split=false is for one platform", len(in.Platforms))
	}
	return o, d.err
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
		d.fail(key, s, "true or false")
		return
	}
	*to = b
}

func (d *decoder) epoch() *time.Time {
	const key = "source-date-epoch"
	s := d.attrs[key]
	if s == "" {
		return nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 253402300799 {
		d.fail(key, s, "seconds since 1970")
		return nil
	}
	t := time.Unix(n, 0).UTC()
	return &t
}

func (d *decoder) compression(v *layer.Variant) {
	most := 9
	switch c := d.attrs["compression"]; c {
	case "", "gzip":
		v.Compression = "gzip"
	case "zstd":
		v.Compression = "zstd"
		most = 22
	case "uncompressed":
		v.Compression = "uncompressed"
	default:
		d.fail("compression", c, "gzip, zstd or uncompressed")
	}
	if s := d.attrs["compression-level"]; s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > most {
			d.fail("compression-level", s, fmt.Sprintf("a number from 0 to %d", most))
			return
		}
		v.Level = n
	}
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

// annotationsFor selects what goes to a target; platform is nil for an index.
func (o ImageOptions) annotationsFor(target string, platform *ocispecs.Platform) map[string]string {
	var out map[string]string
	// What is said of a platform goes before what is said of all.
	for _, specific := range []bool{false, true} {
		for _, a := range o.Annotations {
			if a.Target != target || (a.Platform != nil) != specific {
				continue
			}
			if specific && (platform == nil || platforms.Format(*a.Platform) != platforms.Format(*platform)) {
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
