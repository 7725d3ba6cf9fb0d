package dockerfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// historyComment marks the history entries that a Dockerfile made.
const historyComment = "buildkit.dockerfile.v0"

// imageConfig is an image's config: the OCI one and Docker's additions to it.
type imageConfig struct {
	ocispecs.Image
	Config containerConfig `json:"config,omitempty"` // takes the place of Image.Config
}

// containerConfig is the part of an image config that a container starts with.
type containerConfig struct {
	ocispecs.ImageConfig
	Healthcheck *healthcheck `json:",omitempty"`
	OnBuild     []string     `json:",omitempty"`
	Shell       []string     `json:",omitempty"`
}

// healthcheck tells how to see that a container is well. Zero fields are
// inherited. The order of the fields shows in the image's history.
type healthcheck struct {
	Test          []string      `json:",omitempty"`
	Interval      time.Duration `json:",omitempty"`
	Timeout       time.Duration `json:",omitempty"`
	StartPeriod   time.Duration `json:",omitempty"`
	StartInterval time.Duration `json:",omitempty"`
	Retries       int           `json:",omitempty"`
}

// parseConfig reads an image's config.
func parseConfig(data []byte) (*imageConfig, error) {
	var c *imageConfig
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	if c == nil {
		return nil, errors.New("read image config: it is null, expected an object")
	}
	return c, nil
}

// emptyConfig is the config of "scratch".
func emptyConfig(p ocispecs.Platform) *imageConfig {
	c := &imageConfig{}
	c.Platform = p
	c.OSFeatures = slices.Clone(p.OSFeatures)
	c.RootFS.Type = "layers"
	c.Config.WorkingDir = "/"
	if p.OS != windows { // which has a PATH of its own
		c.Config.Env = []string{"PATH=" + llb.DefaultPath}
	}
	return c
}

// clone copies everything that an instruction may change.
func (c *imageConfig) clone() *imageConfig {
	if c == nil {
		return nil
	}
	out := *c
	out.History = slices.Clone(c.History)
	out.Config.Env = slices.Clone(c.Config.Env)
	out.Config.Cmd = slices.Clone(c.Config.Cmd)
	out.Config.Entrypoint = slices.Clone(c.Config.Entrypoint)
	out.Config.OnBuild = slices.Clone(c.Config.OnBuild)
	out.Config.Shell = slices.Clone(c.Config.Shell)
	out.Config.ExposedPorts = maps.Clone(c.Config.ExposedPorts)
	out.Config.Volumes = maps.Clone(c.Config.Volumes)
	out.Config.Labels = maps.Clone(c.Config.Labels)
	if h := c.Config.Healthcheck; h != nil {
		copied := *h
		copied.Test = slices.Clone(h.Test)
		out.Config.Healthcheck = &copied
	}
	return &out
}

// setEnv sets a variable where it stands, or appends it.
func (c *imageConfig) setEnv(key, value string) {
	for i, kv := range c.Config.Env {
		if k, _, _ := strings.Cut(kv, "="); k == key {
			c.Config.Env[i] = key + "=" + value
			return
		}
	}
	c.Config.Env = append(c.Config.Env, key+"="+value)
}

func (c *imageConfig) hasEnv(key string) bool {
	return slices.ContainsFunc(c.Config.Env, func(kv string) bool {
		k, _, _ := strings.Cut(kv, "=")
		return k == key
	})
}

// commit writes an instruction into the history.
func (c *imageConfig) commit(by string, layer bool, at *time.Time) {
	c.History = append(c.History, ocispecs.History{
		CreatedBy: by, Comment: historyComment, EmptyLayer: !layer, Created: at,
	})
}

// withoutFiles reports whether an image has no layers.
func (c *imageConfig) withoutFiles() bool {
	if len(c.RootFS.DiffIDs) > 0 {
		return false
	}
	return !slices.ContainsFunc(c.History, func(h ocispecs.History) bool { return !h.EmptyLayer })
}

// shellCommand is a command line as the image's shell gets it.
func (c *imageConfig) shellCommand(args []string) []string {
	shell := c.Config.Shell
	if len(shell) == 0 {
		shell = defaultShell(c.OS)
	}
	return append(slices.Clone(shell), strings.Join(args, " "))
}
