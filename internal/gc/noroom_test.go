package gc

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExplain has a disk with room: who says that there is none is believed if it is the
// kernel, and not a registry or the like.
func TestExplain(t *testing.T) {
	c := &Collector{Root: t.TempDir()}
	for _, tc := range []struct {
		err   error
		maybe bool
		told  bool
	}{
		{err: nil},
		{err: fmt.Errorf("write layer: %w", unix.ENOSPC), told: true},
		{err: fmt.Errorf("write layer: %w", unix.EDQUOT), told: true},
		{err: errors.New("the registry answered with status 500: write blob: no space left on device")},
		{err: errors.New("exit code: 1"), maybe: true},
	} {
		got := c.Explain(tc.err, tc.maybe)
		if !tc.told && !errors.Is(got, tc.err) {
			t.Errorf("%v became %v", tc.err, got)
		}
		var noRoom *NoRoomError
		if errors.As(got, &noRoom) != tc.told {
			t.Errorf("%v became %v", tc.err, got)
			continue
		}
		if tc.told && (!strings.HasPrefix(got.Error(), tc.err.Error()+" (on the disk of the daemon's folder, "+c.Root) || !errors.Is(c.Explain(got, true), got)) {
			t.Errorf("%v became %v, then %v", tc.err, got, c.Explain(got, true))
		}
	}
}
