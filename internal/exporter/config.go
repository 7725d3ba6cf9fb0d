package exporter

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
)

// maxConfig is the size in bytes above which a config is refused.
const maxConfig = 4 << 20

// defaultPath is the PATH of an image whose frontend made no config, as Docker's.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// completeConfig makes the config of an image from what the frontend made: it
// fills in the layers, what history does not tell of them, and the times.
// Fields that are unknown here stay as they are, and more are set.
func completeConfig(result Platform, layers []layer.Blob, epoch *time.Time, more map[string]json.RawMessage) ([]byte, error) {
	config, platform := result.Config, result.Platform
	if len(config) > maxConfig {
		return nil, fmt.Errorf("image config has %d bytes, expected at most %d", len(config), maxConfig)
	}
	if len(config) == 0 {
		config = defaultConfig()
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(config, &fields); err != nil {
		return nil, fmt.Errorf("decode image config: %w", err)
	}
	if fields == nil {
		return nil, fmt.Errorf("invalid null image config for export: expected a JSON object, found %q", config)
	}
	var known struct {
		Architecture, OS, Variant string
		Created                   *time.Time
		History                   []ocispecs.History
	}
	if err := json.Unmarshal(config, &known); err != nil {
		return nil, fmt.Errorf("decode image config: %w", err)
	}
	if (known.OS == "") != (known.Architecture == "") {
		return nil, fmt.Errorf("invalid image config: os and architecture must be specified together, found os %q and architecture %q", known.OS, known.Architecture)
	}
	set := map[string]any{}
	if known.Architecture == "" {
		set["architecture"] = platform.Architecture
		if platform.Variant != "" {
			set["variant"] = platform.Variant
		}
	}
	if known.OS == "" {
		set["os"] = platform.OS
	}
	history := mergeHistory(known.History, layers)
	fillTimes(history, layers, epoch)
	if epoch != nil {
		for i := shared(history, result.Base); i < len(history); i++ {
			history[i].Created = clamp(history[i].Created, epoch)
		}
	}
	created := known.Created
	if created == nil {
		created = lastTime(history, epoch)
	}
	set["created"] = clamp(created, epoch) // null if nothing tells a time
	set["history"], set["rootfs"] = history, rootFS(layers)
	for key, value := range more {
		set[key] = value
	}
	for key, value := range set {
		b, err := json.Marshal(value)
		if err != nil {
			return nil, fmt.Errorf("encode %s of image config: %w", key, err)
		}
		fields[key] = b
	}
	return json.Marshal(fields) // keys come sorted: the same for the same input
}

func rootFS(layers []layer.Blob) ocispecs.RootFS {
	fs := ocispecs.RootFS{Type: "layers"}
	for _, l := range layers {
		fs.DiffIDs = append(fs.DiffIDs, l.DiffID)
	}
	return fs
}

func defaultConfig() []byte {
	b, err := json.Marshal(map[string]any{
		"config": ocispecs.ImageConfig{Env: []string{"PATH=" + defaultPath}, WorkingDir: "/"},
	})
	if err != nil {
		return nil // cannot be: a plain struct
	}
	return b
}

// exporterComment marks entries of history that the build gave none for, with
// the words by which they are known.
const exporterComment = "buildkit.exporter.image.v0"

// mergeHistory makes as many entries tell of layers as there are layers.
func mergeHistory(history []ocispecs.History, layers []layer.Blob) []ocispecs.History {
	out := slices.Clone(history) // without any it stays nil, which is written as null
	told := 0
	for _, h := range out {
		if !h.EmptyLayer {
			told++
		}
	}
	// Steps that in the end left nothing: the latest are the likeliest.
	for i := len(out) - 1; i >= 0 && told > len(layers); i-- {
		if !out[i].EmptyLayer {
			out[i].EmptyLayer = true
			told--
		}
	}
	for _, l := range layers[told:] {
		by := recordOf(l).Description
		out = append(out, ocispecs.History{CreatedBy: by, Comment: exporterComment})
	}
	return out
}

// fillTimes gives each entry of history a time: its layer's, or that of the
// nearest entry with one.
func fillTimes(history []ocispecs.History, layers []layer.Blob, epoch *time.Time) {
	n := 0
	for i := range history {
		h := &history[i]
		if !h.EmptyLayer {
			if at := recordOf(layers[n]).CreatedAt; h.Created == nil && !at.IsZero() && epoch == nil {
				at = at.UTC()
				h.Created = &at
			}
			n++
		}
		if h.Created == nil {
			h.Created = epoch
		}
	}
	// A step that only changed the config comes after the one before it, and if
	// that is an image's, is dated with the first step of this build.
	var next *time.Time
	for i := len(history) - 1; i >= 0; i-- {
		if history[i].Created == nil {
			history[i].Created = next
		} else {
			next = history[i].Created
		}
	}
	var last *time.Time
	for i := range history {
		if history[i].Created == nil {
			history[i].Created = last
		}
		last = history[i].Created
	}
}

// shared is how many entries of history are those of the base image, which keep
// their times whatever the epoch is.
func shared(history []ocispecs.History, base []byte) (n int) {
	var known struct{ History []ocispecs.History }
	if len(base) > maxConfig || json.Unmarshal(base, &known) != nil {
		return 0 // no config that could be compared with
	}
	for n < len(history) && n < len(known.History) && reflect.DeepEqual(history[n], known.History[n]) {
		n++
	}
	return n
}

// recordOf is what is kept of a layer; nothing, of the empty one.
func recordOf(l layer.Blob) layer.Record {
	if l.Ref == nil {
		return layer.Record{}
	}
	return l.Ref.Record()
}

func lastTime(history []ocispecs.History, epoch *time.Time) *time.Time {
	for i := len(history) - 1; i >= 0; i-- {
		if history[i].Created != nil {
			return history[i].Created
		}
	}
	return epoch
}

// clamp returns t, but nothing later than epoch.
func clamp(t, epoch *time.Time) *time.Time {
	if t != nil && epoch != nil && t.After(*epoch) {
		return epoch
	}
	return t
}

// encodeManifest writes a manifest or an index as BuildKit does, with blanks and
// line ends: an image's digest is that of these bytes.
func encodeManifest(m any) ([]byte, error) { return json.MarshalIndent(m, "", "  ") }
