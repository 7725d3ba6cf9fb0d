// Package sshforward is the generated code of sshforward.proto. Forwards a
// client's ssh agent. The client serves it in its session.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package sshforward
