// Package pb is the generated code of ops.proto. The low-level build language
// as it travels: a build definition is a list of encoded Op messages, each
// known by the sha256 of its bytes.
//
// Field numbers and names are those of BuildKit's solver/pb/ops.proto. The
// names matter too: keys of the cache are made from JSON that uses them.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package pb
