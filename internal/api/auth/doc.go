// Package auth is the generated code of auth.proto. Registry credentials of a
// client. The client serves it in its session. The package really is that of
// the file sync.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package auth
