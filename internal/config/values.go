package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
)

// Duration is written as a number of seconds, or as text such as "48h".
type Duration struct{ time.Duration }

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	s := unquote(text)
	if s == "" {
		return nil
	}
	if v, err := time.ParseDuration(s); err == nil && v >= 0 {
		d.Duration = v
		return nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/int64(time.Second) {
		return fmt.Errorf("invalid duration %s: expected a number of seconds, or text such as \"48h\"", s)
	}
	d.Duration = time.Duration(n) * time.Second
	return nil
}

// DiskSpace is an amount of bytes, or a share of the disk. It is written as a
// number of bytes, as text with a unit such as "10GB" (of 1024), or as "10%".
type DiskSpace struct {
	Bytes   int64
	Percent int64 // counts if Bytes is 0
}

// UnmarshalText reads an amount.
func (d *DiskSpace) UnmarshalText(text []byte) error {
	s := unquote(text)
	if s == "" {
		return nil
	}
	if number, ok := strings.CutSuffix(s, "%"); ok {
		n, err := strconv.ParseInt(number, 10, 64)
		if err != nil || n < 0 || n > 100 {
			return fmt.Errorf("invalid disk space %s: expected 0%% to 100%%", s)
		}
		*d = DiskSpace{Percent: n}
		return nil
	}
	n, err := units.RAMInBytes(s)
	if err != nil || n < 0 {
		return fmt.Errorf("invalid disk space %s: expected bytes, or text such as \"10GB\" or \"10%%\"", s)
	}
	*d = DiskSpace{Bytes: n}
	return nil
}

// unquote takes the quotes off, which a decoder may have left.
func unquote(text []byte) string {
	s := string(text)
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		return s[1 : len(s)-1]
	}
	return s
}

// unknownDisk is what a share of a disk of unknown size is, in bytes.
const unknownDisk = 2e9

// On is the amount in bytes on a disk of total bytes, 0 for unknown. A share
// is rounded up as BuildKit does: so many full GiB and one, in GB.
func (d DiskSpace) On(total int64) int64 {
	switch {
	case d.Bytes != 0:
		return d.Bytes
	case d.Percent == 0:
		return 0
	case total == 0:
		return unknownDisk
	}
	return (total/100*d.Percent/(1<<30) + 1) * 1e9
}

// Exactly is the amount in bytes on a disk of total bytes, a share to the byte.
func (d DiskSpace) Exactly(total int64) int64 {
	if d.Bytes != 0 {
		return d.Bytes
	}
	return total / 100 * d.Percent
}

// Rules are the policies that follow from the limits, for a disk of total
// bytes, or those of the file where it lists some. None is a collection that is
// turned off.
func (g GC) Rules(total int64) []Policy {
	if !Enabled(g.GC) {
		return nil
	}
	if len(g.Policies) > 0 {
		rules := make([]Policy, len(g.Policies))
		for i, p := range g.Policies {
			if p.Reserved == (DiskSpace{}) {
				p.Reserved = p.KeepSize
			}
			rules[i] = p
		}
		return rules
	}
	limits := g.limits(total)
	first := Policy{
		Filters: []string{"type==source.local", "type==exec.cachemount", "type==source.git.checkout"},
		KeepFor: Duration{48 * time.Hour}, MaxUsed: DiskSpace{Bytes: 512e6},
	}
	second, last := limits, limits
	second.KeepFor.Duration = 60 * 24 * time.Hour
	last.All = true
	return []Policy{first, second, limits, last}
}

// limits are those of the file, or the defaults where it sets none.
func (g GC) limits(total int64) Policy {
	if g.unset() {
		g.Reserved = g.KeepSize
	}
	if g.unset() {
		g.Reserved = DiskSpace{Percent: 10}.atMost(10e9, total)
		g.MaxUsed = DiskSpace{Percent: 80}.atMost(100e9, total)
		g.MinFree = DiskSpace{Percent: 20}
	}
	return Policy{Reserved: g.Reserved, MaxUsed: g.MaxUsed, MinFree: g.MinFree}
}

// atMost is d, or so many bytes if that is less on a disk of total bytes.
func (d DiskSpace) atMost(bytes, total int64) DiskSpace {
	if d.On(total) > bytes {
		return DiskSpace{Bytes: bytes}
	}
	return d
}

func (g GC) unset() bool {
	none := DiskSpace{}
	return g.Reserved == none && g.MaxUsed == none && g.MinFree == none
}

// ParseKeepStorage reads the text of a flag, "RESERVED[,FREE[,MAXIMUM]]" in MB,
// into the limits.
func (g *GC) ParseKeepStorage(text string) error {
	g.Reserved, g.MinFree, g.MaxUsed = DiskSpace{}, DiskSpace{}, DiskSpace{}
	if text == "" {
		return nil
	}
	parts := strings.Split(text, ",")
	to := []*DiskSpace{&g.Reserved, &g.MinFree, &g.MaxUsed}
	if len(parts) > len(to) {
		return fmt.Errorf("failed to parse storage %q: expected RESERVED[,FREE[,MAXIMUM]] in MB", text)
	}
	for i, part := range parts {
		n, err := strconv.ParseInt(part, 10, 64)
		if err != nil || n < 0 || n > math.MaxInt64/1_000_000 {
			return fmt.Errorf("failed to parse storage %q: %q is no number of MB, expected RESERVED[,FREE[,MAXIMUM]]", text, part)
		}
		to[i].Bytes = n * 1e6
	}
	return nil
}

// KeepStorage is the limits on a disk of total bytes as the text of that flag.
func (g GC) KeepStorage(total int64) string {
	l := g.limits(total)
	text := strconv.FormatInt(l.Reserved.On(total)/1e6, 10)
	free, most := l.MinFree.On(total)/1e6, l.MaxUsed.On(total)/1e6
	if free != 0 || most != 0 {
		text += "," + strconv.FormatInt(free, 10)
	}
	if most != 0 {
		text += "," + strconv.FormatInt(most, 10)
	}
	return text
}
