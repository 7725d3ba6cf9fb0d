// Package policysession is the generated code of policysession.proto. Lets a
// client decide on each source of its build. The client serves it in its
// session.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package policysession
