package earthfile

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/frontendtest"
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// gateway is where there are a few bases, and a container in which every command
// prints "one two", but for "fails", which ends with an error.
func gateway(file string) *frontendtest.Gateway {
	return &frontendtest.Gateway{
		Files: map[string]string{"local://dockerfile/Dockerfile": file, "local://context/.dockerignore": "*.tmp\n"},
		Images: map[string]ocispecs.ImageConfig{
			"docker.io/library/alpine:latest": {Env: []string{"PATH=/bin", "A=base"}, User: "nobody", WorkingDir: "/srv", Labels: map[string]string{"from": "base"}},
		},
		Run: func(g *llb.Graph) (map[string]string, error) {
			exec, ok := g.Root.Vertex.Op.(*llb.ExecOp)
			if !ok {
				return nil, nil
			}
			switch script := strings.Join(exec.Args, " "); {
			case strings.Contains(script, "breaks"):
				return nil, errors.New("the step broke")
			case !strings.Contains(script, "echo $? >"):
				return map[string]string{"found/out": "one two\n"}, nil
			case strings.Contains(script, "fails"):
				return map[string]string{"found/out": "1\n"}, nil
			}
			return map[string]string{"found/out": "0\n"}, nil
		},
	}
}

// buildFile builds a file for linux/amd64.
func buildFile(t *testing.T, gw *frontendtest.Gateway, opts map[string]string) (*frontend.Result, error) {
	t.Helper()
	return New().Build(t.Context(), frontend.Request{Opts: opts, Worker: ocispecs.Platform{OS: "linux", Architecture: "amd64"}}, gw)
}

var update = flag.Bool("update", false, "write what is made into the test data")

func TestGolden(t *testing.T) { frontendtest.Golden(t, *update, golden) }

// golden is what a file becomes, as text: also what was built beside the result.
func golden(t *testing.T, file string, opts map[string]string) string {
	t.Helper()
	gw := gateway(file)
	run := gw.Run
	var mu sync.Mutex
	var solved []string // in any order
	gw.Run = func(g *llb.Graph) (map[string]string, error) {
		mu.Lock()
		defer mu.Unlock()
		solved = append(solved, "solve "+g.Root.Vertex.Name()+"\n")
		return run(g)
	}
	res, err := buildFile(t, gw, opts)
	slices.Sort(solved)
	var b strings.Builder
	b.WriteString(strings.Join(solved, ""))
	if err != nil {
		return b.String() + "error: " + err.Error() + "\n"
	}
	b.WriteString(frontendtest.Text(t, res))
	if name := res.Meta["image.name"]; name != nil {
		b.WriteString("name " + string(name) + "\n")
	}
	for _, w := range gw.Warnings() {
		b.WriteString("warning: " + w.Short + "\n")
	}
	return b.String()
}

// TestErrors checks that errors have a line and say what to write.
func TestErrors(t *testing.T) {
	const head = "VERSION 0.8\nFROM alpine\n"
	for _, c := range []struct{ file, want string }{
		{"", "Dockerfile:1: file is empty: expected VERSION 0.8"},
		{"FROM alpine\n", "Dockerfile:1: file has no VERSION"},
		{"VERSION\n", "Dockerfile:1: VERSION has 0 versions"},
		{"VERSION 0.5\n", "Dockerfile:1: version 0.5 is not supported: expected 0.7 or 0.8"},
		{head + "t:\n  RUNN x\n", "Dockerfile:4: unknown command: RUNN: expected one of ARG, BUILD, CACHE, CMD"},
		{head + "t:\n  RUNN x\n", "(did you mean RUN?)"},
		{head + "t:\n  run x\n", "(did you mean RUN?)"},
		{head + "t:\n  LOCALLY\n", "Dockerfile:4: LOCALLY runs commands on the user's machine, which a build never does"},
		{head + "t:\n  WITH DOCKER\n    RUN x\n  END\n  RUN y\n", "Dockerfile:4: WITH DOCKER needs a Docker daemon"},
		{head + "t:\n  FROM DOCKERFILE . x\n", "Dockerfile:4: FROM DOCKERFILE is . x: expected FROM DOCKERFILE [-f FILE] FOLDER"},
		{head + "t:\n  FROM DOCKERFILE +u/x\n", "Dockerfile:4: there is no target +u"},
		{head + "t:\n  GIT CLONE x\n", "Dockerfile:4: GIT CLONE is x: expected GIT CLONE [--branch REF] URL DIR"},
		{head + "t:\n  CACHE\n", "Dockerfile:4: CACHE says nothing: expected a folder"},
		{head + "t:\n  CACHE --sharing=some /x\n", `Dockerfile:4: cache has sharing "some": expected locked, shared or private`},
		{head + "t:\n  CACHE --persist /x\n", "Dockerfile:4: CACHE --persist is not supported: expected RUN cp"},
		{head + "t:\n  HOST a b\n", "Dockerfile:4: HOST is a b: expected HOST NAME ADDRESS"},
		{head + "t:\n  WAIT\n    RUN x\n", "Dockerfile:4: WAIT has no END"},
		{head + "t:\n  WAIT\n  ELSE\n  END\n", "Dockerfile:5: ELSE stands behind WAIT"},
		{head + "t:\n  RUN --entrypoint x\n", "Dockerfile:4: RUN --entrypoint has no entrypoint to run"},
		{head + "t:\n  RUN --mount=type=secret,target=/x,mode=9 y\n", `Dockerfile:4: mount has the mode "9"`},
		{head + "t:\n  SAVE x\n", "Dockerfile:4: SAVE says not what"},
		{head + "t:\n  COPY --from=x a b\n", "Dockerfile:4: COPY --from is of Dockerfiles: expected COPY +TARGET/ARTIFACT"},
		{head + "t:\n  COPY --dri a b\n", "Dockerfile:4: COPY has the unknown flag --dri: expected one of allow-privileged"},
		{head + "t:\n  COPY --dri a b\n", "(did you mean dir?)"},
		{head + "t:\n  COPY --chown\n", "Dockerfile:4: COPY --chown has no value"},
		{head + "t:\n  COPY a\n", "Dockerfile:4: COPY is a: expected SOURCE... DEST"},
		{head + "t:\n  COPY\n", "Dockerfile:4: COPY says nothing: expected SOURCE... DEST"},
		{head + "t:\n  RUN\n", "Dockerfile:4: RUN says nothing"},
		{head + "t:\n  COPY 'a b\n", "Dockerfile:4: single quote has no end"},
		{head + "t:\n  COPY \"a b\n", "Dockerfile:4: double quote has no end"},
		{head + "t:\n  COPY $(a b\n", "Dockerfile:4: parenthesis has no end"},
		{head + "t:\nRUN x\n", "Dockerfile:4: command of a target is not indented"},
		{"VERSION 0.8\n  RUN x\n", "Dockerfile:2: command above all targets is indented"},
		{head + "t:\n  RUN x\nt:\n  RUN y\n", "Dockerfile:5: target t stands here twice: expected another name than on line 3"},
		{head + "t/x:\n  RUN x\n", `Dockerfile:3: target has the name "t/x"`},
		{head + "base:\n  RUN x\n", "Dockerfile:3: target is called base"},
		{head + "t:\n  IF true\n    RUN x\n", "Dockerfile:4: IF has no END"},
		{head + "t:\n  END\n", "Dockerfile:4: END belongs to no command"},
		{head + "t:\n  IF true\n  ELSE\n  ELSE\n  END\n", "Dockerfile:6: ELSE stands behind ELSE"},
		{head + "t:\n  FOR x IN y\n  ELSE\n  END\n", "Dockerfile:5: ELSE stands behind FOR"},
		{head + "t:\n  FOR x y\n  END\n", "Dockerfile:4: FOR is x y: expected FOR NAME IN WORDS"},
		{head + "t:\n  RUN x\n  FUNCTION\n", "Dockerfile:5: FUNCTION stands behind other commands"},
		{head + "t:\n  BUILD +u\nuu:\n  RUN x\n", "Dockerfile:4: there is no target +u: expected one of t, uu (did you mean uu?)"},
		{head + "t:\n  BUILD ./dir+u\n", "Dockerfile:4: ./dir+u is a target of another Earthfile"},
		{head + "t:\n  FROM github.com/a/b+c\n", "is a target of another Earthfile"},
		{head + "t:\n  BUILD +f\nf:\n  FUNCTION\n", "Dockerfile:4: +f is a function: expected DO +f"},
		{head + "t:\n  DO +u\nu:\n  RUN x\n", "Dockerfile:4: +u is a target: expected BUILD +u"},
		{head + "t:\n  COPY +u/x .\nu:\n  RUN x\n", "Dockerfile:4: target +u saves no artifacts"},
		{head + "t:\n  COPY +u .\nu:\n  RUN x\n", "Dockerfile:4: source +u names no artifact"},
		{head + "t:\n  BUILD +u\nu:\n  FROM +t\n", "Dockerfile:6: target t is made of itself: t needs u needs t"},
		{head + "t:\n  ARG n\n  BUILD +t --n=x$n\n", "Dockerfile:5: targets need each other more than 64 deep"},
		{head + "t:\n  DO +F\nF:\n  FUNCTION\n  DO +F\n", "Dockerfile:7: functions call each other more than 64 deep"},
		{head + "t:\n  BUILD +t n=x\n", "Dockerfile:4: argument is n=x: expected --NAME=VALUE"},
		{head + "t:\n  BUILD +t --n\n", "Dockerfile:4: argument --n has no value"},
		{head + "t:\n  ARG --required a\n", "Dockerfile:4: argument a is required: expected --build-arg a=VALUE"},
		{head + "t:\n  ARG --global a=b\n", "Dockerfile:4: ARG --global is in target t"},
		{head + "t:\n  ARG 1a=b\n", `Dockerfile:4: ARG has the name "1a"`},
		{head + "t:\n  ARG EARTHLY_GIT_HASH\n", "Dockerfile:4: EARTHLY_GIT_HASH is not known"},
		{head + "t:\n  LET ab=1\n  SET abc=2\n", "Dockerfile:5: abc is no variable of LET (did you mean ab?)"},
		{head + "t:\n  ENV a\n", "Dockerfile:4: ENV a has no value"},
		{head + "t:\n  WORKDIR a b\n", "Dockerfile:4: WORKDIR has 2 words"},
		{head + "t:\n  ARG a=${b:!c}\n", "Dockerfile:4: substitution of b has the modifier"},
		{head + "t:\n  SAVE ARTIFACT a AS LOCAL ../b\n", "Dockerfile:4: local path ../b leaves the folder"},
		{head + "t:\n  SAVE ARTIFACT a AS LOCAL\n", "Dockerfile:4: SAVE ARTIFACT is a AS LOCAL: expected AS LOCAL PATH"},
		{head + "t:\n  RUN --mount=type=bind,target=/x y\n", `Dockerfile:4: mount has the type "bind"`},
		{head + "t:\n  RUN --network=some y\n", `Dockerfile:4: network is "some"`},
		{head + "t:\n  FROM missing\n", "Dockerfile:4: find image missing: docker.io/library/missing:latest: not found"},
		{"VERSION 0.8\nt:\n  RUN x\n", "Dockerfile:3: RUN has no files to work on: expected FROM above it"},
		{"VERSION 0.8\nt:\n  IF [ -f x ]\n  END\n", "Dockerfile:3: IF has no files to run a command in"},
		{head + "t:\n  IF breaks\n  END\n", "Dockerfile:4: the step broke"},
		{head + "t:\n  ARG a=$(breaks)\n", "Dockerfile:4: the step broke"},
	} {
		_, err := buildFile(t, gateway(c.file), nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %s", c.file, err, c.want)
		} else if len(frontend.SourceErrorsIn(err)) == 0 {
			t.Errorf("%q: the error has no place: %v", c.file, err)
		}
	}
	_, err := buildFile(t, gateway(head+"t:\n  RUN --push x\n  COPY a b\n"), map[string]string{"build-arg:EARTHLY_PUSH": "true"})
	if err == nil || !strings.Contains(err.Error(), "Dockerfile:5: COPY stands behind RUN --push") {
		t.Errorf("a command behind a push: %v", err)
	}
	// All errors of a file are told.
	_, err = buildFile(t, gateway(head+"t:\n  RUNN x\n  LOCALLY\n"), nil)
	if list := frontend.SourceErrorsIn(err); len(list) != 2 {
		t.Errorf("%d errors, want 2: %v", len(list), err)
	}
	for opts, want := range map[string]string{"tets": `target "tets" is none of Dockerfile: expected one of test (did you mean test?)`, "F": "F is a function", "+test/x": "target test saves no artifacts"} {
		_, err := buildFile(t, gateway(head+"test:\n  RUN x\nF:\n  FUNCTION\n"), map[string]string{"target": opts})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("target %s: %v", opts, err)
		}
	}
	for file, want := range map[string]string{
		"VERSION 0.8\n":            "Dockerfile has no targets",
		"VERSION 0.8\n\\\n \v\\\n": "Dockerfile has no targets",
		head + "t:\n  LET a=" + strings.Repeat("x", 1000) + "\n" + strings.Repeat("  LET a=$a$a\n", 10) + strings.Repeat("  LET b=$a\n", 80): "become more than",
		strings.Repeat("#", maxSize+1):  "expected at most",
		head + "t:\n" + loops(5) + "\n": "more than 20000 commands carried out",
	} {
		if _, err := buildFile(t, gateway(file), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", file, err, want)
		}
	}
}

// TestRefused checks that what Earthly has and a build has not is refused with its
// line, and a word on what to write or why there is nothing.
func TestRefused(t *testing.T) {
	const head = "VERSION 0.8\nFROM alpine\n"
	written := map[string]string{
		"WITH DOCKER": "WITH DOCKER --pull x\n    RUN docker run x\n  END", "TRY": "TRY\n    RUN x\n  FINALLY\n    SAVE ARTIFACT x\n  END",
		"IMPORT": "IMPORT ./dir AS d",
	}
	check := func(file, at, why string) {
		t.Helper()
		_, err := buildFile(t, gateway(file), nil)
		if err == nil || !strings.Contains(err.Error(), at+why) {
			t.Errorf("%q: %v, want %s%s", file, err, at, why)
			return
		}
		if n := len(frontend.SourceErrorsIn(err)); n != 1 {
			t.Errorf("%q: %d errors, want one: %v", file, n, err)
		}
	}
	for verb, why := range refused() {
		text := written[verb]
		if text == "" {
			text = verb + " x"
		}
		check(head+"t:\n  "+text+"\n  RUN y\n", "Dockerfile:4: "+verb+" ", why)
		if !strings.Contains(why, ": expected ") && verb != "CATCH" && verb != "FINALLY" && verb != "STOPSIGNAL" && verb != "TRY" {
			t.Errorf("%s is refused without a word on what to write: %s", verb, why)
		}
	}
	check("VERSION 0.8\nIMPORT github.com/a/b AS b\nFROM alpine\nt:\n  RUN x\n", "Dockerfile:2: ", "IMPORT is not supported")
	for flag, why := range refusedFlags() {
		verb, name, _ := strings.Cut(flag, " ")
		check(head+"t:\n  "+verb+" "+name+" a b\n", "Dockerfile:4: "+flag+" ", why)
	}
}

// TestPush checks that what RUN --push says runs when it is asked for, and last.
func TestPush(t *testing.T) {
	const file = "VERSION 0.8\nFROM alpine\nall:\n  BUILD +part\n  RUN --push deploy\n  RUN --push tell\npart:\n  RUN --push upload\n  SAVE ARTIFACT /bin AS LOCAL bin\n"
	for args, want := range map[string]string{"": "", "true": "upload tell"} {
		gw := gateway(file)
		var mu sync.Mutex
		var order []string
		gw.Run = func(g *llb.Graph) (map[string]string, error) {
			mu.Lock()
			defer mu.Unlock()
			name := strings.TrimPrefix(g.Root.Vertex.Name(), "[+all] RUN ")
			order = append(order, strings.TrimPrefix(name, "[+part] RUN "))
			return nil, nil
		}
		if _, err := buildFile(t, gw, map[string]string{"build-arg:EARTHLY_PUSH": args}); err != nil {
			t.Fatal(err)
		}
		pushed := slices.DeleteFunc(slices.Clone(order), func(s string) bool { return strings.HasPrefix(s, "[") })
		if got := strings.Join(pushed, " "); got != want { // tell is made of deploy
			t.Errorf("push %q: ran %q", args, order)
		}
		if n := len(pushed); n > 0 && !slices.Equal(order[len(order)-n:], pushed) {
			t.Errorf("pushes are not the last: %q", order)
		}
		if warned := len(gw.Warnings()) > 0; warned == (args == "true") {
			t.Errorf("push %q: warnings %v", args, gw.Warnings())
		}
	}
}

func TestFromDockerfile(t *testing.T) {
	const body = "VERSION 0.8\nbuild:\n  ARG v=1\n  FROM DOCKERFILE --target=run --build-arg A=$v %s\n  ENV x=y\n"
	for words, want := range map[string]string{"./sub": "sub/Dockerfile", "-f docker/Other sub": "docker/Other", ".": "Dockerfile"} {
		gw := gateway(fmt.Sprintf(body, words))
		if _, err := buildFile(t, gw, nil); err != nil {
			t.Fatal(err)
		}
		calls := gw.Calls()
		if len(calls) != 1 || calls[0].Name != "dockerfile.v0" {
			t.Fatalf("%s: calls are %v", words, calls)
		}
		opts := map[string]string{"filename": want, "platform": "linux/amd64", "target": "run", "build-arg:A": "1"}
		if !maps.Equal(calls[0].Opts, opts) || calls[0].Inputs["context"] == nil || calls[0].Inputs["dockerfile"] == nil {
			t.Errorf("%s: called with %v and %v", words, calls[0].Opts, calls[0].Inputs)
		}
	}
}

// TestIgnoreFiles checks which file says what of the context is left out.
func TestIgnoreFiles(t *testing.T) {
	for _, c := range []struct{ files, want string }{
		{".earthlyignore .earthignore .dockerignore", ".earthlyignore"}, {".earthignore .dockerignore", ".earthignore"}, {".dockerignore", ".dockerignore"},
	} {
		gw := gateway("VERSION 0.8\nFROM alpine\nt:\n  COPY . .\n")
		for name := range strings.FieldsSeq(c.files) {
			gw.Files["local://context/"+name] = "of-" + name + "\n"
		}
		res, err := buildFile(t, gw, nil)
		if err != nil {
			t.Fatal(err)
		}
		if text := frontendtest.Text(t, res); !strings.Contains(text, `exclude="of-`+c.want+`"`) {
			t.Errorf("%s: %s", c.files, text)
		}
	}
}

// loops is FOR in FOR, n deep.
func loops(n int) string {
	items := strings.Repeat(" x", 20)
	return strings.Repeat("  FOR a IN"+items+"\n", n) + "  ARG b\n" + strings.Repeat("  END\n", n)
}

// TestConstant holds conditions that need no container, and some that do.
func TestConstant(t *testing.T) {
	f := &frame{vars: map[string]string{"A": "x", "EMPTY": "", "WORDS": "a b", "N": "7"}, out: &made{image: &sdk.Image{}}}
	for raw, want := range map[string]string{
		"true": "true", "false": "false", `[ "$A" = "x" ]`: "true", "[ $A == y ]": "false", `test "$A" != x`: "false",
		`[ -z "$EMPTY" ]`: "true", `[ -n "$EMPTY" ]`: "false", "[ ! $N -lt 8 ]": "false", "[ ${N} -ge 7 ]": "true", `[ "$WORDS" = 'a b' ]`: "true",
		"[ $EMPTY = x ]": "", "[ $WORDS = x ]": "", `[ "$UNSET" = x ]`: "", "[ -f /x ]": "", "[ $A = x ] && true": "", "[ $A -lt 8 ]": "",
		"[ `echo x` = x ]": "", "[ $(echo x) = x ]": "", "[ * = x ]": "", "[ ${A#x} = y ]": "", "[ a = b": "", "x": "", "[ {a} = a ]": "", `[ "a`: "", "[ $A = x ] # so": "",
	} {
		got := ""
		if value, ok := f.constant(raw); ok {
			got = strconv.FormatBool(value)
		}
		if got != want {
			t.Errorf("%s is %q, want %q", raw, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("VERSION 0.8\nFROM alpine\nt:\n  IF [ \"$x\" = y ]\n    COPY (+t/a --b=$(c)) d\n  ELSE IF z\n  END\n")
	f.Fuzz(func(t *testing.T, file string) {
		_, _ = buildFile(t, gateway(file), nil) // it must not panic, nor take long
	})
}
