package daemon

import (
	"encoding/json"
	"fmt"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/gc"
)

// frontendWorker is a worker as frontends read it from their environment
// (BuildKit's frontend/gateway).
type frontendWorker struct {
	ID              string              `json:"id"`
	Labels          map[string]string   `json:"labels"`
	Platforms       []ocispecs.Platform `json:"platforms"`
	GCPolicy        []frontendPolicy    `json:"gcPolicy"`
	BuildkitVersion frontendVersion     `json:"buildkitVersion"`
	CDIDevices      []frontendDevice    `json:"cdiDevices"`
}

type frontendPolicy struct {
	All           bool          `json:"all"`
	Filter        []string      `json:"filter"`
	KeepDuration  time.Duration `json:"keepDuration"` // nanoseconds
	ReservedSpace int64         `json:"reservedSpace"`
	MaxUsedSpace  int64         `json:"maxUsedSpace"`
	MinFreeSpace  int64         `json:"minFreeSpace"`
}

func readFrontendPolicy(p gc.Policy) frontendPolicy {
	return frontendPolicy{
		All: p.All, Filter: p.Filters, KeepDuration: p.KeepFor,
		ReservedSpace: p.Reserved, MaxUsedSpace: p.MaxUsed, MinFreeSpace: p.MinFree,
	}
}

type frontendVersion struct {
	Package           string `json:"package"`
	Version           string `json:"version"`
	Revision          string `json:"revision"`
	DockerfileVersion string `json:"dockerfileVersion"`
}

type frontendDevice struct {
	Name        string            `json:"name"`
	AutoAllow   bool              `json:"autoAllow"`
	Annotations map[string]string `json:"annotations"`
	OnDemand    bool              `json:"onDemand"`
}

// FrontendWorkers lists the workers in JSON, as frontends read it from their
// environment.
func (s gatewayHost) FrontendWorkers() ([]byte, error) {
	v := s.version()
	w := frontendWorker{
		ID: s.config.WorkerID, Labels: s.config.Labels, Platforms: s.platforms(), GCPolicy: []frontendPolicy{}, CDIDevices: []frontendDevice{},
		BuildkitVersion: frontendVersion{v.Package, v.Version, v.Revision, v.DockerfileVersion},
	}
	for _, p := range s.config.Policies {
		w.GCPolicy = append(w.GCPolicy, readFrontendPolicy(p))
	}
	for _, d := range s.devices() {
		w.CDIDevices = append(w.CDIDevices, frontendDevice{Name: d.Name, AutoAllow: d.AutoAllow, Annotations: d.Annotations, OnDemand: d.OnDemand})
	}
	b, err := json.Marshal([]frontendWorker{w})
	if err != nil {
		return nil, fmt.Errorf("encode workers: %w", err)
	}
	return b, nil
}
