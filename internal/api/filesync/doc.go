// Package filesync is the generated code of filesync.proto. Sends and receives
// a client's files. The client serves it in its session.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package filesync
