package daemon

import (
	"github.com/kiln-build/kiln/internal/api/worker"
	"github.com/kiln-build/kiln/internal/executor"
)

// Devices tells which devices containers can have.
type Devices interface {
	Devices() []executor.Device
}

func (s *Server) devices() (out []*worker.CDIDevice) {
	if s.config.Devices == nil {
		return nil
	}
	for _, d := range s.config.Devices.Devices() {
		out = append(out, &worker.CDIDevice{Name: d.Name, AutoAllow: d.AutoAllow, Annotations: d.Annotations})
	}
	return out
}
