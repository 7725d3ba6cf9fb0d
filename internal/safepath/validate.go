package safepath

import (
	"errors"
	"fmt"
	"strings"
)

// CleanRelative accepts only a path that means the same wherever it is read:
// relative, not empty, and with no empty, "." or ".." component and no NUL
// byte. It is for names in archives and transfers.
func CleanRelative(p string) error {
	switch {
	case p == "":
		return errors.New("path is empty")
	case strings.IndexByte(p, 0) >= 0:
		return fmt.Errorf("path %q has a NUL byte", p)
	case p[0] == '/':
		return fmt.Errorf("path %q is absolute, want a relative one", p)
	}
	for part := range strings.SplitSeq(p, "/") {
		switch part {
		case "":
			return fmt.Errorf("path %q has an empty component", p)
		case ".", "..":
			return fmt.Errorf("path %q has the component %q", p, part)
		}
	}
	return nil
}
