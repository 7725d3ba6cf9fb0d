// Package errdefs is the generated code of errdefs.proto. Details of errors,
// sent as JSON in the details of a google.rpc.Status.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package errdefs
