package build

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
)

// MetaPlatforms is the key of a result's metadata that has a [PlatformList], and
// MetaConfig that of an image's config (BuildKit's exporter/containerimage/exptypes).
const (
	MetaPlatforms = "refs.platforms"
	MetaConfig    = "containerimage.config"
)

// PlatformList says which platform each of a build's results is for.
type PlatformList struct {
	Platforms []PlatformEntry
}

// PlatformEntry is one result's platform.
type PlatformEntry struct {
	ID       string
	Platform ocispecs.Platform
}

// ConfigKey is the key of the config of the result with an ID.
func ConfigKey(id string) string {
	if id == "" {
		return MetaConfig
	}
	return MetaConfig + "/" + id
}

// Metadata is all that a frontend says of its result, as others are told it: with
// the configs, and with the platforms. That of a single result without config is
// nobody's to know.
func Metadata(res *frontend.Result) (map[string][]byte, error) {
	meta := maps.Clone(res.Meta)
	if meta == nil {
		meta = map[string][]byte{}
	}
	var list PlatformList
	for _, p := range res.Platforms {
		if p.Config != nil {
			meta[ConfigKey(p.ID)] = p.Config
		}
		if p.ID != "" || len(p.Config) > 0 {
			list.Platforms = append(list.Platforms, PlatformEntry{platformID(p), p.Platform})
		}
	}
	if len(list.Platforms) == 0 || meta[MetaPlatforms] != nil {
		return meta, nil
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("encode platforms: %w", err)
	}
	meta[MetaPlatforms] = b
	return meta, nil
}

// metaRequest is the key of what a build was asked for (BuildKit's exporter/verifier).
const metaRequest = "verifier.requestopts"

// answered is what of a result's metadata clients are answered, which must be text.
func answered(meta map[string][]byte) map[string]string {
	out := map[string]string{}
	for k, v := range meta {
		if strings.HasPrefix(k, "frontend.") {
			out[k] = strings.ToValidUTF8(string(v), "\uFFFD") // clients refuse all else
		}
	}
	return out
}

// tell returns the metadata of a result, with what was asked for, for those who
// choose how to export it, and tells Resulted.
func (req *Request) tell(res *frontend.Result) (map[string][]byte, error) {
	meta, err := Metadata(res)
	if err != nil {
		return nil, err
	}
	asked := struct {
		Platforms []string
		Labels    map[string]string
		Request   string
	}{[]string{platforms.Format(platforms.Normalize(platforms.DefaultSpec()))}, map[string]string{}, req.Opts["requestid"]}
	if v, ok := req.Opts["platform"]; ok {
		asked.Platforms = strings.Split(v, ",")
	}
	for k, v := range req.Opts {
		if name, ok := strings.CutPrefix(k, "label:"); ok {
			asked.Labels[name] = v
		}
	}
	b, err := json.Marshal(asked)
	if err != nil {
		return nil, fmt.Errorf("encode what was asked for: %w", err)
	}
	meta[metaRequest] = b
	if req.Resulted != nil {
		req.Resulted(meta)
	}
	return meta, nil
}
