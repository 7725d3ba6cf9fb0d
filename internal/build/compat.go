package build

import (
	"fmt"
	"slices"

	"github.com/kiln-build/kiln/internal/exporter"
)

// FeatureError says that an older version of behaviour lacks a feature.
type FeatureError = exporter.FeatureError

// CheckCompatibility refuses a version of behaviour that is not known; 0 is the
// current one.
func CheckCompatibility(version int) error {
	known := []int{exporter.Compat013, exporter.Compat015, exporter.Compat031}
	switch {
	case version == 0 || slices.Contains(known, version):
		return nil
	case version > exporter.CompatCurrent:
		return fmt.Errorf("unsupported compatibility-version %d: upgrade the daemon (max supported: %d)", version, exporter.CompatCurrent)
	}
	return fmt.Errorf("unsupported compatibility-version %d (supported: %v)", version, known)
}
