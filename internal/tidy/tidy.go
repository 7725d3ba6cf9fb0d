// Package tidy holds the project's style as ordinary tests, so that a breach
// is found where all breaches are found. Nothing imports it.
package tidy
