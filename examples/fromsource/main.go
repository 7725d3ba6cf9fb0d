// Command fromsource writes the LLB that builds Kiln and runc from their
// sources, each in a container of the Go distribution, and puts the programs
// into one image:
//
//	go run ./examples/fromsource | kiln build --output type=local,dest=out
//	go run ./examples/fromsource -kiln local | kiln build --local kiln-src=. --output type=local,dest=out
//
// It is a program like any other: what differs from build to build are flags,
// and what is needed twice is a function.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strings"

	"github.com/kiln-build/kiln/llb"
)

// options are the program's flags.
type options struct {
	golang, packages   string
	kiln, kilnRepo     string
	runc, runcRepo     string
	runcTags, goProxy  string
	kilnPath, runcPath string
}

func main() {
	var o options
	flag.StringVar(&o.golang, "go", "docker.io/library/golang:1.26-alpine", "`IMAGE` that has Go, or local:NAME for a directory of the client")
	flag.StringVar(&o.packages, "packages", "gcc musl-dev linux-headers libseccomp-dev libseccomp-static make", "`PACKAGES` to add to it; none if empty")
	flag.StringVar(&o.goProxy, "goproxy", "", "the GOPROXY of the builds; Go's default if empty")
	flag.StringVar(&o.kiln, "kiln", "main", "`VERSION` of Kiln: a branch, tag or commit, or local for the directory kiln-src of the client")
	flag.StringVar(&o.kilnRepo, "kiln-repo", "github.com/kiln-build/kiln", "`REPOSITORY` of Kiln")
	flag.StringVar(&o.kilnPath, "kiln-package", "./cmd/kiln", "`PACKAGE` of its program")
	flag.StringVar(&o.runc, "runc", "v1.4.0", "`VERSION` of runc, or local for the directory runc-src")
	flag.StringVar(&o.runcRepo, "runc-repo", "github.com/opencontainers/runc", "`REPOSITORY` of runc")
	flag.StringVar(&o.runcPath, "runc-package", ".", "`PACKAGE` of its program")
	flag.StringVar(&o.runcTags, "runc-tags", "seccomp netgo osusergo", "build `TAGS` of runc")
	flag.Parse()
	if err := write(o); err != nil {
		fmt.Fprintln(os.Stderr, "fromsource:", err)
		os.Exit(1)
	}
}

func write(o options) error {
	base := goBase(o)
	kiln := goBuild(base, source(o.kilnRepo, o.kiln, "kiln-src"),
		llb.Shlexf("go build -trimpath -o /out/kiln %s", o.kilnPath), llb.AddEnv("CGO_ENABLED", "0"), llb.WithCustomName("build kiln "+o.kiln))
	runc := goBuild(base, source(o.runcRepo, o.runc, "runc-src"),
		llb.Shlexf("go build -trimpath -tags %q -o /out/kiln-runc %s", o.runcTags, o.runcPath), llb.WithCustomName("build runc "+o.runc))
	image := llb.Scratch().With(copyAll(base, kiln, "/bin/"), copyAll(base, runc, "/bin/"))
	def, err := image.Marshal(context.Background(), llb.LinuxAmd64)
	if err != nil {
		return fmt.Errorf("marshal: %w", err)
	}
	return llb.WriteTo(def, os.Stdout)
}

// goBase is a root with Go and what else compiling needs.
func goBase(o options) llb.State {
	var base llb.State
	if name, ok := strings.CutPrefix(o.golang, "local:"); ok {
		base = llb.Local(name)
	} else {
		base = llb.Image(o.golang)
	}
	base = base.
		AddEnv("PATH", "/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin").
		AddEnv("GOPATH", "/go").AddEnv("GOCACHE", "/go/cache").AddEnv("GOTOOLCHAIN", "local").AddEnv("GOFLAGS", "-buildvcs=false")
	if o.goProxy != "" {
		base = base.AddEnv("GOPROXY", o.goProxy)
	}
	if o.packages == "" {
		return base
	}
	return base.Run(llb.Shlex("apk add --no-cache "+o.packages), llb.WithCustomName("add "+o.packages)).Root()
}

// source is a version of a repository, or a directory of the client.
func source(repository, version, local string) llb.State {
	if version == "local" {
		return llb.Local(local)
	}
	return llb.Git(repository, version)
}

// goBuild runs a command over sources and returns what it leaves in /out. The
// compiler's caches are kept from one build to the next.
func goBuild(base, src llb.State, command llb.RunOption, opts ...llb.RunOption) llb.State {
	run := base.Dir("/src").Run(append(opts, command,
		llb.AddMount("/go/cache", llb.Scratch(), llb.AsPersistentCacheDir("go-build", llb.CacheMountShared)),
		llb.AddMount("/go/pkg/mod", llb.Scratch(), llb.AsPersistentCacheDir("go-mod", llb.CacheMountShared)),
	)...)
	run.AddMount("/src", src, llb.Readonly)
	return run.AddMount("/out", llb.Scratch())
}

// copyAll copies all files of src to a folder.
func copyAll(tools, src llb.State, dest string) llb.StateOption {
	return func(s llb.State) llb.State { return copy(tools, src, "/.", s, dest) }
}

// copy copies with the program cp of a container that sees both states as
// mounts. The second mount's State is what the copying has made of dest.
func copy(tools, src llb.State, from string, dest llb.State, to string) llb.State {
	run := tools.Run(llb.Args([]string{"/bin/sh", "-c", `mkdir -p "$2" && cp -a "$1" "$2"`, "copy", "/src" + from, "/dest" + to}),
		llb.WithCustomNamef("copy programs to %s", to))
	run.AddMount("/src", src, llb.Readonly)
	return run.AddMount("/dest", dest)
}
