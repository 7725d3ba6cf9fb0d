// Package snapshot opens the store of file system snapshots: overlayfs where
// the machine has it, plain copies where not.
package snapshot

import (
	"github.com/containerd/containerd/v2/core/snapshots"
)

// Store is an opened snapshotter and what is known of it.
type Store struct {
	snapshots.Snapshotter
	Kind string // "overlayfs" or "native"
}
