// Package safepath resolves paths that come from outside (LLB, frontends,
// archives, git, sessions) inside a root directory.
//
// A [Root] acts as a chroot without a process of its own: "/" is the root
// directory, absolute symlinks start there again, and ".." stops there. Paths
// are resolved by handles (openat2 with RESOLVE_IN_ROOT, or component by
// component with O_NOFOLLOW where a kernel or a filter lacks it), so that
// whoever swaps a directory for a symlink meanwhile still cannot lead an
// operation out of the root. Names are cleaned lexically first: "a/../b" is
// "b", whatever a is ([Root.ChrootDir] alone does as a chroot would).
//
// It sits below everything that touches a file system on behalf of a build,
// and knows nothing of builds. Errors name paths as seen from inside the root,
// never the machine's own.
package safepath
