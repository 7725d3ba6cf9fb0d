package op

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/llb"
)

// EntitlementDevice allows devices: alone all of them, as "device=NAME" one,
// and as "device=NAME,alias=OTHER" one for steps that ask for another.
const EntitlementDevice = "device"

// deviceClass is the annotation by which devices of several kinds have one name.
const deviceClass = "org.mobyproject.buildkit.device.class"

// Devices tells which devices the machine has for containers.
type Devices interface {
	Devices() []executor.Device
}

// deviceGrants are what a job's entitlements say of devices.
type deviceGrants struct {
	all   bool
	names []string
	alias map[string]string // asked for -> given
}

func (j *Job) deviceGrants() (g deviceGrants, err error) {
	g.alias = map[string]string{}
	if j == nil {
		return g, nil
	}
	for _, e := range j.Entitlements {
		kind, rest, named := strings.Cut(e, "=")
		switch {
		case kind != EntitlementDevice:
		case !named:
			g.all = true
		default:
			fields := strings.Split(rest, ",")
			alias := ""
			for _, f := range fields[1:] {
				key, value, _ := strings.Cut(f, "=")
				if key != "alias" || value == "" {
					return g, fmt.Errorf("entitlement %q: unknown part %q, expected alias=NAME", e, f)
				}
				alias = value
			}
			if alias != "" {
				g.alias[alias] = fields[0]
			} else {
				g.names = append(g.names, fields[0])
			}
		}
	}
	return g, nil
}

// devices are the names of the devices that a step gets, each of them allowed.
func (w *Worker) devices(o *llb.ExecOp, step string, job *Job) ([]string, error) {
	if len(o.Devices) == 0 {
		return nil, nil
	}
	if w.Devices == nil {
		for _, d := range o.Devices {
			if !d.Optional {
				return nil, fmt.Errorf("CDI device %q is required by step %q, but CDI device support is disabled", d.Name, step)
			}
		}
		return nil, nil
	}
	grants, err := job.deviceGrants()
	if err != nil {
		return nil, err
	}
	all := w.Devices.Devices()
	var out, forbidden []string
	for _, want := range o.Devices {
		given, aliased := grants.alias[want.Name]
		if aliased {
			want.Name = given
		}
		found, err := findDevices(all, want)
		if err != nil {
			return nil, err
		}
		for _, d := range found {
			switch {
			case slices.Contains(out, d.Name):
			case aliased || grants.all || d.AutoAllow || grants.named(all, d.Name):
				out = append(out, d.Name)
			default:
				forbidden = append(forbidden, d.Name)
			}
		}
	}
	switch len(forbidden) {
	case 0:
		return out, nil
	case 1:
		return nil, fmt.Errorf("device %s is requested by the build but not allowed: pass --allow device=%s", forbidden[0], forbidden[0])
	}
	return nil, fmt.Errorf("devices %s are requested by the build but not allowed: pass --allow device", strings.Join(forbidden, ", "))
}

// named tells whether a device is among those that were granted by name.
func (g deviceGrants) named(all []executor.Device, name string) bool {
	return slices.ContainsFunc(g.names, func(granted string) bool {
		found, _ := findDevices(all, llb.CDIDevice{Name: granted, Optional: true})
		return slices.ContainsFunc(found, func(d executor.Device) bool { return d.Name == name })
	})
}

// findDevices finds what a name stands for: "vendor/class=name" one device,
// "vendor/class" the first of the kind, "vendor/class=*" all of it, and any
// other name the devices that are annotated with it as their class.
func findDevices(all []executor.Device, want llb.CDIDevice) (out []executor.Device, err error) {
	kind, name, _ := strings.Cut(want.Name, "=")
	if strings.Contains(kind, "/") {
		for _, d := range all {
			if d.Name == want.Name || (name == "" || name == "*") && strings.HasPrefix(d.Name, kind+"=") {
				if out = append(out, d); name != "*" {
					break
				}
			}
		}
	}
	if len(out) == 0 {
		for _, d := range all {
			if class, ok := d.Annotations[deviceClass]; ok && class == want.Name {
				out = append(out, d)
			}
		}
	}
	if len(out) == 0 && !want.Optional {
		return nil, fmt.Errorf("required device %q is not registered", want.Name)
	}
	return out, nil
}
