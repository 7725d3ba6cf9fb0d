package earthfile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

// maker carries a command out.
type maker func(*frame, context.Context, *command) error

// flagKind says what a flag takes.
type flagKind int

const (
	flagBool flagKind = iota
	flagText
	flagList // may stand several times
)

// grammar is what a command looks like.
type grammar struct {
	make  maker
	flags map[string]flagKind
	// raw commands are lines for a shell: only their flags are words of ours.
	raw bool
	// alone commands need no files to work on.
	alone bool
}

// language is the table of commands.
func language() map[string]grammar {
	calls := map[string]flagKind{"allow-privileged": flagBool, "pass-args": flagBool, "build-arg": flagList}
	with := func(base map[string]flagKind, more map[string]flagKind) map[string]flagKind {
		out := maps.Clone(base)
		maps.Copy(out, more)
		return out
	}
	process := map[string]flagKind{
		"mount": flagList, "secret": flagList, "ssh": flagBool, "no-cache": flagBool, "privileged": flagBool, "network": flagText,
		"raw-output": flagBool,
	}
	return map[string]grammar{
		"FROM": {make: (*frame).from, alone: true, flags: with(calls, map[string]flagKind{"platform": flagText})},
		"RUN":  {make: (*frame).run, raw: true, flags: with(process, map[string]flagKind{"push": flagBool, "entrypoint": flagBool})},
		"FROM DOCKERFILE": {make: (*frame).fromDockerfile, alone: true, flags: with(calls, map[string]flagKind{
			"platform": flagText, "f": flagText, "target": flagText,
		})},
		"GIT CLONE": {make: (*frame).gitClone, flags: map[string]flagKind{"branch": flagText, "keep-ts": flagBool}},
		"CACHE":     {make: (*frame).cacheFolder, flags: map[string]flagKind{"sharing": flagText, "id": flagText}},
		"HOST":      {make: (*frame).host, alone: true},
		"WAIT":      {make: (*frame).wait, alone: true},
		"COPY": {make: (*frame).copy, flags: with(calls, map[string]flagKind{
			"dir": flagBool, "chown": flagText, "chmod": flagText, "if-exists": flagBool, "keep-ts": flagBool, "keep-own": flagBool,
			"symlink-no-follow": flagBool, "platform": flagText,
		})},
		"SAVE ARTIFACT": {make: (*frame).saveArtifact, flags: map[string]flagKind{
			"keep-ts": flagBool, "keep-own": flagBool, "if-exists": flagBool, "symlink-no-follow": flagBool, "force": flagBool,
		}},
		"SAVE IMAGE": {make: (*frame).saveImage, flags: map[string]flagKind{
			"push": flagBool, "insecure": flagBool, "without-earthly-labels": flagBool, "cache-hint": flagBool, "cache-from": flagList,
		}},
		"BUILD":      {make: (*frame).build, alone: true, flags: with(calls, map[string]flagKind{"platform": flagList, "auto-skip": flagBool})},
		"ARG":        {make: (*frame).arg, alone: true, flags: map[string]flagKind{"required": flagBool, "global": flagBool}},
		"LET":        {make: (*frame).let, alone: true},
		"SET":        {make: (*frame).set, alone: true},
		"ENV":        {make: (*frame).env},
		"WORKDIR":    {make: (*frame).workdir},
		"USER":       {make: (*frame).user},
		"ENTRYPOINT": {make: (*frame).entrypoint, raw: true},
		"CMD":        {make: (*frame).cmd, raw: true},
		"EXPOSE":     {make: (*frame).expose},
		"VOLUME":     {make: (*frame).volume},
		"LABEL":      {make: (*frame).label},
		"DO":         {make: (*frame).do, alone: true, flags: calls},
		"IF":         {make: (*frame).branch, alone: true, raw: true, flags: process},
		"FOR":        {make: (*frame).loop, alone: true, flags: with(process, map[string]flagKind{"sep": flagText})},
	}
}

// refused are Earthly's other commands, and why a build has none of them.
func refused() map[string]string {
	const dockerfiles = "is a command of Dockerfiles that Earthfiles do not have"
	return map[string]string{
		"LOCALLY":     "runs commands on the user's machine, which a build never does: expected them in a container, by FROM and RUN",
		"WITH DOCKER": "needs a Docker daemon inside the step, which builds do not have: expected tests that run in the container itself, by RUN",
		"IMPORT":      "is not supported, since a build reads one Earthfile: expected the targets in this file",
		"HEALTHCHECK": "is not supported: expected the check where the image is run",
		"PROJECT":     "names a project on Earthly's servers, which a build does not ask: expected the file without it",
		"TRY":         "is not supported: expected RUN to write what went wrong to a file and to end well",
		"CATCH":       "is not supported, as is TRY",
		"FINALLY":     "is not supported, as is TRY",
		"ADD":         dockerfiles + ": expected COPY, or RUN with a program that downloads",
		"SHELL":       dockerfiles + `: expected RUN ["PROGRAM", "ARG"]`,
		"STOPSIGNAL":  dockerfiles,
		"ONBUILD":     dockerfiles + ": expected a function, and DO",
	}
}

// refusedFlags are flags that Earthly has, by command and name, and why a build
// has none of them.
func refusedFlags() map[string]string {
	return map[string]string{
		"COPY --from":            "is of Dockerfiles: expected COPY +TARGET/ARTIFACT, and SAVE ARTIFACT in the target",
		"RUN --interactive":      "needs a terminal, which builds do not have",
		"RUN --interactive-keep": "needs a terminal, which builds do not have",
		"RUN --with-docker":      "needs a Docker daemon inside the step, which builds do not have",
		"CACHE --persist":        "is not supported: expected RUN cp at the end, of what the image is to have of the folder",
		"CACHE --chmod":          "is not supported: expected RUN chmod of the folder",
		"RUN --aws":              "gives the credentials of the user's machine, which a build never does: expected RUN --secret",
		"RUN --oidc":             "asks Earthly's servers, which a build does not: expected RUN --secret",
	}
}

// known lists the commands, for those who write another one.
func known() []string {
	names := append(slices.Collect(maps.Keys(language())), "ELSE", "ELSE IF", "END", "FUNCTION", "VERSION")
	slices.Sort(names)
	return names
}

// suggestion is ": did you mean NAME?", or "".
func suggestion(name string, names []string) string {
	if near := syntax.Suggest(name, names); near != "" {
		return fmt.Sprintf(" (did you mean %s?)", near)
	}
	return ""
}

// expected lists names for an error.
func expected(name string, names []string) string {
	slices.Sort(names)
	return "expected one of " + strings.Join(names, ", ") + suggestion(name, names)
}

// usage is what stands behind a command.
func usage() map[string]string {
	const pairs, names = "NAME=VALUE", "+TARGET [--NAME=VALUE]..."
	return map[string]string{
		"FROM": "an image, or " + names, "COPY": "SOURCE... DEST, or +TARGET/ARTIFACT DEST", "BUILD": names, "DO": "+FUNCTION [--NAME=VALUE]...",
		"SAVE ARTIFACT": "PATH [NAME] [AS LOCAL PATH]", "ARG": "NAME or " + pairs, "LET": pairs, "SET": pairs, "ENV": pairs, "LABEL": pairs,
		"WORKDIR": "a path", "CACHE": "a folder", "GIT CLONE": "URL DIR", "HOST": "NAME ADDRESS", "FROM DOCKERFILE": "a folder with a Dockerfile", "USER": "a user", "EXPOSE": "ports", "VOLUME": "paths", "FOR": "NAME IN WORDS",
	}
}
