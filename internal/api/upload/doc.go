// Package upload is the generated code of upload.proto. Sends a stream that a
// client holds, such as its standard input. The client serves it in its
// session.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package upload
