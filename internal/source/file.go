package source

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/llb"
)

// File is how the one file of a download or of a blob is to be, as attributes say
// that both kinds of source have (BuildKit's solver/pb/attr.go).
type File struct {
	Name     string // "" leaves it to where the file is from
	Perm     int    // permission bits; 0 is 0600
	UID, GID int
}

// Attr reads an attribute, if it is one of a file's.
func (f *File) Attr(key, value string) (known bool, err error) {
	number := func(base, most int) int {
		n, perr := strconv.ParseInt(value, base, 64)
		if perr != nil || n < 0 || n > int64(most) {
			err = fmt.Errorf("attribute %s=%q: expected a number from 0 to %d", key, value, most)
			return 0
		}
		return int(n)
	}
	const mostID = 1<<31 - 1
	switch key {
	case llb.AttrHTTPFilename:
		if f.Name = value; value != "" {
			err = CheckFileName(value)
		}
	case llb.AttrHTTPPerm:
		f.Perm = number(0, 0o7777)
	case llb.AttrHTTPUID:
		f.UID = number(10, mostID)
	case llb.AttrHTTPGID:
		f.GID = number(10, mostID)
	default:
		return false, nil
	}
	return true, err
}

// CheckFileName accepts the name of a file in a directory, and nothing that leads
// elsewhere or confuses whoever reads it.
func CheckFileName(name string) error {
	bad := func(r rune) bool { return r < 0x20 || r == 0x7f || r == '/' || r == '\\' }
	if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("file name %q is not allowed: expected a plain name without slashes, \"..\" or control characters", name)
	}
	return nil
}

// Finish closes the file, which root has by the given name, and sets its owner,
// permissions and time; root's own folder gets the time, too.
func (f File) Finish(root *os.Root, name string, file *os.File, modified time.Time) error {
	perm := uint32(0o600)
	if f.Perm != 0 {
		perm = uint32(f.Perm)
	}
	// The owner first: a change of it takes setuid and setgid away.
	if err := errors.Join(file.Chown(f.UID, f.GID), unix.Fchmod(int(file.Fd()), perm), file.Close()); err != nil {
		return err
	}
	return errors.Join(root.Chtimes(name, modified, modified), root.Chtimes(".", modified, modified))
}
