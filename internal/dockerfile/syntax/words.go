package syntax

import (
	"slices"
	"strings"
)

// Verb is an instruction of the language.
type Verb int

// The instructions.
const (
	VerbFrom Verb = iota + 1
	VerbRun
	VerbCmd
	VerbLabel
	VerbMaintainer
	VerbExpose
	VerbEnv
	VerbAdd
	VerbCopy
	VerbEntrypoint
	VerbVolume
	VerbUser
	VerbWorkdir
	VerbArg
	VerbOnbuild
	VerbStopSignal
	VerbHealthcheck
	VerbShell
)

// String is the instruction's name in a Dockerfile.
func (v Verb) String() string {
	for word, verb := range DockerfileWords() {
		if verb == v {
			return word
		}
	}
	return "?"
}

// Words is a language's table of instructions, by names in upper case. A
// language may have several names for one instruction and none for another.
type Words map[string]Verb

// DockerfileWords is the table of Dockerfiles.
func DockerfileWords() Words {
	return Words{
		"FROM": VerbFrom, "RUN": VerbRun, "CMD": VerbCmd, "LABEL": VerbLabel,
		"MAINTAINER": VerbMaintainer, "EXPOSE": VerbExpose, "ENV": VerbEnv,
		"ADD": VerbAdd, "COPY": VerbCopy, "ENTRYPOINT": VerbEntrypoint,
		"VOLUME": VerbVolume, "USER": VerbUser, "WORKDIR": VerbWorkdir,
		"ARG": VerbArg, "ONBUILD": VerbOnbuild, "STOPSIGNAL": VerbStopSignal,
		"HEALTHCHECK": VerbHealthcheck, "SHELL": VerbShell,
	}
}

// Name is what the language calls an instruction: the first of its names, or
// that of Dockerfiles if the language does not have it.
func (w Words) Name(v Verb) string {
	for _, name := range w.names() {
		if w[name] == v {
			return name
		}
	}
	return v.String()
}

// names are the table's words, for suggestions.
func (w Words) names() []string {
	out := make([]string, 0, len(w))
	for word := range w {
		out = append(out, word)
	}
	slices.Sort(out)
	return out
}

// suggest is the language's name that a word may have been meant to be. A word
// of Dockerfiles that the language does not have is meant to be its own for it.
func (w Words) suggest(word string) string {
	if near := Suggest(word, w.names()); near != "" {
		return near
	}
	dockerfile := DockerfileWords()
	if verb, ok := dockerfile[strings.ToUpper(word)]; ok {
		return w.Name(verb)
	}
	if verb, ok := dockerfile[Suggest(word, dockerfile.names())]; ok {
		return w.Name(verb)
	}
	return ""
}

// flagKind says what a flag takes.
type flagKind int

const (
	flagString flagKind = iota
	flagBool            // may stand without a value
	flagList            // may stand several times
)

// flagsOf is the table of the flags that an instruction takes.
func flagsOf(v Verb) map[string]flagKind {
	switch v {
	case VerbFrom:
		return map[string]flagKind{"platform": flagString}
	case VerbRun:
		return map[string]flagKind{
			"mount": flagList, "network": flagString, "security": flagString, "device": flagList,
		}
	case VerbCopy:
		return map[string]flagKind{
			"from": flagString, "chown": flagString, "chmod": flagString,
			"link": flagBool, "parents": flagBool, "exclude": flagList,
		}
	case VerbAdd:
		return map[string]flagKind{
			"chown": flagString, "chmod": flagString, "link": flagBool, "exclude": flagList,
			"checksum": flagString, "keep-git-dir": flagBool, "unpack": flagBool,
		}
	case VerbHealthcheck:
		return map[string]flagKind{
			"interval": flagString, "timeout": flagString, "start-period": flagString,
			"start-interval": flagString, "retries": flagString,
		}
	}
	return nil
}
