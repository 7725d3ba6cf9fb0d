// Package sessionexporter is the generated code of sessionexporter.proto. Lets
// a client choose exporters when it has seen the result. The client serves it
// in its session.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package sessionexporter
