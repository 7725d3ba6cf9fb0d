package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	digest "github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v3"
	"golang.org/x/term"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/client"
)

const buildDescription = `Builds what a Dockerfile says. PATH is the build context: the files that COPY and
ADD may use. It is a directory, the URL of an archive or a Dockerfile, or "-" for
a Dockerfile or a tar (also compressed) on standard input. Files that match a
pattern in .dockerignore (or in NAME.dockerignore, for -f NAME) are left out.

Without -o, the image goes into the daemon's store.

Examples:
   kiln build -t hello .
      an image from ./Dockerfile
   kiln build -f app.Dockerfile --target test --build-arg GO=1.26 .
      another Dockerfile, only up to a stage, with a build argument
   kiln build -t registry.example/app:1 --push .
      build and push, with the credentials of "docker login"
   kiln build --platform linux/amd64,linux/arm64 -t app -o type=oci,dest=app.tar .
      an image for two platforms, as an archive
   kiln build -o out .
      the files of the result in ./out; "-o -" writes them as a tar to standard output
   kiln build --check .
      look for mistakes in the Dockerfile; the exit code is 1 if there are any
   kiln build --call outline .
      what the build takes: arguments, secrets and agents; "targets" lists the stages
   kiln build --secret id=token,src=token.txt .
      for RUN --mount=type=secret,id=token; also id=token,env=VARIABLE.
      With cache-key=true, steps that use it run again when its value changes
      (a keyed hash of it counts, whose key stays in the daemon)
   kiln build --ssh default .
      your ssh agent, for RUN --mount=type=ssh
   kiln build --build-context base=docker-image://alpine:3.20 .
      another context, for FROM base and COPY --from=base; also a directory, a URL
      or oci-layout://DIRECTORY
   printf 'FROM scratch\nCOPY --from=busybox /bin/sh /sh\n' | kiln build -
      a Dockerfile from standard input, without a context
   my-program | kiln build --local context=. -o type=image,name=HOST/NAME,push=true
      LLB that a program made with the llb package, and a directory that it reads
   kiln build --frontend gateway.v0 --opt source=HOST/FRONTEND --local context=.
      what a frontend makes`

func buildCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "build",
		Usage:       "build an image from a Dockerfile",
		ArgsUsage:   "PATH",
		Description: buildDescription,
		Flags:       buildFlags(),
		Action:      func(ctx context.Context, cmd *cli.Command) error { return runBuild(ctx, e, cmd) },
	}
}

func buildFlags() []cli.Flag {
	list := func(name, usage string, aliases ...string) cli.Flag {
		return &cli.StringSliceFlag{Name: name, Aliases: aliases, Usage: usage}
	}
	text := func(name, usage string, aliases ...string) cli.Flag {
		return &cli.StringFlag{Name: name, Aliases: aliases, Usage: usage}
	}
	flag := func(name, usage string, aliases ...string) cli.Flag {
		return &cli.BoolFlag{Name: name, Aliases: aliases, Usage: usage}
	}
	return append(habitFlags(),
		text("file", "`FILE` is the Dockerfile (default: PATH/Dockerfile); - is standard input", "f"),
		list("tag", "`NAME` of the image; may be repeated", "t"),
		text("target", "the `STAGE` to build (default: the last)"),
		list("build-arg", "`NAME=VALUE` of an ARG; without =VALUE, that of the environment; may be repeated"),
		list("platform", "`PLATFORM` to build for, such as linux/arm64; several by commas"),
		list("label", "`NAME=VALUE` that the image is labelled with; may be repeated"),
		list("annotation", "`KEY=VALUE` that the image is annotated with; index:KEY=VALUE goes to the index; may be repeated"),
		list("output", "where the `RESULT` goes: DIR, -, or type=image|oci|docker|local|tar[,dest=PATH][,KEY=VALUE]; may be repeated", "o"),
		flag("push", "push the image"),
		text("provenance", "tell how the result came about; `VALUE` is true, or mode=min|max[,version=v0.2][,builder-id=URI]"),
		text("sbom", "list the software in the result; `VALUE` is true, or generator=IMAGE"),
		list("attest", "the same; `VALUE` is type=provenance|sbom[,KEY=VALUE]; may be repeated"),
		list("build-context", "another context `NAME=VALUE`: PATH, URL, docker-image://, oci-layout://; may be repeated"),
		flag("no-cache", "run every step again"),
		list("no-cache-filter", "run the steps of a `STAGE` again; may be repeated"),
		flag("pull", "look for newer images even if there is one"),
		list("cache-from", "take cache from `PLACE`: NAME in a registry, or type=registry|local|s3|azblob|gha[,KEY=VALUE]; may be repeated"),
		text("cache-verify", "execute a `SHARE` of the steps that are cached again, such as 5%, and tell what differs"),
		list("cache-to", "write cache to `PLACE`: NAME in a registry, or type=registry|local|s3|azblob|gha|inline[,KEY=VALUE]; may be repeated"),
		list("secret", "a `SECRET` for RUN: id=NAME[,src=FILE|,env=VARIABLE][,cache-key=true]; may be repeated"),
		list("ssh", "an ssh `AGENT` for RUN: default or NAME=SOCKET; may be repeated"),
		list("add-host", "a line of /etc/hosts for RUN: `HOST=IP`; may be repeated"),
		text("network", "`NETWORK` of RUN: default, none or host"),
		text("shm-size", "`SIZE` of /dev/shm for RUN, such as 64m"),
		list("ulimit", "`LIMIT` for RUN: NAME=SOFT[:HARD]; may be repeated"),
		text("memory", "most memory of a RUN, a `SIZE` such as 2g", "m"),
		list("resource", "limit of a RUN: `KEY=VALUE` with memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus or cpuset-mems; may be repeated"),
		text("cgroup-parent", "`GROUP` of control groups that RUN is below"),
		list("allow", "allow a `RIGHT`: network.host, security.insecure or device; may be repeated"),
		flag("proxy-network", "have steps reach the network through the daemon's proxy alone, which asks the source policy and records what they got"),
		text("frontend", "`NAME` of the frontend that makes the build (default: dockerfile.v0)"),
		list("opt", "option of the frontend: `KEY=VALUE`; may be repeated"),
		list("local", "let LLB or a frontend read a directory: `NAME=DIR`; may be repeated"),
		list("oci-layout", "let LLB or a frontend read an OCI layout: `NAME=DIR`; may be repeated"),
		text("source-policy-file", "rules about sources in `FILE`, as JSON"),
		flag("check", "look for mistakes in the Dockerfile, and do not build"),
		text("call", "ask a `QUESTION` about the Dockerfile: build|check|outline|targets[,format=json][,ignorestatus=true]"),
		text("progress", "show progress as `KIND`: auto, tty, plain, rawjson or quiet"),
		flag("quiet", "show nothing but the image's digest", "q"),
		text("iidfile", "write the image's id to `FILE`"),
		text("metadata-file", "write what is known of the result to `FILE`, as JSON"),
	)
}

// runBuild is "kiln build".
func runBuild(ctx context.Context, e *env, cmd *cli.Command) error {
	mode, err := buildMode(e, cmd)
	if err != nil {
		return err
	}
	asked, err := parseCall(cmd)
	if err != nil {
		return err
	}
	opt, err := awaitOptions(ctx, e, cmd)
	if err != nil {
		return err
	}
	if err := checkPlaces(cmd); err != nil {
		return err
	}
	if mode != client.DisplayRawJSON && mode != client.DisplayQuiet {
		for _, dir := range withoutCache(opt.CacheImports) {
			fmt.Fprintf(e.stderr, "kiln: warning: --cache-from: there is no cache in %s, so none comes from there\n", dir)
		}
	}
	display, err := client.NewDisplay(client.DisplayOptions{Mode: mode, Out: e.stderr, Getenv: e.getenv})
	if err != nil {
		return usagef(cmd, "%v", err)
	}
	finish := func(err error) error { return endDisplay(ctx, display, mode, err) }
	if asked != nil {
		return runCall(ctx, e, cmd, asked, opt, display, finish)
	}
	result, err := solve(ctx, e, cmd, opt, display)
	if err := finish(err); err != nil {
		return err
	}
	return report(e, cmd, result)
}

// endDisplay ends the display of what has ended with err. That nobody could see the
// progress is no failure, unless it was for a program.
func endDisplay(ctx context.Context, d client.Display, mode client.DisplayMode, err error) error {
	shown := d.Finish(failureOf(ctx, err))
	if err == nil && shown != nil && mode == client.DisplayRawJSON {
		return fmt.Errorf("show progress: %w", shown)
	}
	return err
}

// awaitOptions reads the flags, and maybe standard input: an interrupt does not
// wait for that.
func awaitOptions(ctx context.Context, e *env, cmd *cli.Command) (client.SolveOpt, error) {
	type read struct {
		opt client.SolveOpt
		err error
	}
	done := make(chan read, 1)
	go func() {
		opt, err := solveOptions(e, cmd)
		done <- read{opt, err}
	}()
	select {
	case r := <-done:
		return r.opt, r.err
	case <-ctx.Done():
		return client.SolveOpt{}, context.Cause(ctx)
	}
}

// solve finds the daemon and builds.
func solve(ctx context.Context, e *env, cmd *cli.Command, opt client.SolveOpt, sink client.Sink) (_ *client.Result, err error) {
	c, err := connect(ctx, e, cmd)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if e.drive != nil {
		return c.Build(ctx, opt, e.drive, sink)
	}
	return c.Solve(ctx, opt, sink)
}

// buildMode is how progress is shown.
func buildMode(e *env, cmd *cli.Command) (client.DisplayMode, error) {
	word := cmd.String("progress")
	if word == "" {
		word = e.getenv("BUILDKIT_PROGRESS")
	}
	if cmd.Bool("quiet") {
		if cmd.IsSet("progress") && cmd.String("progress") != string(client.DisplayQuiet) {
			return "", usagef(cmd, "--quiet and --progress %s exclude each other", word)
		}
		word = string(client.DisplayQuiet)
	}
	mode, err := client.ParseDisplayMode(word)
	if err != nil {
		return "", usagef(cmd, "%v", err)
	}
	return mode, nil
}

// failureOf is what a display shows of an error.
func failureOf(ctx context.Context, err error) *client.Failure {
	if err == nil {
		return nil
	}
	f := &client.Failure{Message: err.Error(), Canceled: ctx.Err() != nil}
	var e *client.Error
	if errors.As(err, &e) {
		f.Vertex, f.Sources, f.ExitCode = digest.Digest(e.Vertex), e.Sources, e.ExitCode
		f.Canceled = f.Canceled || e.Code == codes.Canceled
	}
	return f
}

// checkPlaces looks for the folders of files that are written at the end, so that
// nobody waits for a build to learn of a typing mistake.
func checkPlaces(cmd *cli.Command) error {
	for _, flag := range []string{"iidfile", "metadata-file"} {
		if name := cmd.String(flag); name != "" {
			if err := checkPlace(name); err != nil {
				return fmt.Errorf("--%s %s: %w", flag, name, err)
			}
		}
	}
	return nil
}

// checkPlace tells why a file of this name could not be written, as far as is known
// without trying.
func checkPlace(name string) error {
	switch {
	case !isDir(filepath.Dir(name)):
		return fmt.Errorf("there is no folder %s: make it first", filepath.Dir(name))
	case isDir(name):
		return errors.New("it is a folder: want a file's name")
	}
	return nil
}

// report tells of the result, where the user wants it.
func report(e *env, cmd *cli.Command, r *client.Result) error {
	id := r.Response["containerimage.config.digest"]
	if id == "" {
		id = r.Response["containerimage.digest"]
	}
	if name := cmd.String("iidfile"); name != "" {
		if id == "" {
			return errors.New("write --iidfile: the build has no image")
		}
		if err := writeFile(name, []byte(id)); err != nil {
			return fmt.Errorf("write --iidfile: %w", err)
		}
	}
	if name := cmd.String("metadata-file"); name != "" {
		data, err := metadataJSON(r)
		if err == nil {
			err = writeFile(name, data)
		}
		if err != nil {
			return fmt.Errorf("write --metadata-file: %w", err)
		}
	}
	if cmd.Bool("quiet") && id != "" {
		if _, err := fmt.Fprintln(e.stdout, id); err != nil {
			return err
		}
	}
	return nil
}

// isTerminal tells whether w is a terminal.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// isDevice tells whether a stream is a terminal, or a device in place of one such as
// /dev/null: nobody has piped something into it.
func isDevice(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
