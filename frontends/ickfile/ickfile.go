// Package ickfile is the frontend of Ickfiles: the Dockerfile language with
// words of INTERCAL. See README.md for the words.
//
// It is the Dockerfile frontend with another table of instructions and nothing
// else, so all that Dockerfiles can do, Ickfiles can.
package ickfile

import (
	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

// Image is the repository that the first line of an Ickfile names.
const Image = "agbell/ick"

// New returns the frontend.
func New() frontend.Frontend {
	words := syntax.DockerfileWords()
	for polite, verb := range map[string]syntax.Verb{"COME_FROM": syntax.VerbFrom, "PLEASE": syntax.VerbRun, "STASH": syntax.VerbCopy} {
		delete(words, verb.String())
		words[polite] = verb
	}
	return dockerfile.NewLanguage(dockerfile.Language{Words: words, Images: []string{Image}})
}
