package conformance

import (
	"io/fs"
	"strings"
	"time"
)

// scenarios are changes that people make, and what is hard about caches.
func scenarios() []scenario {
	var all []scenario
	for _, list := range [][]scenario{contextScenarios(), instructionScenarios(), copyScenarios(), mountScenarios(), optionScenarios(), graphScenarios()} {
		all = append(all, list...)
	}
	return all
}

// contextScenarios change files.
func contextScenarios() []scenario {
	old := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	return []scenario{
		{name: "nothing changes"},
		{name: "unused file changes", change: map[string]string{"unused": "2\n"}},
		{name: "copied file changes", change: map[string]string{"src/a": "A\n"}},
		{name: "time of a copied file", time: map[string]time.Time{"src/a": old}},
		{name: "mode of a copied file", mode: map[string]fs.FileMode{"src/a": 0o755}},
		{name: "name of a copied file", change: map[string]string{"src/b": "", "src/c": "b\n"}},
		{name: "new file in a copied folder", change: map[string]string{"src/new": "new\n"}},
		{name: "file removed from a copied folder", change: map[string]string{"src/b": ""}},
		{name: "folder added to a copied folder", change: map[string]string{"src/deep/er/file": "x\n"}},
		{name: "script changes, its output does not", change: map[string]string{"tool.sh": "# say\necho tool\n"}},
		{name: "script and output change", change: map[string]string{"tool.sh": "echo better\n"}},
		{name: "file becomes a link to the same content", change: map[string]string{"src/b": ""}, links: [2]map[string]string{1: {"src/b": "a"}}},
		{
			name: "link leads elsewhere", links: [2]map[string]string{{"src/link": "a"}, {"src/link": "b"}},
		},
		{name: "contents are swapped", change: map[string]string{"src/a": "b\n", "src/b": "a\n"}},
		{name: "ignore file leaves out what nobody copies", change: map[string]string{".dockerignore": "unused\n"}},
		{name: "ignore file leaves out a copied file", change: map[string]string{".dockerignore": "src/b\n"}},
		{name: "change and back", change: map[string]string{"src/a": "a\n"}, time: map[string]time.Time{"src/a": old}},
	}
}

// instructionScenarios change the Dockerfile.
func instructionScenarios() []scenario {
	p := stages()["Dockerfile"]
	return []scenario{
		change("comments and space", p, "# says nothing\n\n"+edited("RUN cat /src/a > /made", "# why\nRUN   cat /src/a > /made")),
		change("stage is renamed", p, edited("AS tool", "AS gear", "--from=tool", "--from=gear")),
		change("environment changes", p, edited("MODE=x", "MODE=y")),
		change("environment comes later", p, edited("ENV MODE=x\nRUN echo $VERSION $MODE > /version", "RUN echo $VERSION x > /version\nENV MODE=x")),
		change("command changes in the middle", p, edited("cat /src/a > /made", "cat /src/a > /made; true")),
		change("command changes at the end", p, edited("cat /tool /made > /last", "cat /made /tool > /last")),
		change("instruction at the end is added", p, p+"RUN echo more > /more\n"),
		change("instruction at the end is left out", p+"RUN echo more > /more\n", p),
		change("instruction at the beginning of a stage is added", p, edited("ARG VERSION=1\n", "ARG VERSION=1\nRUN echo zero > /zero\n")),
		change("independent instructions change places", p, edited(
			"COPY --from=tool /tool /tool\nCOPY --from=app /made /version /", "COPY --from=app /made /version /\nCOPY --from=tool /tool /tool")),
		change("label", p, p+"LABEL a=b\n"),
		change("command and entry point", p+"CMD [\"a\"]\n", p+"CMD [\"b\"]\nENTRYPOINT [\"c\"]\n"),
		change("exposed port, volume, signal", p, p+"EXPOSE 80\nVOLUME /v\nSTOPSIGNAL 9\n"),
		change("working folder", edited("COPY src /src", "WORKDIR /w\nCOPY src /src"), edited("COPY src /src", "WORKDIR /v\nCOPY src /src")),
		change("user", p, edited("RUN cat /src/a > /made", "RUN touch /made && chmod 666 /made\nUSER 7\nRUN cat /src/a > /made\nUSER 0")),
		change("shell", p, edited("ENV MODE=x", "ENV MODE=x\nSHELL [\"/bin/sh\", \"-ec\"]")),
		change("shell form becomes exec form", edited("RUN sh /tool.sh > /tool", "RUN sh /tool.sh > /tool\nRUN true"),
			edited("RUN sh /tool.sh > /tool", "RUN sh /tool.sh > /tool\nRUN [\"/bin/sh\", \"-c\", \"true\"]")),
		change("here-document of a command", edited("RUN cat /src/a > /made", "RUN <<E\ncat /src/a > /made\nE"), edited("RUN cat /src/a > /made", "RUN <<E\ncat /src/b > /made\nE")),
		change("here-document of a file", edited("COPY src /src", "COPY src /src\nCOPY <<E /doc\none\nE"), edited("COPY src /src", "COPY src /src\nCOPY <<E /doc\ntwo\nE")),
		change("default of a build argument", p, edited("VERSION=1", "VERSION=2")),
		change("unused build argument is declared", p, edited("ARG VERSION=1", "ARG VERSION=1\nARG OTHER=1")),
		change("build argument is declared later", p, edited("ARG VERSION=1\nCOPY src /src\nRUN cat /src/a > /made", "COPY src /src\nRUN cat /src/a > /made\nARG VERSION=1")),
	}
}

// copyScenarios change what is copied, and how.
func copyScenarios() []scenario {
	wild := edited("COPY src /src", "COPY src/a* src/b* /src/")
	tree := edited("COPY --from=tool /tool /tool", "COPY --from=tool /out /out", "cat /tool /made", "cat /out/tool /made")
	making := func(run string) string {
		return strings.Replace(tree, "RUN sh /tool.sh > /tool", "RUN mkdir /out && sh /tool.sh > /out/tool"+run, 1)
	}
	linked := edited("COPY --from=tool /tool /tool", "COPY --link --from=tool /tool /tool")
	return []scenario{
		{name: "wildcard with a new match", files: dockerfile(wild), change: map[string]string{"src/a2": "x\n"}},
		{name: "wildcard without a new match", files: dockerfile(wild), change: map[string]string{"src/c": "x\n"}},
		change("owner of a copy", edited("COPY src /src", "COPY --chown=1:1 src /src"), edited("COPY src /src", "COPY --chown=2:2 src /src")),
		change("mode of a copy", edited("COPY src /src", "COPY --chmod=700 src /src"), edited("COPY src /src", "COPY --chmod=750 src /src")),
		change("destination of a copy", stages()["Dockerfile"], edited("COPY --from=tool /tool /tool", "COPY --from=tool /tool /tool2", "cat /tool /made", "cat /tool2 /made")),
		change("source stage makes more that is not copied", making(""), making(" && echo x > /elsewhere")),
		change("source stage makes more that is copied", making(""), making(" && echo x > /out/more")),
		change("linked copy below another instruction", linked, strings.Replace(linked, "FROM base\nCOPY --link", "FROM base\nRUN echo zero > /zero\nCOPY --link", 1)),
		{name: "linked copy of what changes", files: dockerfile(linked), change: map[string]string{"tool.sh": "echo better\n"}},
		change("copy becomes a linked copy", stages()["Dockerfile"], linked),
		{name: "copy that leaves out what changes", files: dockerfile(edited("COPY src /src", "COPY --exclude=b src /src")), change: map[string]string{"src/b": "B\n"}},
		{name: "copy with parents", files: dockerfile(edited("COPY src /src", "COPY --parents src/a /")), change: map[string]string{"src/b": "B\n"}},
		{name: "added file changes", files: dockerfile(edited("COPY src /src", "ADD src /src")), change: map[string]string{"src/b": "B\n"}},
	}
}

// mountScenarios change mounts and what is in them.
func mountScenarios() []scenario {
	with := func(flags string) string { return edited("RUN cat /src/a > /made", "RUN "+flags+" cat /src/a > /made") }
	secret := func(id, file string) []string { return []string{"--secret", "id=" + id + ",env=" + file} }
	return []scenario{
		{name: "mounted file changes", files: dockerfile(with("--mount=target=/m,source=src")), change: map[string]string{"src/b": "B\n"}},
		{name: "file beside a mounted one changes", files: dockerfile(with("--mount=target=/m,source=tool.sh")), change: map[string]string{"unused": "2\n"}},
		{name: "mounted context, unused file changes", files: dockerfile(with("--mount=target=/m")), change: map[string]string{"unused": "2\n"}},
		{name: "writable mount", files: dockerfile(with("--mount=target=/m,source=src,rw")), change: map[string]string{"src/b": "B\n"}},
		{name: "mounted stage with the same output", files: dockerfile(with("--mount=from=tool,source=/tool,target=/m")), change: map[string]string{"tool.sh": "# say\necho tool\n"}},
		{name: "mounted stage with other output", files: dockerfile(with("--mount=from=tool,source=/tool,target=/m")), change: map[string]string{"tool.sh": "echo better\n"}},
		change("target of a mount", with("--mount=target=/m,source=src"), with("--mount=target=/n,source=src")),
		change("cache mount is added", with(""), with("--mount=type=cache,target=/c")),
		change("id of a cache mount", with("--mount=type=cache,target=/c,id=one"), with("--mount=type=cache,target=/c,id=two")),
		fewer("who may use a cache mount at the same time changes nothing in it",
			change("sharing of a cache mount", with("--mount=type=cache,target=/c"), with("--mount=type=cache,target=/c,sharing=locked"))),
		{name: "cache mount of a stage that changes", files: dockerfile(with("--mount=type=cache,target=/c,from=tool")), change: map[string]string{"tool.sh": "echo better\n"}},
		{
			name: "value of a secret", files: dockerfile(with("--mount=type=secret,id=s")),
			args: [2][]string{secret("s", "HOME"), secret("s", "PATH")},
		},
		{
			name: "id of a secret", files: dockerfile(with("--mount=type=secret,id=s")), change: dockerfile(with("--mount=type=secret,id=r")),
			args: [2][]string{secret("s", "HOME"), secret("r", "HOME")},
		},
		change("size of a memory mount", with("--mount=type=tmpfs,target=/t"), with("--mount=type=tmpfs,target=/t,size=1m")),
		change("network of a step", with(""), with("--network=none")),
	}
}

// optionScenarios change options of the build.
func optionScenarios() []scenario {
	ports := dockerfile("FROM scratch\nCOPY src /src\nCOPY unused /\n")
	return []scenario{
		{name: "build argument of a late step", args: opts("", "build-arg:VERSION=2")},
		{name: "build argument that nobody declares", args: opts("", "build-arg:NOBODY=2")},
		{name: "same value as the default", args: opts("", "build-arg:VERSION=1")},
		{name: "no cache at all", args: opts("", "no-cache=")},
		{name: "no cache for one stage", args: opts("", "no-cache=tool")},
		{name: "no cache for the last but one stage", args: opts("", "no-cache=app")},
		{name: "target, then all", args: opts("target=tool", "")},
		{name: "all, then a target", args: opts("", "target=app")},
		{name: "other name of the Dockerfile", files: map[string]string{"other": stages()["Dockerfile"]}, args: opts("", "filename=other")},
		{name: "label of the build", args: opts("", "label:a=b")},
		{name: "extra host", args: opts("", "add-hosts=h=10.0.0.1")},
		{name: "hostname", args: opts("", "hostname=h")},
		{name: "limit of open files", args: opts("", "ulimit=nofile=1000:1000")},
		{name: "size of shared memory", args: opts("", "shm-size=70000000")},
		{name: "time of the source", args: opts("build-arg:SOURCE_DATE_EPOCH=1", "build-arg:SOURCE_DATE_EPOCH=2")},
		{name: "two platforms, file changes", files: ports, args: opts("platform=linux/amd64,linux/arm64", "platform=linux/amd64,linux/arm64"), change: map[string]string{"unused": "2\n"}},
		{name: "platform is added", files: ports, args: opts("platform=linux/amd64", "platform=linux/amd64,linux/arm64")},
		{name: "platform is left out", files: ports, args: opts("platform=linux/amd64,linux/arm64", "platform=linux/arm64")},
	}
}

// graphScenarios change how stages depend on each other.
func graphScenarios() []scenario {
	p := stages()["Dockerfile"]
	idle := "FROM base AS idle\nRUN echo idle > /idle\n"
	diamond := func(left string) string {
		return "FROM base AS root\nCOPY src /src\nFROM root AS left\nRUN " + left + " > /left\nFROM root AS right\nRUN echo right > /right\n" +
			"FROM root\nCOPY --from=left /left /\nCOPY --from=right /right /\nRUN cat /left /right > /both\n"
	}
	chain := func(first string) string {
		text := "FROM base AS s0\nRUN " + first + " > /f\n"
		for _, n := range []string{"1", "2", "3", "4"} {
			text += "FROM base AS s" + n + "\nCOPY --from=s" + string(n[0]-1) + " /f /f\nRUN echo " + n + " >> /f\n"
		}
		return text
	}
	return []scenario{
		change("stage that nobody needs is added", p, idle+p),
		change("stage that nobody needs changes", idle+p, strings.Replace(idle, "echo idle", "echo busy", 1)+p),
		change("stages change places", p, func() string {
			tool, rest, _ := strings.Cut(strings.TrimPrefix(p, "FROM base AS tool\n"), "FROM base AS app\n")
			app, last, _ := strings.Cut(rest, "FROM base\n")
			return "FROM base AS app\n" + app + "FROM base AS tool\n" + tool + "FROM base\n" + last
		}()),
		change("diamond, one side changes", diamond("echo left"), diamond("echo other")),
		change("diamond, one side changes and makes the same", diamond("echo left"), diamond("printf 'left\\n'")),
		change("chain, first changes and makes the same", chain("echo x"), chain("printf 'x\\n'")),
		change("chain, first changes", chain("echo x"), chain("echo y")),
		{name: "two builds at once after a change", change: map[string]string{"src/a": "A\n"}, twice: true},
		{name: "two builds at once of what is known", twice: true},
		{name: "base is a stage of ours, which changes", files: dockerfile("FROM base AS b\nCOPY src/b /b\nFROM b\nCOPY src/a /a\nRUN cat /a > /made\n"), change: map[string]string{"src/b": "B\n"}},
		change("base gets an environment", "FROM base AS b\nFROM b\nRUN echo x > /x\n", "FROM base AS b\nENV A=b\nFROM b\nRUN echo x > /x\n"),
		change("two stages that do the same", p, strings.Replace(p, "FROM base\nCOPY --from=tool", "FROM base AS twin\nCOPY tool.sh /tool.sh\nRUN sh /tool.sh > /tool\nFROM base\nCOPY --from=twin", 1)),
	}
}
