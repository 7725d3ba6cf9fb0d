// Package control is the generated code of control.proto. The daemon's main
// service.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package control
