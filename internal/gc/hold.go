package gc

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// margin is the share of the cap that is kept free for what is written before
	// anybody looks again; mostMargin bounds it, in bytes.
	margin     = 20
	mostMargin = 256 << 20
	// trusted is how long a measurement holds where there is a lot of room.
	trusted = time.Second
	// unknownNeed is what a step of which nothing is known may write before anybody
	// looks again, in bytes.
	unknownNeed = 16 << 20
	// pastShare is the share of the cap that the records of old builds may take
	// before they are shrunk.
	pastShare = 10
)

// FullError says that there is no room below the cap.
type FullError struct {
	Cap, Need int64 // bytes; Need is what was asked for on top of what is used
	Measure   Measure
}

// Error names the cap, what is used, and what to do.
func (e *FullError) Error() string {
	text := fmt.Sprintf("the daemon's folder may take %s, and %s are in use (%s)", bytesText(e.Cap), bytesText(e.Measure.Used), e.Measure.largest())
	if e.Need > 0 {
		text += fmt.Sprintf(", so there is no room for %s more", bytesText(e.Need))
	}
	return text + ": what is left is needed by builds under way; raise the cap (kiln daemon --cap, or cap in the configuration), " +
		"wait for other builds, or see with kiln du what takes it"
}

// measured is the last measurement.
type measured struct {
	Measure
	at   time.Time
	free int64 // bytes of the disk that were free when it began
}

// grown is how many more bytes of the disk are taken than at the measurement, by
// Kiln or by others. It costs one system call.
func (c *Collector) grown() (int64, error) {
	now, err := c.freeBytes()
	return max(c.measured.free-now, 0), err
}

func (c *Collector) freeBytes() (int64, error) {
	if c.free != nil {
		return c.free()
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.Root, &fs); err != nil {
		return 0, fmt.Errorf("state of the disk at %s: %w", c.Root, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// Pressing tells whether so much of the disk was taken since the last measurement
// that [Collector.Hold] has to look at once. It is cheap, and false while room is
// being made. Space that is freed elsewhere on the disk can hide what is written
// here, so it does not replace a measurement now and then.
func (c *Collector) Pressing() bool {
	if c.Cap == 0 || !c.holding.TryLock() {
		return false
	}
	defer c.holding.Unlock()
	grown, err := c.grown()
	return err != nil || c.measured.Used+grown > c.Limit()
}

// Limit is how many bytes may be in use before room is made: the cap, less a
// margin for what is written before anybody looks again.
func (c *Collector) Limit() int64 {
	return c.Cap - min(c.Cap/margin, mostMargin)
}

// Hold makes sure that need more bytes fit below the cap, and removes what was
// not used for longest if they do not. Where that is not enough, it is a
// [*FullError]. Without a cap it does nothing.
func (c *Collector) Hold(ctx context.Context, need int64) error {
	if c.Cap == 0 {
		return nil
	}
	c.holding.Lock()
	defer c.holding.Unlock()
	limit := c.Limit()
	// What was let in since the last look may have been written meanwhile.
	grown, err := c.grown()
	if err != nil {
		return err
	}
	if last := &c.measured; time.Since(last.at) < trusted && last.Used+grown+max(need, unknownNeed) <= limit/4*3 {
		last.Used += max(need, unknownNeed)
		return nil
	}
	m, err := c.look(ctx)
	if err != nil || m.Used+need <= limit {
		return err
	}
	if over := m.size(placeHistory) - c.Cap/pastShare; over > 0 {
		if m, err = c.shrinkPast(ctx, m, min(over, m.Used+need-limit)); err != nil || m.Used+need <= limit {
			return err
		}
	}
	// All but the records stays, so these have to make up for it.
	keep := max(limit-need-(m.Used-m.Records), 1)
	if err := c.Run(ctx, []Policy{{All: true, MaxUsed: keep, By: "by garbage collection, to hold the cap,"}}, nil); err != nil {
		return err
	}
	if m, err = c.look(ctx); err != nil || m.Used+need <= limit {
		return err
	}
	if m, err = c.shrinkPast(ctx, m, m.Used+need-limit); err != nil || m.Used+need <= limit {
		return err
	}
	return &FullError{Cap: c.Cap, Need: need, Measure: m}
}

// shrinkPast has the oldest builds forgotten, and measures again if that helped.
func (c *Collector) shrinkPast(ctx context.Context, m Measure, bytes int64) (Measure, error) {
	if c.Past == nil {
		return m, nil
	}
	freed, err := c.Past.Shrink(bytes)
	if err != nil {
		return m, fmt.Errorf("forget old builds to hold the cap: %w", err)
	}
	if freed == 0 {
		return m, nil
	}
	return c.look(ctx)
}

// look measures, and remembers it.
func (c *Collector) look(ctx context.Context) (Measure, error) {
	free, err := c.freeBytes()
	if err != nil {
		return Measure{}, err
	}
	m, err := c.Measure(ctx)
	if err == nil {
		c.measured = measured{m, time.Now(), free}
	}
	return m, err
}

// bytesText is a number of bytes for people, in decimal units.
func bytesText(n int64) string {
	v, unit := float64(n), 0
	for v >= 999.995 && unit < 6 {
		v, unit = v/1000, unit+1
	}
	if unit == 0 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.2f%cB", v, " kMGTPE"[unit])
}
