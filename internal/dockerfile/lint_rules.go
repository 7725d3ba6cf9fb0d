package dockerfile

import (
	"strings"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

// rule is a lint rule. The names are those of docker/dockerfile, so that checks
// can be switched off the same way, but for the three at the end, which are ours.
type rule string

const (
	ruleStageNameCasing     rule = "StageNameCasing"
	ruleFromAsCasing        rule = "FromAsCasing"
	ruleInstructionCasing   rule = "ConsistentInstructionCasing"
	ruleJSONArgs            rule = "JSONArgsRecommended"
	ruleMaintainer          rule = "MaintainerDeprecated"
	ruleUndefinedVar        rule = "UndefinedVar"
	ruleUndefinedArgInFrom  rule = "UndefinedArgInFrom"
	ruleWorkdirRelative     rule = "WorkdirRelativePath"
	ruleLegacyKeyValue      rule = "LegacyKeyValueFormat"
	ruleDuplicateStage      rule = "DuplicateStageName"
	ruleReservedStage       rule = "ReservedStageName"
	ruleMultipleUse         rule = "MultipleInstructionsDisallowed"
	ruleSecrets             rule = "SecretsUsedInArgOrEnv"
	ruleEmptyContinuation   rule = "NoEmptyContinuation"
	ruleRedundantPlatform   rule = "RedundantTargetPlatform"
	ruleConstPlatform       rule = "FromPlatformFlagConstDisallowed"
	ruleBasePlatform        rule = "InvalidBaseImagePlatform"
	ruleExposeCasing        rule = "ExposeProtoCasing"
	ruleExposeFormat        rule = "ExposeInvalidFormat"
	ruleCopyIgnored         rule = "CopyIgnoredFile"
	ruleDefaultArgInFrom    rule = "InvalidDefaultArgInFrom"
	ruleDescription         rule = "InvalidDefinitionDescription"
	ruleBrokenList          rule = "InvalidJSONForm"
	ruleUnknownBuildArg     rule = "UnknownBuildArg"
	ruleBrokenTrigger       rule = "BrokenOnbuildTrigger"
	ruleDocs                     = "https://docs.docker.com/go/dockerfile/rule/"
	reservedStages               = "context scratch"
	suspiciousVariableWords      = "apikey|auth|credential|credentials|key|password|pword|passwd|secret|token"
	harmlessVariableWords        = "public|file|version"
)

// explain is what a rule is good for.
func (r rule) explain(words syntax.Words) string {
	switch r {
	case ruleStageNameCasing:
		return "Stage names are compared in lower case; write them so"
	case ruleFromAsCasing:
		return "Write " + words.Name(syntax.VerbFrom) + " and AS in the same case"
	case ruleInstructionCasing:
		return "Write all instructions in one case, upper or lower"
	case ruleJSONArgs:
		return "In shell form a shell runs the command, and signals do not reach it; use the JSON form"
	case ruleMaintainer:
		return "MAINTAINER is deprecated; use the label org.opencontainers.image.authors"
	case ruleUndefinedVar:
		return "A variable that is not set becomes an empty text"
	case ruleUndefinedArgInFrom:
		from := words.Name(syntax.VerbFrom)
		return from + " sees only the arguments that are declared above the first " + from
	case ruleWorkdirRelative:
		return "A relative path depends on the base image's working directory"
	case ruleLegacyKeyValue:
		return "The form with a blank is old and takes only one pair; use key=value"
	case ruleDuplicateStage:
		return "Of stages with one name only the last can be reached"
	case ruleReservedStage:
		return "The names scratch and context have a meaning of their own"
	case ruleMultipleUse:
		return "Only the last of these instructions counts in a stage"
	case ruleSecrets:
		return "Values of ARG and ENV stay in the image and its history; use " + words.Name(syntax.VerbRun) + " --mount=type=secret"
	case ruleEmptyContinuation:
		return "An empty line inside an instruction is easily taken for its end"
	case ruleRedundantPlatform:
		return "The target platform is the default"
	case ruleConstPlatform:
		return "A constant platform keeps the stage from being built for others"
	case ruleBasePlatform:
		return "The base image is for another platform than the build"
	case ruleExposeCasing:
		return "Write protocols in lower case"
	case ruleExposeFormat:
		return "EXPOSE takes ports of the container; addresses and host ports belong to docker run"
	case ruleCopyIgnored:
		return "The file is excluded by .dockerignore, so it is not in the context"
	case ruleDefaultArgInFrom:
		return "With the defaults of its arguments alone, FROM names no image; give the ARG a default that works"
	case ruleDescription:
		return "A comment right above a stage or argument describes it: write \"# NAME text\", or an empty line below the comment"
	case ruleBrokenList:
		return "The arguments look like a JSON list but are none, so they are taken as plain text"
	case ruleBrokenTrigger:
		return "Builds from the image will fail at the trigger"
	case ruleUnknownBuildArg:
		return "The build argument has no effect, for no ARG declares it"
	}
	return ""
}

// own reports whether a rule is not one of docker/dockerfile's. A file that is
// to have no remarks there may have such ones here.
func (r rule) own() bool {
	return r == ruleBrokenList || r == ruleUnknownBuildArg || r == ruleBrokenTrigger
}

// experimental reports whether a rule counts only where it is asked for.
func (r rule) experimental() bool { return r == ruleDescription }

// url is the page about a rule, "" for our own rules.
func (r rule) url() string {
	if r.own() {
		return ""
	}
	var b strings.Builder
	word := []rune(r)
	for i, c := range word {
		upper := c >= 'A' && c <= 'Z'
		startsWord := upper && i > 0 && (word[i-1] < 'A' || word[i-1] > 'Z' ||
			(i+1 < len(word) && word[i+1] >= 'a'))
		if startsWord {
			b.WriteByte('-')
		}
		b.WriteRune(c)
	}
	return ruleDocs + strings.ToLower(b.String()) + "/"
}
