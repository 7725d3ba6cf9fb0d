// Package stack is the generated code of stack.proto. Where an error arose,
// sent as a detail of it.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package stack
