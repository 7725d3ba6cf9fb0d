// Package arch holds the one statement of what may import what, policy.txt,
// and the test that holds every package to it. Nothing imports it.
package arch
