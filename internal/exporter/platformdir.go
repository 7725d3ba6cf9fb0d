package exporter

import (
	"fmt"
	"strings"
	"unicode"
)

// PlatformDir is the name of the directory for a platform, such as
// "linux_arm64", in the outputs of local and tar. It is one plain name, whatever
// the platform is called.
func PlatformDir(id string) (string, error) {
	if id == "" || strings.ContainsFunc(id, unicode.IsControl) {
		return "", fmt.Errorf("platform %q cannot name a directory: expected one such as linux/arm64", id)
	}
	name := strings.NewReplacer("/", "_", `\`, "_", ":", "_").Replace(id)
	if name == "." || name == ".." {
		name = strings.Repeat("_", len(name))
	}
	return name, nil
}
