package dockerfile

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// cpuPeriod is the time in which a quota of processor time counts, in microseconds.
const cpuPeriod = 100_000

// limit gives a RUN's vertex what its flags --timeout, --memory and --cpus say
// (see [syntax.Extensions]). Limits of the request hold as well: the lower counts.
func (l *lowering) limit(s *stage, i *syntax.Run, v *llb.Vertex) error {
	v.Meta.Resources = l.in.opts.resources
	if i.Timeout != nil {
		text, err := l.expand(s, &i.Head, *i.Timeout)
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(text)
		if err != nil || d <= 0 {
			return l.errorAt(i.Timeout.Span, fmt.Sprintf("timeout %q is no time above 0", text), "a number and a unit, such as 90s, 5m or 1h30m", "")
		}
		v.Meta.Timeout = d
	}
	if i.Memory == nil && i.CPUs == nil {
		return nil
	}
	var r llb.LinuxResources
	if l.in.opts.resources != nil {
		r = *l.in.opts.resources
	}
	if i.Memory != nil {
		if err := l.limitMemory(s, i, &r); err != nil {
			return err
		}
	}
	if i.CPUs != nil {
		if err := l.limitCPUs(s, i, &r); err != nil {
			return err
		}
	}
	v.Meta.Resources = &r
	return nil
}

func (l *lowering) limitMemory(s *stage, i *syntax.Run, r *llb.LinuxResources) error {
	text, err := l.expand(s, &i.Head, *i.Memory)
	if err != nil {
		return err
	}
	n, err := parseBytes(text)
	if err != nil || n <= 0 {
		return l.errorAt(i.Memory.Span, fmt.Sprintf("memory %q is no size above 0", text), "a number of bytes, or a number and k, m or g, such as 512m", "")
	}
	if r.Memory == 0 || n < r.Memory {
		r.Memory = n
	}
	return nil
}

func (l *lowering) limitCPUs(s *stage, i *syntax.Run, r *llb.LinuxResources) error {
	text, err := l.expand(s, &i.Head, *i.CPUs)
	if err != nil {
		return err
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || math.IsNaN(n) || n < 0.01 || n > 1<<20 {
		return l.errorAt(i.CPUs.Span, fmt.Sprintf("cpus %q is no number of processors from 0.01 on", text), "a number such as 2 or 0.5", "")
	}
	quota := int64(n * cpuPeriod)
	if r.CPUQuota > 0 && r.CPUPeriod > 0 && float64(r.CPUQuota)/float64(r.CPUPeriod) <= n {
		return nil
	}
	r.CPUQuota, r.CPUPeriod = quota, cpuPeriod
	return nil
}
