package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// windows is the operating system whose images have paths, a shell and a PATH of
// another kind.
const windows = "windows"

// imagePath is a path for an image of an operating system, with slashes and
// without a drive. A slash at the end stays. For other systems than Windows the
// path stays as it is.
func imagePath(system, p string) (string, error) {
	if system != windows {
		return p, nil
	}
	given := p
	p = strings.ReplaceAll(p, `\`, "/")
	if strings.HasPrefix(p, "//") {
		return "", fmt.Errorf("path %q is on another machine: expected one on drive C", given)
	}
	if drive, rest, ok := strings.Cut(p, ":"); ok {
		switch {
		case !strings.EqualFold(drive, "c"):
			return "", fmt.Errorf("path %q is on another drive: expected one on drive C", given)
		case rest == "":
			return "", fmt.Errorf(`path %q names a drive alone: expected a path on it, such as C:\`, given)
		}
		p = rest
	}
	if p == "" {
		return p, nil
	}
	clean := path.Clean(p)
	if strings.HasSuffix(p, "/") && clean != "/" {
		clean += "/"
	} else if strings.HasSuffix(p, "/.") && clean != "/" {
		clean += "/."
	}
	return clean, nil
}

// sourcePath is imagePath of a COPY's source, which with --parents may have a
// "/./" that says what of it to keep.
func sourcePath(system, p string, parents bool) (string, error) {
	parent, rest, pivot := strings.Cut(strings.ReplaceAll(p, `\`, "/"), "/./")
	if system != windows || !parents || !pivot {
		return imagePath(system, p)
	}
	parent, err := imagePath(system, parent+"/")
	return parent + "./" + rest, err
}

// configPath is a path with the separators of an operating system, for configs.
func configPath(system, p string) string {
	if system != windows {
		return p
	}
	return strings.ReplaceAll(p, "/", `\`)
}

// defaultShell runs commands in shell form where the image does not say what does.
func defaultShell(system string) []string {
	if system == windows {
		return []string{"cmd", "/S", "/C"}
	}
	return []string{"/bin/sh", "-c"}
}

// windowsSecret checks a secret's mount: Windows has no folder that all programs
// look for secrets in.
func (m *mount) windowsSecret() error {
	m.target = strings.ReplaceAll(m.target, `\`, "/")
	switch p, err := imagePath(windows, m.target); {
	case m.target == "" && m.env != nil:
		return nil
	case m.target == "":
		return errors.New(`secret target is required on Windows: expected it, such as target=C:/path/to/secret`)
	case err != nil:
		return err
	case !path.IsAbs(p):
		return fmt.Errorf("secret target %q must be an absolute path: expected one such as C:/path/to/secret", m.target)
	}
	return nil
}
