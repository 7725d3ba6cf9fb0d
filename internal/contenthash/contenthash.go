// Package contenthash names the content of file trees: what a step reads, and
// no more, becomes part of its cache key.
//
// The digests are those of BuildKit's cache/contenthash, so that caches can be
// exchanged. Times are no part of them; modes, owners, links and the xattrs that
// matter are.
//
// A [Tree] is the memo of one immutable directory tree. It reads from the disk
// only what a selector asks for and is not yet known; what receives files can
// fill it instead, and a tree that differs little is derived from another one
// at the price of the difference. The layer store keeps trees beside layers.
package contenthash

// Selector is a part of a tree.
type Selector struct {
	Path             string // "" or "/" is the whole tree
	Wildcard         bool   // Path is a pattern
	FollowLinks      bool   // a symlink at Path stands for its target
	Include, Exclude []string
}
