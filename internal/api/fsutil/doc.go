// Package fsutil is the generated code of fsutil.proto. The packets that sync
// a tree of files.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package fsutil
