package exporter

import (
	"fmt"
	"regexp"
	"strings"
)

// platformID is what platforms look like; it leaves no way out of a directory.
var platformID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._()+-]*(/[A-Za-z0-9][A-Za-z0-9._()+-]*){0,3}$`)

// PlatformDir is the name of the directory for a platform, such as
// "linux_arm64", in the outputs of local and tar.
func PlatformDir(id string) (string, error) {
	if !platformID.MatchString(id) || strings.Contains(id, "..") {
		return "", fmt.Errorf("platform %q cannot name a directory: expected one such as linux/arm64", id)
	}
	return strings.ReplaceAll(id, "/", "_"), nil
}
