// Package llb is the frontend of build files that are LLB themselves: in the text
// form, or in JSON, which CUE, Jsonnet, Python or a shell can write. See README.md.
package llb

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sdk"
	ir "github.com/kiln-build/kiln/llb"
)

// Image is the repository that the first line of a file names.
const Image = "kiln-build/llb"

// New returns the frontend.
func New() frontend.Frontend { return sdk.Answering(build, nil) }

// maxSize is how long a file may be, in bytes.
const maxSize = 16 << 20

func build(ctx context.Context, req frontend.Request, gw frontend.Gateway) (*frontend.Result, error) {
	b, err := sdk.Open(ctx, req, gw)
	if err != nil {
		return nil, err
	}
	if len(b.File.Data) > maxSize {
		return nil, fmt.Errorf("%s is %d bytes long, expected at most %d", b.File.Name, len(b.File.Data), maxSize)
	}
	d, err := read(b.File)
	if err != nil {
		return nil, place(b.File, err)
	}
	res := &frontend.Result{Meta: map[string][]byte{}}
	config, err := imageConfig(d.Config, b.Labels)
	if err != nil {
		return nil, err
	}
	if epoch := b.Args["SOURCE_DATE_EPOCH"]; epoch != "" {
		res.Meta["source.date.epoch"] = []byte(epoch)
	}
	if g := d.Results[""]; g != nil {
		if len(b.Platforms) > 1 {
			return nil, fmt.Errorf("%s describes one result, and %d platforms are to be built: expected an object of results by platform", b.File.Name, len(b.Platforms))
		}
		p := frontend.PlatformResult{Platform: b.Platforms[0], Graph: g}
		p.Config, err = config.of(p.Platform)
		res.Platforms = append(res.Platforms, p)
		return res, err
	}
	for _, id := range slices.Sorted(maps.Keys(d.Results)) {
		platform, err := platforms.Parse(id)
		if err != nil {
			return nil, fmt.Errorf("read result %q of %s: %w", id, b.File.Name, err)
		}
		p := frontend.PlatformResult{Platform: platforms.Normalize(platform), Graph: d.Results[id]}
		p.ID = platforms.FormatAll(p.Platform)
		if req.Opts["platform"] != "" && !slices.ContainsFunc(b.Platforms, func(want ocispecs.Platform) bool { return platforms.FormatAll(want) == p.ID }) {
			continue
		}
		if p.Config, err = config.of(p.Platform); err != nil {
			return nil, err
		}
		res.Platforms = append(res.Platforms, p)
	}
	if len(res.Platforms) == 0 {
		return nil, fmt.Errorf("%s has results for %s: none for %s", b.File.Name, strings.Join(slices.Sorted(maps.Keys(d.Results)), ", "), req.Opts["platform"])
	}
	return res, nil
}

// read reads a file of either form.
func read(f *sdk.File) (*ir.Description, error) {
	if text := bytes.TrimSpace(f.Data); len(text) > 0 && text[0] == '{' {
		return ir.ParseJSON(f.Name, f.Data)
	}
	g, err := ir.ParseTextFile(f.Name, f.Data)
	if err != nil {
		return nil, err
	}
	d := &ir.Description{Results: map[string]*ir.Graph{"": g}}
	// Of the text form, the config is a directive as "syntax" is.
	for i, line := range f.Lines() {
		name, value, ok := strings.Cut(strings.TrimPrefix(line, "#"), "=")
		if !strings.HasPrefix(line, "#") {
			break
		}
		if ok && strings.TrimSpace(name) == "config" {
			if !json.Valid([]byte(value)) {
				return nil, &ir.LineError{Line: i + 1, Err: errors.New(`config is no JSON: expected an image's config such as {"Entrypoint": ["/app"]}`)}
			}
			d.Config = json.RawMessage(value)
		}
	}
	return d, nil
}

// place shows an error in the file.
func place(f *sdk.File, err error) error {
	var at *ir.LineError
	if errors.As(err, &at) {
		return f.Errorf(sdk.Lines(at.Line, at.Line), "%w", at.Err)
	}
	return fmt.Errorf("read %s: %w", f.Name, err)
}

// config is an image's config; empty if the file has none.
type config map[string]json.RawMessage

func imageConfig(data json.RawMessage, labels map[string]string) (config, error) {
	c := config{}
	if len(data) > 0 {
		if err := json.Unmarshal(data, &c); err != nil {
			return nil, fmt.Errorf("read config: %w", err)
		}
	}
	if len(labels) == 0 {
		return c, nil
	}
	all := map[string]string{}
	if own := c["Labels"]; own != nil {
		if err := json.Unmarshal(own, &all); err != nil {
			return nil, fmt.Errorf("read labels of config: %w", err)
		}
	}
	maps.Copy(all, labels)
	var err error
	c["Labels"], err = json.Marshal(all)
	return c, err
}

// of is the image for a platform.
func (c config) of(p ocispecs.Platform) ([]byte, error) {
	return json.Marshal(struct {
		ocispecs.Platform
		Config config          `json:"config"`
		RootFS ocispecs.RootFS `json:"rootfs"`
	}{p, c, ocispecs.RootFS{Type: "layers"}})
}
