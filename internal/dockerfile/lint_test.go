package dockerfile

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
)

// lintExamples are files that have one remark each, and what mends it: the line
// that is put in the place of the one that is remarked on, "-" for none.
func lintExamples() map[rule][2]string {
	return map[rule][2]string{
		ruleStageNameCasing:    {"FROM alpine AS Base", "FROM alpine AS base"},
		ruleFromAsCasing:       {"FROM alpine as base", "FROM alpine AS base"},
		ruleInstructionCasing:  {"FROM alpine\nRUN a\nRun b", "RUN b"},
		ruleJSONArgs:           {"FROM alpine\nCMD make all", `CMD ["make", "all"]`},
		ruleMaintainer:         {"FROM alpine\nMAINTAINER me <me@example.com>", `LABEL org.opencontainers.image.authors="me <me@example.com>"`},
		ruleUndefinedVar:       {"FROM alpine\nWORKDIR /$A", "-"},
		ruleUndefinedArgInFrom: {"FROM alpine$A", "-"},
		ruleWorkdirRelative:    {"FROM alpine\nWORKDIR a", "-"},
		ruleLegacyKeyValue:     {"FROM alpine\nENV A b c", `ENV A="b c"`},
		ruleDuplicateStage:     {"FROM alpine AS a\nFROM alpine AS a", "-"},
		ruleReservedStage:      {"FROM alpine AS context", "-"},
		ruleMultipleUse:        {"FROM alpine\nCMD [\"a\"]\nCMD [\"b\"]", "-"},
		ruleSecrets:            {"FROM alpine\nARG API_KEY", "-"},
		ruleEmptyContinuation:  {"FROM alpine\nRUN a \\\n\n b", ""},
		ruleRedundantPlatform:  {"FROM --platform=$TARGETPLATFORM alpine", "FROM  alpine"},
		ruleConstPlatform:      {"FROM --platform=linux/amd64 alpine", "-"},
		ruleBasePlatform:       {"FROM --platform=$BUILDOS/arm64 alpine", "-"},
		ruleExposeCasing:       {"FROM alpine\nEXPOSE 80/TCP", "EXPOSE 80/tcp"},
		ruleExposeFormat:       {"FROM alpine\nEXPOSE 127.0.0.1:80:8080", "EXPOSE 8080"},
		ruleCopyIgnored:        {"FROM alpine\nCOPY ignored /", "-"},
		ruleDefaultArgInFrom:   {"ARG A\nFROM $A", "-"},
		ruleDescription:        {"# a stage\nFROM alpine AS base", "# base a stage"},
		ruleBrokenList:         {"FROM alpine\nSHELL [\"/bin/sh\"]\nCMD [\"a\"", "-"},
		ruleBrokenTrigger:      {"FROM alpine\nONBUILD RNU make", "-"},
		ruleUnknownBuildArg:    {"FROM alpine\nARG VERSION", "-"},
	}
}

// lintOf lints a file.
func lintOf(t *testing.T, text string, more map[string]string) (lintReport, string) {
	t.Helper()
	opts := map[string]string{"requestid": requestLint, "build-arg:BUILDKIT_DOCKERFILE_CHECK": "experimental=all"}
	maps.Copy(opts, more)
	var report lintReport
	res, err := build(t, newFakeGateway(map[string]string{"dockerfile/Dockerfile": text, "context/.dockerignore": "ignored\n"}), opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(res.Meta["result.json"], &report); err != nil {
		t.Fatal(err)
	}
	return report, string(res.Meta["result.statuscode"])
}

// TestLintRules has each rule make its remark, and mends what can be mended.
func TestLintRules(t *testing.T) {
	for name, example := range lintExamples() {
		t.Run(string(name), func(t *testing.T) {
			opts := map[string]string{}
			if name == ruleUnknownBuildArg {
				opts["build-arg:VERSOIN"] = "1" //nolint:misspell // it is meant to be
			}
			if name == ruleDefaultArgInFrom {
				opts["build-arg:A"] = "alpine"
			}
			report, status := lintOf(t, example[0], opts)
			if len(report.Warnings) != 1 || report.Warnings[0].Rule != string(name) || report.Error != nil {
				t.Fatalf("remarks %+v, error %+v", report.Warnings, report.Error)
			}
			if want := map[bool]string{true: "0", false: "1"}[name.own()]; status != want {
				t.Errorf("status %s, want %s", status, want)
			}
			w := report.Warnings[0]
			if w.Detail == "" || w.Text == "" || (w.URL == "") != name.own() || w.Location.Ranges[0].Start.Line == 0 {
				t.Errorf("remark %+v", w)
			}
			if (w.Fix == nil) != (example[1] == "-") {
				t.Fatalf("fix %+v, want %q", w.Fix, example[1])
			}
			if w.Fix == nil {
				return
			}
			mended := mend(example[0], *w.Fix)
			if example[1] != "" && !slices.Contains(strings.Split(mended, "\n"), example[1]) {
				t.Errorf("mended, it is %q, want a line %q", mended, example[1])
			}
			if again, _ := lintOf(t, mended, opts); len(again.Warnings) != 0 || again.Error != nil {
				t.Errorf("mended, there are remarks %+v, error %+v", again.Warnings, again.Error)
			}
		})
	}
}

// mend puts a fix's text into a file.
func mend(text string, f lintFix) string {
	offset := func(p wirePosition) int {
		at := 0
		for range p.Line - 1 {
			at += strings.IndexByte(text[at:], '\n') + 1
		}
		return at + p.Character
	}
	r := f.Location.Ranges[0]
	return text[:offset(r.Start)] + f.Text + text[offset(r.End):]
}

// TestChecks checks what directives, comments and the build argument say of rules.
func TestChecks(t *testing.T) {
	const file = "FROM alpine\n# a comment\nARG X\nLABEL a b\nCMD x"
	all := []rule{ruleLegacyKeyValue, ruleJSONArgs}
	for _, c := range []struct {
		head, arg string
		file      string
		want      []rule
		fails     bool
	}{
		{"", "", file, all, false},
		{"# check=skip=LegacyKeyValueFormat\n", "", file, []rule{ruleJSONArgs}, false},
		{"# check=skip=legacykeyvalueformat, JSONArgsRecommended\n", "", file, nil, false},
		{"# check=skip=all;error=true\n", "", file, nil, false},
		{"# check=error=true\n", "", file, all, true},
		{"# check=experimental=all\n", "", file, []rule{ruleDescription, ruleLegacyKeyValue, ruleJSONArgs}, false},
		{"# check=experimental=InvalidDefinitionDescription;skip=all\n", "", file, []rule{ruleDescription}, false},
		{"# check=skip=all\n", "error=true", file, all, true}, // the argument takes the directive's place
		{"", "skip=all", file, nil, false},
		{"", "", "FROM alpine\n# check=skip=LegacyKeyValueFormat it is old\nLABEL a b\nCMD x", []rule{ruleJSONArgs}, false},
		{"", "", "FROM alpine\n# check=experimental=all\n# x\nARG X", []rule{ruleDescription}, false},
		{"# check=error=true\n", "", "FROM alpine\nSHELL [\"a\"]\nCMD [\"a", []rule{ruleBrokenList}, false}, // ours alone
	} {
		t.Run(c.head+c.arg, func(t *testing.T) {
			opts := map[string]string{"build-arg:BUILDKIT_DOCKERFILE_CHECK": c.arg}
			if c.arg == "" {
				opts = nil
			}
			gw := newFakeGateway(map[string]string{"dockerfile/Dockerfile": c.head + c.file})
			_, err := build(t, gw, opts)
			var got []rule
			for _, w := range gw.warnings {
				name, _, _ := strings.Cut(w.Short, ":")
				got = append(got, rule(name))
			}
			if !slices.Equal(got, c.want) || (err != nil) != c.fails {
				t.Errorf("remarks %v, error %v; want %v", got, err, c.want)
			}
		})
	}
}

// TestLintAllStages checks that stages are looked at which nothing needs, unless
// a target is named, and that remarks come beside an error.
func TestLintAllStages(t *testing.T) {
	const file = "FROM alpine AS unused\nLABEL a b\nFROM alpine AS used\nCMD x\nSTOPSIGNAL NOW"
	rules := func(report lintReport) (out []string) {
		for _, w := range report.Warnings {
			out = append(out, fmt.Sprintf("%s:%d", w.Rule, w.Location.Ranges[0].Start.Line))
		}
		return out
	}
	report, status := lintOf(t, file, nil)
	if got := rules(report); !slices.Equal(got, []string{"LegacyKeyValueFormat:2", "JSONArgsRecommended:4"}) || status != "1" {
		t.Errorf("remarks %v, status %s", got, status)
	}
	if report.Error == nil || report.Error.Location.Ranges[0].Start.Line != 5 {
		t.Errorf("error %+v", report.Error)
	}
	report, _ = lintOf(t, file, map[string]string{"target": "unused"})
	if got := rules(report); !slices.Equal(got, []string{"LegacyKeyValueFormat:2"}) || report.Error != nil {
		t.Errorf("remarks %v, error %v for a target", got, report.Error)
	}
}
