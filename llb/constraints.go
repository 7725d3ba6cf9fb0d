package llb

import (
	"crypto/rand"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/llb/pb"
)

// Constraints are properties that any step may have. Those given to
// [State.Marshal] hold for all its steps, those of a step win over them.
type Constraints struct {
	Platform          *ocispecs.Platform
	WorkerConstraints []string
	Metadata          OpMetadata
	LocalUniqueID     string
	Caps              CapSet
	SourceLocations   []*SourceLocation
}

// CapSet is the capabilities that a daemon has, by id. A nil set is not known.
type CapSet map[string]bool

// OpMetadata is what is said of a step that does not change its result.
type OpMetadata struct {
	IgnoreCache    bool               `json:"ignore_cache,omitempty"`
	Description    map[string]string  `json:"description,omitempty"`
	ExportCache    *pb.ExportCache    `json:"export_cache,omitempty"`
	Caps           map[string]bool    `json:"caps,omitempty"`
	ProgressGroup  *pb.ProgressGroup  `json:"progress_group,omitempty"`
	LinuxResources *pb.LinuxResources `json:"linux_resources,omitempty"`
}

// NewOpMetadata decodes the wire's form.
func NewOpMetadata(m *pb.OpMetadata) OpMetadata {
	return OpMetadata{
		IgnoreCache: m.GetIgnoreCache(), Description: m.GetDescription(), ExportCache: m.GetExportCache(),
		Caps: m.GetCaps(), ProgressGroup: m.GetProgressGroup(), LinuxResources: m.GetLinuxResources(),
	}
}

// FromPB sets m to the wire's form.
func (m *OpMetadata) FromPB(from *pb.OpMetadata) { *m = NewOpMetadata(from) }

// ToPB returns the wire's form.
func (m OpMetadata) ToPB() *pb.OpMetadata {
	caps := make(map[string]bool, len(m.Caps))
	maps.Copy(caps, m.Caps)
	return &pb.OpMetadata{
		IgnoreCache: m.IgnoreCache, Description: m.Description, ExportCache: m.ExportCache,
		Caps: caps, ProgressGroup: m.ProgressGroup, LinuxResources: m.LinuxResources,
	}
}

// merged is m with what over says added or put in its place.
func (m OpMetadata) merged(over OpMetadata) OpMetadata {
	m.IgnoreCache = m.IgnoreCache || over.IgnoreCache
	if len(over.Description) > 0 {
		both := make(map[string]string, len(m.Description)+len(over.Description))
		maps.Copy(both, m.Description)
		maps.Copy(both, over.Description)
		m.Description = both
	}
	if len(over.Caps) > 0 {
		both := make(map[string]bool, len(m.Caps)+len(over.Caps))
		maps.Copy(both, m.Caps)
		for id := range over.Caps {
			both[id] = true
		}
		m.Caps = both
	}
	if over.ExportCache != nil {
		m.ExportCache = over.ExportCache
	}
	if over.ProgressGroup != nil {
		m.ProgressGroup = over.ProgressGroup
	}
	if over.LinuxResources != nil {
		m.LinuxResources = over.LinuxResources
	}
	return m
}

// NewConstraints returns the constraints that Marshal begins with: this
// machine's platform and a new id for local sources.
func NewConstraints(opts ...ConstraintsOpt) *Constraints {
	p := platforms.Normalize(platforms.DefaultSpec())
	c := &Constraints{Platform: &p, LocalUniqueID: strings.ToLower(rand.Text())[:25]}
	for _, o := range opts {
		o.SetConstraintsOption(c)
	}
	return c
}

func (c *Constraints) addCap(id string) {
	caps := make(map[string]bool, len(c.Metadata.Caps)+1)
	maps.Copy(caps, c.Metadata.Caps)
	caps[id] = true
	c.Metadata.Caps = caps
}

// ConstraintsOpt sets constraints. It is also an option of all that has them.
type ConstraintsOpt interface {
	SetConstraintsOption(*Constraints)
	RunOption
	LocalOption
	HTTPOption
	ImageBlobOption
	ImageOption
	GitOption
	OCILayoutOption
}

type constraintsOptFunc func(*Constraints)

func (f constraintsOptFunc) SetConstraintsOption(c *Constraints) { f(c) }
func (f constraintsOptFunc) SetRunOption(i *ExecInfo)            { f(&i.Constraints) }
func (f constraintsOptFunc) SetLocalOption(i *LocalInfo)         { f(&i.Constraints) }
func (f constraintsOptFunc) SetOCILayoutOption(i *OCILayoutInfo) { f(&i.Constraints) }
func (f constraintsOptFunc) SetHTTPOption(i *HTTPInfo)           { f(&i.Constraints) }
func (f constraintsOptFunc) SetImageBlobOption(i *ImageBlobInfo) { f(&i.Constraints) }
func (f constraintsOptFunc) SetImageOption(i *ImageInfo)         { f(&i.Constraints) }
func (f constraintsOptFunc) SetGitOption(i *GitInfo)             { f(&i.Constraints) }

// FixedConstraint is a constraint without parameters.
type FixedConstraint string

// Constraints without parameters. The platforms are written as os/arch/variant.
const (
	IgnoreCache  FixedConstraint = "ignore cache" // run even if a result is known
	LinuxAmd64   FixedConstraint = "linux/amd64"
	LinuxArmhf   FixedConstraint = "linux/arm/v7"
	LinuxArm                     = LinuxArmhf
	LinuxArmel   FixedConstraint = "linux/arm/v6"
	LinuxArm64   FixedConstraint = "linux/arm64"
	LinuxS390x   FixedConstraint = "linux/s390x"
	LinuxPpc64   FixedConstraint = "linux/ppc64"
	LinuxPpc64le FixedConstraint = "linux/ppc64le"
	LinuxRiscv64 FixedConstraint = "linux/riscv64"
	Darwin       FixedConstraint = "darwin/amd64"
	Windows      FixedConstraint = "windows/amd64"
)

// SetConstraintsOption sets the constraint.
func (f FixedConstraint) SetConstraintsOption(c *Constraints) {
	if f == IgnoreCache {
		c.Metadata.IgnoreCache = true
		return
	}
	parts := strings.SplitN(string(f)+"/", "/", 4)
	c.Platform = &ocispecs.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
}

// SetRunOption sets the constraint of a command.
func (f FixedConstraint) SetRunOption(i *ExecInfo) { f.SetConstraintsOption(&i.Constraints) }

// SetLocalOption sets the constraint of a local source.
func (f FixedConstraint) SetLocalOption(i *LocalInfo) { f.SetConstraintsOption(&i.Constraints) }

// SetOCILayoutOption sets the constraint of an OCI layout.
func (f FixedConstraint) SetOCILayoutOption(i *OCILayoutInfo) { f.SetConstraintsOption(&i.Constraints) }

// SetHTTPOption sets the constraint of a download.
func (f FixedConstraint) SetHTTPOption(i *HTTPInfo) { f.SetConstraintsOption(&i.Constraints) }

// SetImageBlobOption sets the constraint of a blob.
func (f FixedConstraint) SetImageBlobOption(i *ImageBlobInfo) { f.SetConstraintsOption(&i.Constraints) }

// SetImageOption sets the constraint of an image.
func (f FixedConstraint) SetImageOption(i *ImageInfo) { f.SetConstraintsOption(&i.Constraints) }

// SetGitOption sets the constraint of a git source.
func (f FixedConstraint) SetGitOption(i *GitInfo) { f.SetConstraintsOption(&i.Constraints) }

// Platform sets the platform of steps.
func Platform(p ocispecs.Platform) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) { c.Platform = &p })
}

// LocalUniqueID sets the id that keeps local sources of unlike builds apart.
func LocalUniqueID(id string) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) { c.LocalUniqueID = id })
}

// Require adds filters that a worker must match.
func Require(filters ...string) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) {
		c.WorkerConstraints = append(slices.Clip(c.WorkerConstraints), filters...)
	})
}

// WithDescription adds to the description of steps.
func WithDescription(m map[string]string) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) {
		c.Metadata.Description = c.Metadata.merged(OpMetadata{Description: m}).Description
		if c.Metadata.Description == nil {
			c.Metadata.Description = map[string]string{}
		}
	})
}

// WithCustomName sets the name that people see.
func WithCustomName(name string) ConstraintsOpt {
	return WithDescription(map[string]string{descName: name})
}

// WithCustomNamef is WithCustomName with a format.
func WithCustomNamef(format string, a ...any) ConstraintsOpt {
	return WithCustomName(fmt.Sprintf(format, a...))
}

// WithExportCache has results exported with the cache, even where Marshal is
// told otherwise for all steps.
func WithExportCache() ConstraintsOpt { return exportCache(&pb.ExportCache{Value: true}) }

// WithoutExportCache keeps results out of exported caches.
func WithoutExportCache() ConstraintsOpt { return exportCache(&pb.ExportCache{Value: false}) }

// WithoutDefaultExportCache leaves the choice to the daemon.
func WithoutDefaultExportCache() ConstraintsOpt { return exportCache(nil) }

func exportCache(e *pb.ExportCache) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) { c.Metadata.ExportCache = e })
}

// WithCaps says what the daemon can do.
func WithCaps(caps CapSet) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) { c.Caps = caps })
}

// ProgressGroup has a progress display fold steps into one line.
func ProgressGroup(id, name string, weak bool) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) {
		c.Metadata.ProgressGroup = &pb.ProgressGroup{Id: id, Name: name, Weak: weak}
	})
}

// WithLinuxResources limits what commands may use.
func WithLinuxResources(r LinuxResources) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) {
		c.Metadata.LinuxResources = r.encode()
	})
}

// limit changes a copy of the limits, as options may share them.
func limit(set func(*pb.LinuxResources)) ConstraintsOpt {
	return constraintsOptFunc(func(c *Constraints) {
		limits := &pb.LinuxResources{}
		if c.Metadata.LinuxResources != nil {
			limits = proto.CloneOf(c.Metadata.LinuxResources)
		}
		set(limits)
		c.Metadata.LinuxResources = limits
	})
}

// MemoryLimit limits memory, in bytes.
func MemoryLimit(n int64) ConstraintsOpt { return limit(func(r *pb.LinuxResources) { r.Memory = n }) }

// MemorySwapLimit limits memory and swap together, in bytes.
func MemorySwapLimit(n int64) ConstraintsOpt {
	return limit(func(r *pb.LinuxResources) { r.MemorySwap = n })
}

// CPUShares sets the weight against other commands.
func CPUShares(n uint64) ConstraintsOpt { return limit(func(r *pb.LinuxResources) { r.CpuShares = n }) }

// CPUPeriod sets the period of the quota, in microseconds.
func CPUPeriod(n uint64) ConstraintsOpt { return limit(func(r *pb.LinuxResources) { r.CpuPeriod = n }) }

// CPUQuota sets the time per period, in microseconds.
func CPUQuota(n int64) ConstraintsOpt { return limit(func(r *pb.LinuxResources) { r.CpuQuota = n }) }

// CpusetCpus sets the processors to use, such as "0-3".
func CpusetCpus(s string) ConstraintsOpt {
	return limit(func(r *pb.LinuxResources) { r.CpusetCpus = s })
}

// CpusetMems sets the memory nodes to use.
func CpusetMems(s string) ConstraintsOpt {
	return limit(func(r *pb.LinuxResources) { r.CpusetMems = s })
}
