// Package sourcepolicy is the generated code of sourcepolicy.proto. Rules that
// allow, deny or rewrite sources.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package sourcepolicy
