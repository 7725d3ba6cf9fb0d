// Package gateway is the generated code of gateway.proto. What a frontend, in
// a container or in a client, may ask of the daemon during a build.
//
// It sits at the rim: the rest of the program decodes these messages to values
// of its own, and checks them, before it acts on them.
package gateway
