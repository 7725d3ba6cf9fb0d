package oci

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/kiln-build/kiln/internal/executor"
)

// autoAllow is the annotation of devices that builds may have unasked.
const autoAllow = "org.mobyproject.buildkit.device.autoallow"

// Devices are the machine's devices, as its administrator describes them in
// files of the container device interface.
type Devices struct {
	dirs    []string
	cache   *cdi.Cache
	allowed map[string]bool
	none    atomic.Bool // there was no folder when the cache was last read
}

// DefaultDeviceDirs are where device descriptions are unless the configuration
// says otherwise.
func DefaultDeviceDirs() []string { return []string{"/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"} }

// OpenDevices reads device descriptions from folders, those of later ones
// first; no folders are the default ones. Allowed are names, "vendor/class=name"
// or "vendor/class", that builds may have unasked.
func OpenDevices(dirs, allowed []string) (*Devices, error) {
	if len(dirs) == 0 {
		dirs = DefaultDeviceDirs()
	}
	// Read when asked for: a watch would be one more thing to keep.
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("read devices: %w", err)
	}
	d := &Devices{dirs: dirs, cache: cache, allowed: map[string]bool{}}
	for _, name := range allowed {
		d.allowed[name] = true
	}
	return d, nil
}

// Devices lists the devices by name. A description that can not be read hides
// its own devices only.
func (d *Devices) Devices() []executor.Device {
	d.refresh()
	var out []executor.Device
	for _, name := range d.cache.ListDevices() {
		found := d.cache.GetDevice(name)
		if found == nil {
			continue
		}
		about := map[string]string{}
		maps.Copy(about, found.GetSpec().Annotations)
		maps.Copy(about, found.Annotations)
		kind, _, _ := strings.Cut(name, "=")
		free, _ := strconv.ParseBool(about[autoAllow])
		out = append(out, executor.Device{
			Name: name, Annotations: about, AutoAllow: free || d.allowed[name] || d.allowed[kind],
		})
	}
	return out
}

// refresh reads the descriptions anew, which every client asks for that lists
// workers. On most machines there is no folder, and nothing to be read.
func (d *Devices) refresh() {
	none := !slices.ContainsFunc(d.dirs, func(dir string) bool { return !errors.Is(unix.Access(dir, unix.F_OK), unix.ENOENT) })
	if was := d.none.Load(); was && none {
		return
	}
	_ = d.cache.Refresh() // what it cannot read has no devices
	d.none.Store(none)
}

// inject changes a container's description as its devices want it.
func (d *Devices) inject(spec *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if d == nil {
		return fmt.Errorf("devices %s: this daemon has none", strings.Join(names, ", "))
	}
	if missing, err := d.cache.InjectDevices(spec, names...); err != nil {
		return fmt.Errorf("devices %s (%s not found): %w", strings.Join(names, ", "), strings.Join(missing, ", "), err)
	}
	return nil
}
