// Package caps is the generated code of caps.proto. Capabilities: features
// that either side announces by name.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package caps
