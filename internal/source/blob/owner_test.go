package blob_test

import (
	"os"
	"syscall"
)

// owner is who has a file.
func owner(fi os.FileInfo) (uid, gid uint32) {
	st := fi.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}
