// Package worker is the generated code of worker.proto. What a daemon says of
// its workers.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package worker
