package dockerfile

import (
	"fmt"
	"strings"
)

// buildErrorExamples are the errors that show when variables, stages and images
// are known. Those of the stages that are built are reported at once.
func buildErrorExamples() []errorExample {
	return append(variableErrorExamples(), append(stageErrorExamples(), append(runErrorExamples(), copyErrorExamples()...)...)...)
}

func variableErrorExamples() []errorExample {
	line := func(word string) string { return "FROM alpine\nENV A=b\nWORKDIR " + word + "\n" }
	return []errorExample{
		{"Variable that must be set", "The file says itself that the variable is needed.", "FROM alpine\nARG VERSION\nRUN true\nWORKDIR /${VERSION:?use --build-arg VERSION=...}\n", nil},
		{"Variable that is not set", "", line("/${B?}"), nil},
		{"Variable that is empty", "", "FROM alpine\nENV A=\nWORKDIR /${A:?}\n", nil},
		{"Substitution without an end", "", line("/${A"), nil},
		{"Substitution without a variable", "", line("/${}"), nil},
		{"Unknown modifier", "", line("/${A^^}"), nil},
		{"Unknown modifier behind a colon", "", line("/${A:1}"), nil},
		{"Replacement without a second slash", "", line("/${A/x}"), nil},
		{"Pattern with an unknown escape", "", line(`/${A#\x}`), nil},
		{"Pattern that ends with an escape", "", line(`/${A#'\'}`), nil},
		{"Single quote without an end", "", line("'/a"), nil},
		{"Double quote without an end", "", line(`"/a`), nil},
		{"Substitutions too deep", "", line(strings.Repeat("${B:-", 70) + strings.Repeat("}", 70)), nil},
		{"Word that grows without end", "Variables that are made of variables double their length with each line.", "FROM alpine\nENV A0=" + strings.Repeat("x", 512) + "\n" + doubling(12) + "\n", nil},
		{"Substitution that grows without end", "", "FROM alpine\nENV A0=" + strings.Repeat("x", 1024) + "\nENV A1=$A0$A0$A0$A0\nWORKDIR /${A1//x/" + strings.Repeat("y", 1024) + "}\n", nil},
		{"File that grows without end", "Stages on stages, or variables of variables, make a small file grow to any size.", manyStages(), nil},
		{"ENV whose key becomes empty", "", "FROM alpine\nENV $UNSET=b\n", nil},
		{"Heredoc with a broken variable", "Quotes around the name, as in <<\"EOF\", keep variables as they are.", "FROM alpine\nCOPY <<EOF /a\n${A\nEOF\n", nil},
	}
}

// doubling are ENVs, each as long as two of the one before.
func doubling(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "ENV A%d=$A%d$A%d\n", i+1, i, i)
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// manyStages has few lines, each of which repeats all that was before.
func manyStages() string {
	var b strings.Builder
	b.WriteString("FROM alpine AS s0\nENV A0=" + strings.Repeat("x", 512) + "\n" + doubling(10) + "\n")
	for i := range 300 {
		fmt.Fprintf(&b, "WORKDIR /$A10\nENV B%d=$A10\n", i)
	}
	return b.String()
}

func stageErrorExamples() []errorExample {
	return []errorExample{
		{"Base image that is empty", "Only arguments above the first FROM count in FROM.", "ARG VERSION=3.20\nFROM $VERSIO\n", nil},
		{"Base image that is no reference", "", "FROM Alpine:3.20:1\n", nil},
		{"Base image that is not to be had", "Mostly a stage was meant.", "FROM alpine AS builder\nFROM bulider\n", nil},
		{"Stage that comes later", "A stage can use those above it.", "FROM later\nFROM alpine AS later\nFROM alpine\nCOPY --from=0 /a /\n", nil},
		{"Platform that is empty", "", "FROM --platform=$BULIDPLATFORM alpine\n", nil},
		{"Platform that is not known", "", "FROM --platform=linux/amd64/v1/x alpine\n", nil},
		{"Variable in FROM with a mistake", "", "FROM alpine:${VERSION\n", nil},
		{"Default of a global argument with a mistake", "", "ARG A=${B:1}\nFROM alpine\n", nil},
		{"Trigger of a stage with a mistake", "ONBUILD takes any text; it is an error where it runs.", "FROM alpine AS base\nONBUILD RNU make\nFROM base\n", nil},
		{"Trigger of an image with a mistake", "The mistake is in the image, whose ONBUILD runs here.", "FROM badonbuild\n", nil},
		{"Trigger of an image that cannot run here", "", "FROM wrongonbuild\n", nil},
		{"Triggers of an image on several lines", "", "FROM longonbuild\n", nil},
		{"Trigger of an image that is empty", "", "FROM emptyonbuild\n", nil},
		{"Image with a broken config", "", "FROM nullconfig\n", nil},
		{"Check directive without a value", "", "# check=skip\nFROM alpine\n", nil},
		{"Check directive with an unknown key", "", "# check=skp=all\nFROM alpine\n", nil},
		{"Check directive that is neither true nor false", "", "# check=error=maybe\nFROM alpine\n", nil},
		{"SOURCE_DATE_EPOCH of a stage on an image", "The time of a stage is that of the one thing it adds.", "ARG SOURCE_DATE_EPOCH=src\nFROM alpine AS src\nADD https://example.com/a.tar /\nFROM alpine\n", nil},
		{"SOURCE_DATE_EPOCH of a stage with several things", "", "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nADD https://example.com/a https://example.com/b /\nFROM alpine\n", nil},
		{"SOURCE_DATE_EPOCH of a stage with a local file", "", "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nADD a /\nFROM alpine\n", nil},
		{"SOURCE_DATE_EPOCH of a stage that runs something", "", "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nRUN true\nFROM alpine\n", nil},
		{"SOURCE_DATE_EPOCH of a stage that adds nothing", "", "ARG SOURCE_DATE_EPOCH=src\nFROM scratch AS src\nFROM alpine\n", nil},
	}
}

func runErrorExamples() []errorExample {
	run := func(flag string) string { return "FROM alpine\nRUN " + flag + " make\n" }
	mount := func(title, why, keys string) errorExample {
		return errorExample{title, why, run("--mount=" + keys), nil}
	}
	return []errorExample{
		{"Timeout", "The flags of an extension take variables, so their values are read here.", "# kiln=run-limits\nFROM alpine\nRUN --timeout=5 make\n", nil},
		{"Memory", "", "# kiln=run-limits\nFROM alpine\nRUN --memory=lots make\n", nil},
		{"Processors", "", "# kiln=run-limits\nFROM alpine\nRUN --cpus=0 make\n", nil},
		mount("Mount: unknown key", "", "type=cache,targt=/x"),
		mount("Mount: key without a value", "", "type=cache,target"),
		mount("Mount: value that is not one of a few", "", "type=cahce,target=/x"),
		mount("Mount: no number", "", "type=cache,target=/x,uid=me"),
		mount("Mount: no size", "", "type=tmpfs,target=/x,size=big"),
		mount("Mount: neither true nor false", "", "type=bind,target=/x,ro=maybe"),
		mount("Mount: quotes", "", `'type=bind,target="/x'`),
		mount("Mount: variable in from", "The stages must be known before variables are.", "from=$BASE,target=/x"),
		mount("Mount: required", "Only a secret or an agent may be missing.", "type=cache,target=/x,required"),
		mount("Mount: size", "", "type=cache,target=/x,size=1m"),
		mount("Mount: sharing", "", "type=bind,target=/x,sharing=locked"),
		mount("Mount: mode or owner", "", "type=bind,target=/x,mode=0700"),
		mount("Mount: from", "", "type=secret,id=a,from=alpine"),
		mount("Mount: secret without a name", "", "type=secret"),
		mount("Mount: secret with two names", "", "type=secret,id=a,source=b"),
		mount("Mount: source of an agent", "", "type=ssh,source=a"),
		mount("Mount: target", "The mount would hide the step's own files.", "type=bind,target=/"),
		{"Mount: stage that comes later", "", "FROM alpine\nRUN --mount=from=later,target=/x true\nFROM alpine AS later\nFROM alpine\nCOPY --from=0 /a /\n", nil},
		{"Network", "", run("--network=hst"), nil},
		{"Security mode", "", run("--security=insecur"), nil},
		{"Device without a name", "", run("--device=required"), nil},
		{"Device: unknown key", "", run("--device=name=a,nam=b"), nil},
		{"Device: neither true nor false", "", run("--device=vendor.com/gpu=all,required=maybe"), nil},
		{"Device: quotes", "", run(`--device='a"b'`), nil},
		{"Port that is no number", "", "FROM alpine\nEXPOSE http\n", nil},
		{"Port: protocol", "", "FROM alpine\nEXPOSE 80/tpc\n", nil},
		{"Port: range", "", "FROM alpine\nEXPOSE 90-80\n", nil},
		{"Port: ranges of two lengths", "", "FROM alpine\nEXPOSE 80-90:81-82\n", nil},
		{"Port: address", "", "FROM alpine\nEXPOSE localhost:80:80\n", nil},
		{"Port with a broken variable", "", "FROM alpine\nEXPOSE ${PORT\n", nil},
		{"Volume path that becomes empty", "", "FROM alpine\nVOLUME $UNSET\n", nil},
		{"Signal", "", "FROM alpine\nSTOPSIGNAL SIGTREM\n", nil},
	}
}

func copyErrorExamples() []errorExample {
	line := func(title, why, text string) errorExample {
		return errorExample{title, why, "FROM alpine\n" + text + "\n", nil}
	}
	return []errorExample{
		line("COPY --from with a variable", "", "COPY --from=$BASE /a /"),
		line("COPY --from without a value", "", "COPY --from= /a /"),
		line("COPY --from: number of a stage", "", "COPY --from=3 /a /"),
		{"Stages that need each other", "", "FROM alpine AS a\nCOPY --from=b /x /x\nFROM alpine AS b\nCOPY --from=a /x /x\n", nil},
		{"COPY from a stage that comes later", "", "FROM alpine\nCOPY --from=later /x /\nFROM alpine AS later\nFROM alpine\nCOPY --from=0 /x /\n", nil},
		{"Named context of an unknown kind", "", "FROM alpine\nCOPY --from=src / /src/\n", map[string]string{"context:src": "ftp://example.com/src"}},
		{"Windows: another drive", "Images for Windows have one drive.", "FROM --platform=windows/amd64 scratch AS windows\nWORKDIR D:\\a\n", map[string]string{"platform": "windows/amd64"}},
		{"Windows: a drive alone", "", "FROM scratch\nCOPY a C:\n", map[string]string{"platform": "windows/amd64"}},
		{"Windows: another machine", "", "# escape=`\nFROM scratch\nCOPY \\\\host\\a /\n", map[string]string{"platform": "windows/amd64"}},
		{"Windows: heredoc on another drive", "", "FROM scratch\nCOPY <<d:a /\nd:a\n", map[string]string{"platform": "windows/amd64"}},
		{"Windows: secret without a target", "", "FROM scratch\nRUN --mount=type=secret,id=a dir\n", map[string]string{"platform": "windows/amd64"}},
		{"Windows: secret with a relative target", "", "FROM scratch\nRUN --mount=type=secret,id=a,target=C:a dir\n", map[string]string{"platform": "windows/amd64"}},
		line("COPY --chmod", "", "COPY --chmod=u+y a /"),
		line("Heredoc with a wrong --chmod", "", "COPY --chmod=99999 <<EOF /a\ntext\nEOF"),
		line("COPY from a URL", "", "COPY https://example.com/a /"),
		line("URL without a host", "", "ADD http:///a /"),
		line("Checksum of several sources", "", "ADD --checksum=sha256:aa https://example.com/a https://example.com/b /"),
		line("Checksum of a file of the context", "", "ADD --checksum=sha256:aa a /"),
		line("Checksum that is none", "", "ADD --checksum=md5:aa https://example.com/a /"),
		line("Checksums that differ", "", "ADD --checksum=1234567 https://example.com/a.git?checksum=7654321 /"),
		line("Flag and URL that contradict each other", "", "ADD --keep-git-dir=false https://example.com/a.git?keep-git-dir=true /"),
		line("Git address with an unknown key", "", "ADD https://example.com/a.git?branhc=main /"),
	}
}
