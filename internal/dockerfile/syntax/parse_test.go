package syntax

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func mustParse(t *testing.T, text string) *File {
	t.Helper()
	f, err := Parse(NewSource("Dockerfile", []byte(text)), DockerfileWords())
	if err != nil {
		t.Fatalf("parse %q: %v", text, err)
	}
	return f
}

// only is the first instruction below the first FROM.
func only[T Instruction](t *testing.T, text string) T {
	t.Helper()
	i, ok := mustParse(t, "FROM scratch\n"+text).Stages[0].Instructions[0].(T)
	if !ok {
		t.Fatalf("%q became another instruction", text)
	}
	return i
}

// show is an instruction in a few words.
func show(i Instruction) string {
	switch i := i.(type) {
	case *Run:
		return fmt.Sprintf("%q json=%v mounts=%q", i.Command.Strings(), i.Command.JSON, Values(i.Mounts))
	case *Copy:
		return fmt.Sprintf("%s %q -> %q docs=%d", i.Verb, Values(i.Sources), i.Dest.Value, len(i.Heredocs))
	case *Env:
		return fmt.Sprint(pairStrings(i.Pairs))
	case *Label:
		return fmt.Sprint(pairStrings(i.Pairs))
	case *Arg:
		return fmt.Sprintf("%q", argStrings(i.Args))
	case *Cmd:
		return fmt.Sprintf("%q json=%v", i.Command.Strings(), i.Command.JSON)
	case *Entrypoint:
		return fmt.Sprintf("%q json=%v", i.Command.Strings(), i.Command.JSON)
	case *Shell:
		return fmt.Sprintf("%q", Values(i.Args))
	case *Expose:
		return fmt.Sprintf("%q", Values(i.Ports))
	case *Volume:
		return fmt.Sprintf("%q", Values(i.Paths))
	case *User:
		return i.User.Value
	case *Workdir:
		return i.Path.Value
	case *StopSignal:
		return i.Signal.Value
	case *Maintainer:
		return i.Name.Value
	case *Healthcheck:
		return fmt.Sprintf("none=%v %q %v %v %v %v %d", i.None, i.Command.Strings(), i.Interval, i.Timeout, i.StartPeriod, i.StartInterval, i.Retries)
	case *Onbuild:
		return fmt.Sprintf("%q %T", i.Trigger, i.Inner)
	}
	return "?"
}

func TestParseForms(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"RUN make  all", `["make  all"] json=false mounts=[]`},
		{`RUN ["make", "a b"]`, `["make" "a b"] json=true mounts=[]`},
		{"RUN [ -f x ] && y", `["[ -f x ] && y"] json=false mounts=[]`},
		{"RUN a \\\n  b \\\n# note\n  c", `["a   b   c"] json=false mounts=[]`},
		{"RUN a \\ \t\n b", `["a  b"] json=false mounts=[]`},
		{`RUN a \\`, `["a \\\\"] json=false mounts=[]`},
		{"run --mount=type=cache,target=/x --mount=type=tmpfs,target=/y make", `["make"] json=false mounts=["type=cache,target=/x" "type=tmpfs,target=/y"]`},
		{`RUN --mount="type=cache,target=/a b" make`, `["make"] json=false mounts=["type=cache,target=/a b"]`},
		{"RUN -- --odd", `["--odd"] json=false mounts=[]`},
		{"COPY a b c/", `COPY ["a" "b"] -> "c/" docs=0`},
		{`COPY ["a b", "c"]`, `COPY ["a b"] -> "c" docs=0`},
		{"ADD --chown=1:2 a b", `ADD ["a"] -> "b" docs=0`},
		{"COPY <<a <<-'b' c /x/\n1\na\n2\n\tb", `COPY ["c"] -> "/x/" docs=2`},
		{"COPY << EOF /x\n1\nEOF", `COPY [] -> "/x" docs=1`},
		{`ENV a=b c="d e" f=g\ h`, `[a=b c="d e" f=g\ h]`},
		{"ENV a b c", "[a b c (legacy)]"},
		{`LABEL "x y"=z a=`, `["x y"=z a=]`},
		{`ARG a b=c d="e f"`, `["a" "b=c" "d=\"e f\""]`},
		{"CMD echo hi", `["echo hi"] json=false`},
		{"CMD []", `[] json=true`},
		{"CMD ['a']", `["['a']"] json=false`},
		{`ENTRYPOINT ["/x"]`, `["/x"] json=true`},
		{`SHELL ["/bin/bash", "-c"]`, `["/bin/bash" "-c"]`},
		{"EXPOSE 80 90/udp", `["80" "90/udp"]`},
		{"VOLUME /a /b", `["/a" "/b"]`},
		{`VOLUME ["/a b"]`, `["/a b"]`},
		{"USER app:app", "app:app"},
		{"WORKDIR /a b", "/a b"},
		{"STOPSIGNAL SIGTERM", "SIGTERM"},
		{"MAINTAINER A B <c@d>", "A B <c@d>"},
		{"HEALTHCHECK NONE", "none=true [] 0s 0s 0s 0s 0"},
		{"HEALTHCHECK --interval=1m --timeout=2s --start-period=3s --start-interval=4s --retries=5 CMD x y", `none=false ["x y"] 1m0s 2s 3s 4s 5`},
		{"ONBUILD RUN make", `"RUN make" *syntax.Run`},
		{"ONBUILD COPY <<x /y\nz\nx", `"COPY <<x /y\nz\nx" *syntax.Copy`},
	} {
		f, err := Parse(NewSource("Dockerfile", []byte("FROM scratch\n"+tt.in+"\nUSER end\n")), DockerfileWords())
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		all := f.Stages[0].Instructions
		if got := show(all[0]); got != tt.want || len(all) != 2 {
			t.Errorf("%q became %s and %d more, want %s and 1", tt.in, got, len(all)-1, tt.want)
		}
	}
}

func argStrings(args []ArgDecl) []string {
	var out []string
	for _, a := range args {
		if a.Default == nil {
			out = append(out, a.Key.Value)
		} else {
			out = append(out, a.Key.Value+"="+a.Default.Value)
		}
	}
	return out
}

func pairStrings(pairs []Pair) []string {
	var out []string
	for _, p := range pairs {
		if p.Legacy {
			out = append(out, p.Key.Value+" "+p.Value.Value+" (legacy)")
		} else {
			out = append(out, p.Key.Value+"="+p.Value.Value)
		}
	}
	return out
}

// TestPlaces checks that tokens stand where their spans say, across
// continuation lines too.
func TestPlaces(t *testing.T) {
	text := "\xef\xbb\xbf# syntax=docker/dockerfile:1\n# escape=\\\nARG V=3\nFROM --platform=linux/amd64 alpine:$V AS Build\n" +
		"ENV a=1 \\\n# comment\n  b=\"two words\" \\\n\n  c=3\nCOPY --from=build [\"x y\", \\\n \"/z\"]\nRUN cat <<EOF\nhello\nEOF\n"
	src := NewSource("Dockerfile", []byte(text))
	f, err := Parse(src, DockerfileWords())
	if err != nil {
		t.Fatal(err)
	}
	at := func(tok Text) string { return text[tok.Span.Start:tok.Span.End] }
	from := f.Stages[0].From
	env := f.Stages[0].Instructions[0].(*Env)
	cp := f.Stages[0].Instructions[1].(*Copy)
	run := f.Stages[0].Instructions[2].(*Run)
	for _, tt := range []struct {
		tok  Text
		want string
	}{
		{from.Image, "alpine:$V"}, {*from.Platform, "linux/amd64"}, {from.As, "AS"}, {from.Name, "Build"},
		{env.Pairs[1].Key, "b"}, {env.Pairs[1].Value, `"two words"`}, {env.Pairs[2].Value, "3"},
		{cp.Sources[0], `"x y"`}, {cp.Dest, `"/z"`}, {*cp.From, "build"}, {f.Global[0].Args[0].Key, "V"},
		{run.Word, "RUN"}, {Text{Span: run.Heredocs[0].Word}, "<<EOF"}, {Text{Span: run.Heredocs[0].Body}, "hello\n"},
		{Text{Span: run.Span}, "RUN cat <<EOF\nhello\nEOF"}, {Text{Span: run.Line}, "RUN cat <<EOF"},
	} {
		if got := at(tt.tok); got != tt.want {
			t.Errorf("token stands at %q, want %q", got, tt.want)
		}
	}
	if len(env.Blanks) != 1 || src.Position(env.Blanks[0].Start).Line != 8 {
		t.Errorf("empty continuation lines: %v", env.Blanks)
	}
	if r := src.LineRanges(run.Span); len(r) != 3 || r[0].Start.Line != 12 || r[2].End.Line != 14 {
		t.Errorf("lines of RUN: %+v", r)
	}
	if len(f.Directives) != 2 || f.Directives[0].Name != "syntax" || f.Directives[0].Value != "docker/dockerfile:1" {
		t.Errorf("directives: %+v", f.Directives)
	}
}

func TestHeredocs(t *testing.T) {
	r := only[*Run](t, "RUN <<-'E F' cat && cat 3<<X <<\"Y\"\n\ta\n\t\tE F\nb\nX\nc\nY\n")
	type doc struct {
		name, content string
		expand, chomp bool
	}
	var got []doc
	for _, d := range r.Heredocs {
		got = append(got, doc{d.Name.Value, d.Content, d.Expand, d.Chomp})
	}
	want := []doc{{"E F", "\ta\n", false, true}, {"X", "b\n", true, false}, {"Y", "c\n", false, false}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("heredocs %+v, want %+v", got, want)
	}
	for _, text := range []string{"RUN echo $((1<<2))", `RUN echo "<<EOF"`, `RUN cat <<<word`, "CMD cat <<EOF", `RUN ["cat", "<<EOF"]`} {
		f := mustParse(t, "FROM scratch\n"+text+"\nUSER x")
		if n := len(f.Stages[0].Instructions); n != 2 {
			t.Errorf("%q took the next line for a heredoc", text)
		}
	}
}

func TestEscapeDirective(t *testing.T) {
	f := mustParse(t, "# escape=`\nFROM scratch\nRUN dir c:\\ `\n  /x\nCOPY a c:\\\nUSER x")
	if n := len(f.Stages[0].Instructions); n != 3 {
		t.Fatalf("%d instructions, want 3", n)
	}
	if got := f.Stages[0].Instructions[0].(*Run).Command.Args[0].Value; got != `dir c:\   /x` {
		t.Errorf("RUN has %q", got)
	}
}

// Below a line "#!", docker/dockerfile takes a file's escape for a comment.
func TestNoEscapeInScript(t *testing.T) {
	f := mustParse(t, "#!/usr/bin/env x\n# escape=`\nFROM scratch\nRUN a \\\n  b")
	if n := len(f.Stages[0].Instructions); n != 1 || f.Escape != '\\' {
		t.Fatalf("%d instructions and the escape %q, want 1 and a backslash", n, f.Escape)
	}
}

func TestFindSyntax(t *testing.T) {
	for in, want := range map[string]string{
		"# syntax=a/b:1\nFROM x":             "a/b:1",
		"#!/usr/bin/x\n#syntax = a\nx":       "a",
		"// syntax=c\n{}":                    "c",
		`{"syntax": "d", "x": 1}`:            "d",
		"\xef\xbb\xbf# escape=`\n# syntax=e": "e",
		"FROM x\n# syntax=a":                 "",
		"# comment\n# syntax=a":              "",
	} {
		if got, ok := FindSyntax([]byte(in)); got.Value != want || ok != (want != "") {
			t.Errorf("FindSyntax(%q) = %q, want %q", in, got.Value, want)
		}
	}
}

// TestErrors checks that all errors of a file are found, each at its place.
func TestErrors(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"", "1:0-0 file has no instructions: expected FROM with a base image"},
		{"ARG a\n", "1:5-5 dockerfile contains no stages to build: expected FROM with a base image"},
		{"RUN x\nRUN y\nFROM z", "1:0-3 RUN stands above the first FROM: expected FROM or ARG"},
		{"FROM a b", `1:7-8 "b" stands behind the image: expected AS and a name, or nothing`},
		{"FROM a as", "1:7-9 no name stands behind AS: expected the name of the stage"},
		{"FROM a AS 1x", `1:10-12 stage name "1x": expected a letter and then letters, digits, '-', '_' and '.'`},
		{"FROM --platfor=x a", `1:5-16 unknown flag: --platfor for FROM (did you mean platform?)`},
		{"FORM a", `1:0-4 unknown instruction: FORM (did you mean FROM?)`},
		{"FROM a\nRUNN x\nCOPY a\nENV\nLABEL x", `2:0-4 unknown instruction: RUNN (did you mean RUN?)
3:0-6 COPY has no destination: expected one or more sources and a destination
4:0-3 ENV has no arguments: expected key=value
5:6-7 "x" has no value: expected key=value`},
		{"FROM a\nENV a=b \\\n  c\n", `3:2-3 "c" has no =: expected key=value, with quotes around values that have blanks`},
		{"FROM a\nUSER --x y", `2:5-8 unknown flag: --x for USER: expected no flag`},
		{"FROM a\nCOPY --link=maybe a b", `2:12-17 flag --link has the value "maybe": expected true or false`},
		{"FROM a\nCOPY --chown a b", "2:5-12 flag --chown has no value: expected --chown=VALUE"},
		{"FROM a\nCOPY --chown=1 --chown=2 a b", "2:15-24 flag --chown stands here twice: expected it once"},
		{`FROM a
CMD ["x", 1]`, `2:10-11 1 is in the list: expected a string in double quotes`},
		{`FROM a
SHELL ["x", "y"`, `2:14-15 list is not JSON: [\"x\", \"y\": it has no end: expected a list such as ["one", "two"]`},
		{`FROM a
SHELL ['x']`, `2:7-8 list is not JSON: ['x']: strings stand in single quotes: expected a list such as ["one", "two"]`},
		{"FROM a\nSHELL bash", `2:6-10 SHELL has "bash": expected a JSON list such as ["/bin/sh", "-c"]`},
		{"FROM a\nHEALTHCHECK CDM x", `2:12-15 health check of kind "CDM": expected NONE, or CMD and a command (did you mean CMD?)`},
		{"FROM a\nHEALTHCHECK --interval=1 CMD x", `2:23-24 flag --interval has the value "1": expected a time such as 30s, at least 1ms`},
		{"FROM a\nHEALTHCHECK --retries=-1 CMD x", `2:22-24 flag --retries has the value "-1": expected a number, 0 or more`},
		{"FROM a\nONBUILD ONBUILD RUN x", "2:8-15 ONBUILD is the trigger of ONBUILD: expected any instruction but FROM, MAINTAINER and ONBUILD"},
		{"FROM a\nONBUILD FROM x", "2:8-12 FROM is the trigger of ONBUILD: expected any instruction but FROM, MAINTAINER and ONBUILD"},
		{"FROM a\nONBUILD ENV x", `2:12-13 "x" has no value: expected key=value`},
		{"FROM a\nONBUILD RUN [1]", `2:13-14 1 is in the list: expected a string in double quotes`},
		{"FROM a\nRUN <<EOF\nx\n", `2:4-9 heredoc "EOF" has no end: expected a line that is just "EOF"`},
		{"FROM a\nCOPY x <<EOF\nx\nEOF", "2:7-12 destination is a heredoc: expected a path"},
		{"FROM a\nARG =x", "2:4-6 build argument has no name: expected a name, and maybe = and a default"},
		{"# escape=x\nFROM a", "1:0-10 escape character \"x\": expected \\ or `"},
		{"# syntax=a\n# syntax=b\nFROM a", `2:0-10 directive "syntax" stands here twice: expected each directive once`},
		{"FROM a\n\x7fELF\x00\x01", "2:4-5 byte 0x00 at offset 11: expected text in UTF-8, this seems to be a binary file"},
		{"\xff\xfeF\x00", "1:0-2 file is in UTF-16: expected text in UTF-8"},
		{"FROM a\nRUN \xff\xfe", "2:0-6 instruction is not text: expected UTF-8"},
	} {
		src := NewSource("Dockerfile", []byte(tt.in))
		_, err := Parse(src, DockerfileWords())
		var list Errors
		if !errors.As(err, &list) {
			t.Errorf("%q: error %v", tt.in, err)
			continue
		}
		var got []string
		for _, e := range list {
			r := src.Range(e.Span)
			got = append(got, fmt.Sprintf("%d:%d-%d %s", r.Start.Line, r.Start.Character, r.End.Character, e.Text()))
		}
		if s := strings.Join(got, "\n"); s != tt.want {
			t.Errorf("%q:\n got %s\nwant %s", tt.in, s, tt.want)
		}
	}
}

// TestOtherWords checks that a language may have other names for instructions.
func TestOtherWords(t *testing.T) {
	words := Words{"AUS": VerbFrom, "TU": VerbRun}
	f, err := Parse(NewSource("Bauplan", []byte("aus alpine\nTU make")), words)
	if err != nil || len(f.Stages) != 1 || len(f.Stages[0].Instructions) != 1 {
		t.Fatalf("%+v, %v", f, err)
	}
	_, err = Parse(NewSource("Bauplan", []byte("TU x")), words)
	if err == nil || !strings.Contains(err.Error(), "TU stands above the first AUS") {
		t.Errorf("error %v speaks another language", err)
	}
	if _, err = Parse(NewSource("Bauplan", []byte("AUS x\nRUN x")), words); err == nil {
		t.Error("a word of another language was taken")
	}
}

func TestParseTrigger(t *testing.T) {
	i, err := ParseTrigger("COPY <<x /y\nz\nx", DockerfileWords(), Extensions{})
	if c, ok := i.(*Copy); err != nil || !ok || c.Heredocs[0].Content != "z\n" {
		t.Errorf("%+v, %v", i, err)
	}
	for _, bad := range []string{"", "FROM x", "RUN a\nRUN b", "NOPE"} {
		if _, err := ParseTrigger(bad, DockerfileWords(), Extensions{}); err == nil {
			t.Errorf("trigger %q was taken", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"FROM a\nRUN <<E\nx\nE\n", "# escape=`\nFROM a AS b\nCOPY --from=b [\"x\"] /y", "FROM a\nENV a=\"b c\" \\\n# x\n d=e",
		"FROM a\nONBUILD COPY <<-'x' /y\n\tz\n\tx", "ARG a=${b:-c}\nFROM ${a##*/}", "FROM a\nHEALTHCHECK --retries=1 CMD [\"x\"]",
		"FROM a\nRUN --mount=type=cache,target=/x \\\n\n y", "\xef\xbb\xbf#syntax=a\nFROM a\nEXPOSE 1-2/udp\nVOLUME [\"a\"]",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		src := NewSource("Dockerfile", data)
		file, err := Parse(src, DockerfileWords())
		inside := func(what string, s Span) {
			if s.Start < 0 || s.End < s.Start || s.End > len(data) {
				t.Fatalf("%s at %v of %d bytes", what, s, len(data))
			}
		}
		var list Errors
		if err != nil && !errors.As(err, &list) {
			t.Fatalf("error of type %T", err)
		}
		for _, e := range list {
			inside(e.Message, e.Span)
		}
		for _, st := range file.Stages {
			for _, i := range append([]Instruction{st.From}, st.Instructions...) {
				h := HeadOf(i)
				inside("instruction", h.Span)
				inside("word", h.Word.Span)
				if string(data[h.Word.Span.Start:h.Word.Span.End]) != h.Word.Value && !strings.Contains(string(data), "\\") && !strings.Contains(string(data), "`") {
					t.Fatalf("word %q does not stand where it says", h.Word.Value)
				}
				for _, d := range heredocsOf(i) {
					inside("heredoc", d.Body)
				}
			}
		}
		if x, err := (Expander{Escape: '\\'}).Expand(string(data), vars{"a": "b"}); err == nil {
			x.Words()
		}
	})
}

// heredocsOf returns the heredocs of an instruction in the order of the file.
func heredocsOf(i Instruction) []Heredoc {
	switch i := i.(type) {
	case *Run:
		return i.Heredocs
	case *Copy:
		return i.Heredocs
	}
	return nil
}
