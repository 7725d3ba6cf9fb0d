package gc

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// littleRoom is how much of a disk is free at most that counts as full, bytes.
const littleRoom = 1 << 20

// NoRoomError is a failure for lack of room on the disk.
type NoRoomError struct {
	Err         error
	Root        string
	Free, Total int64 // bytes of the disk
	NoFiles     bool  // there is room, but for no further file
}

// Error names the folder, what is free, and what to do.
func (e *NoRoomError) Error() string {
	lack := fmt.Sprintf("%s of %s are free at this moment", bytesText(e.Free), bytesText(e.Total))
	if e.NoFiles {
		lack = "no further file can be made"
	}
	return fmt.Sprintf("%v (on the disk of the daemon's folder, %s, %s: make room there, such as with kiln prune, "+
		"or have the folder hold itself to a size: kiln daemon --cap, or cap in the configuration)", e.Err, e.Root, lack)
}

// Unwrap returns the failure.
func (e *NoRoomError) Unwrap() error { return e.Err }

// Explain adds what is known of the disk to an error that comes of a lack of room. With
// maybe set, the error can be any, such as a process's exit code: the disk decides.
func (c *Collector) Explain(err error, maybe bool) error {
	var told *NoRoomError
	if err == nil || errors.As(err, &told) || !maybe && !lacksRoom(err) {
		return err
	}
	var fs unix.Statfs_t
	if unix.Statfs(c.Root, &fs) != nil {
		return err // which is the first to be told
	}
	e := &NoRoomError{
		Err: err, Root: c.Root, Free: int64(fs.Bavail) * fs.Bsize, Total: int64(fs.Blocks) * fs.Bsize,
		NoFiles: fs.Files > 0 && fs.Ffree == 0,
	}
	if maybe && e.Free > littleRoom && !e.NoFiles {
		return err
	}
	return e
}

// lacksRoom tells whether an error comes of a full disk. Its words alone say nothing:
// they may be of the client's disk, or of a registry's.
func lacksRoom(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }
