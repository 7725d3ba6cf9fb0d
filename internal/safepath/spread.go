package safepath

import "golang.org/x/sys/unix"

// topDir is FS_TOPDIR_FL, "T" in chattr(1).
const topDir = 0x20000

// Spread asks the file system to put what is in different directories of the
// directory name into different places. On ext4 without a journal, a new file's
// number is otherwise looked for among those of all files that were removed
// nearby in the last minutes, which are not used again that soon: where 50,000
// had been removed, making as many took three times as long. File systems that
// know nothing like it are left as they are.
func (r *Root) Spread(name string) {
	fd, err := r.open(name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); err == nil && flags&topDir == 0 {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags|topDir))
	}
}
