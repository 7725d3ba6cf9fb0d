package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// random is a stream of bytes that do not compress, the same for the same nonce.
func random(nonce string) io.Reader {
	return rand.NewChaCha8(sha256.Sum256([]byte(nonce)))
}

// writeRandom writes a file of size bytes that do not compress.
func writeRandom(path string, size int64, from io.Reader) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if _, err := io.CopyN(f, from, size); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// writeTree writes count files of size bytes each, a hundred a folder.
func writeTree(dir string, count int, size int64, nonce string, text bool) error {
	from := random(nonce)
	for i := range count {
		folder := filepath.Join(dir, fmt.Sprintf("d%03d", i/100))
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		path := filepath.Join(folder, fmt.Sprintf("f%05d", i))
		if !text {
			if err := writeRandom(path, size, from); err != nil {
				return err
			}
			continue
		}
		line := fmt.Appendf(nil, "file %d of %s: the quick brown fox jumps over the lazy dog\n", i, nonce)
		body := bytes.Repeat(line, int(size)/len(line)+1)[:size]
		if err := os.WriteFile(path, body, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// makeSpread makes a folder and spreads what will be made in it.
func makeSpread(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return spread(dir)
}

// forgetRemoved has the kernel forget the files that were removed before. Without a
// journal, ext4 gives the number of a file removed within the last minutes to no
// new one as long as it has the block with it in memory, and looks at each such number
// for each file it makes: tens of thousands of them make that hundreds of microseconds,
// most of what a row with many files takes, for either engine. A kernel that does not
// let its caches be dropped is left as it is.
func forgetRemoved() error {
	syscall.Sync()
	err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) {
		fmt.Fprintf(os.Stderr, "removed files are not forgotten, which rows with many files may show: %v\n", err)
		return nil
	}
	return err
}

// readyMemory is what the builds with the most data take of memory, in bytes.
const readyMemory = 2 << 30

// readyFree has the kernel own memory that the next build can have. A virtual machine
// gives what is free back to its host bit by bit, and gets it again at two seconds and
// more for each GB: which engine's pages those are is luck, and more than a build of
// 500 MB takes. Of memory that is short, half of what is free is touched, so that
// nothing leaves the caches for it.
func readyFree() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("ask for the free memory: %w", err)
	}
	size := min(readyMemory, info.Freeram*uint64(info.Unit)/2)
	pages, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
	if err != nil {
		return fmt.Errorf("touch %d bytes of memory: %w", size, err)
	}
	return unix.Munmap(pages)
}

// spread has ext4 put each folder in dir into a part of the disk of its own.
// So the files of one engine are not made between those that another has removed
// (see forgetRemoved), which is also why a case's folders are removed in its end
// alone. Other file systems, which know no such flag, are left as they are.
func spread(dir string) error {
	const topDir = 0x20000 // FS_TOPDIR_FL, see ioctl_iflags(2)
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|topDir))
	}
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
