package dockerfile

import "strings"

// errorExample is an error of the language: what it is about, why it is one,
// and a file that has it.
type errorExample struct {
	title string
	why   string
	file  string
	opts  map[string]string
}

// syntaxErrorExamples are the errors that reading a file finds. All of them are
// reported at once.
func syntaxErrorExamples() []errorExample {
	return []errorExample{
		{"Unknown instruction", "A line begins with a word that is no instruction.", "FROM alpine\nRNU make\n", nil},
		{"Unknown flag", "The instruction does not take this flag.", "FROM alpine\nCOPY --chwon=1:1 a /\n", nil},
		{"Flag of an extension", "Other builders do not know this flag, so a file says that it is written for this one.", "FROM alpine\nRUN --timeout=5m make\n", nil},
		{"Extension that is not known", "", "# kiln=run-limit\nFROM alpine\n", nil},
		{"Directive below the extensions", "Other builders read directives up to the first line that is none to them.", "# kiln=run-limits\n# escape=`\nFROM alpine\n", nil},
		{"Flag of an instruction without flags", "Most instructions take no flags at all.", "FROM alpine\nENV --global A=b\n", nil},
		{"Flag twice", "A flag of one value stands twice.", "FROM alpine\nCOPY --chown=1 --chown=2 a /\n", nil},
		{"Flag that is neither true nor false", "", "FROM alpine\nCOPY --link=maybe a /\n", nil},
		{"Flag without a value", "", "FROM alpine\nRUN --network make\n", nil},
		{"No arguments", "The instruction needs something behind its name.", "FROM alpine\nWORKDIR\n", nil},
		{"Directive twice", "A directive counts once.", "# syntax=docker/dockerfile:1\n# syntax=docker/dockerfile:1\nFROM alpine\n", map[string]string{"cmdline": ""}},
		{"Escape character", "Only two characters can be the escape character.", "# escape=/\nFROM alpine\n", nil},
		{"Empty file", "", "# nothing but a comment\n", nil},
		{"No stage", "Arguments alone are nothing to build.", "ARG A=b\n", nil},
		{"Instruction above the first FROM", "There is no image yet that it could change.", "RUN make\nFROM alpine\n", nil},
		{"Not text", "An instruction has bytes that are no UTF-8.", "FROM alpine\nRUN echo caf\xe9\n", nil},
		{"Zero byte", "The file is a binary one.", "FROM alpine\x00\n", nil},
		{"UTF-16", "Some editors write this encoding, which the builder does not read.", "\xff\xfeF\x00R\x00O\x00M\x00", nil},
		{"File too long", "", strings.Repeat("# x\n", 5<<20), nil},
		{"Line too long", "", "FROM alpine\nRUN " + strings.Repeat("x", 10<<20) + "\n", nil},
		{"Unknown instruction with no other near", "", "FROM alpine\nnpm install\n", nil},
		{"Unknown flag with no other near", "", "FROM alpine\nRUN --interactive true\n", nil},
		{"Heredoc without an end", "The line that ends the heredoc is missing, or indented.", "FROM alpine\nRUN <<EOF\nmake\n  EOF\n", nil},
		{"Heredoc as a destination", "A heredoc is a source; the last word is the destination.", "FROM alpine\nCOPY a <<EOF\ntext\nEOF\n", nil},
		{"FROM: word behind the image", "", "FROM alpine as base please\n", nil},
		{"FROM: no name behind AS", "", "FROM alpine AS\n", nil},
		{"FROM: stage name", "Names begin with a letter, so that they differ from the numbers of stages.", "FROM alpine AS 2nd\n", nil},
		{"RUN with an empty list", "", "FROM alpine\nRUN []\n", nil},
		{"JSON list without an end", "", "FROM alpine\nSHELL [\"/bin/sh\", \"-c\"\n", nil},
		{"JSON list in single quotes", "JSON knows double quotes only.", "FROM alpine\nSHELL ['/bin/sh', '-c']\n", nil},
		{"JSON list with another mistake", "", "FROM alpine\nSHELL [\"/bin/sh\" \"-c\"]\n", nil},
		{"JSON list of other things", "", "FROM alpine\nCMD [\"sleep\", 5]\n", nil},
		{"SHELL without a list", "", "FROM alpine\nSHELL /bin/bash -c\n", nil},
		{"COPY without a destination", "", "FROM alpine\nCOPY a\n", nil},
		{"ARG without a name", "", "FROM alpine\nARG =1\n", nil},
		{"ENV without =", "After the first pair with = all must have one. Mostly quotes are missing around blanks.", "FROM alpine\nENV A=b c\n", nil},
		{"ENV without a key", "", "FROM alpine\nENV =b\n", nil},
		{"ENV without a value", "", "FROM alpine\nENV A\n", nil},
		{"VOLUME with an empty path", "", "FROM alpine\nVOLUME [\"\"]\n", nil},
		{"VOLUME with an empty list", "", "FROM alpine\nVOLUME []\n", nil},
		{"HEALTHCHECK of another kind", "", "FROM alpine\nHEALTHCHECK CDM true\n", nil},
		{"HEALTHCHECK NONE with arguments", "", "FROM alpine\nHEALTHCHECK NONE true\n", nil},
		{"HEALTHCHECK without a command", "", "FROM alpine\nHEALTHCHECK CMD\n", nil},
		{"HEALTHCHECK: number of retries", "", "FROM alpine\nHEALTHCHECK --retries=-1 CMD true\n", nil},
		{"HEALTHCHECK: time", "", "FROM alpine\nHEALTHCHECK --interval=5 CMD true\n", nil},
		{"ONBUILD of what cannot be a trigger", "", "FROM alpine\nONBUILD FROM busybox:1\n", nil},
	}
}
