// Command kiln builds container images.
//
// It is the whole program: the command line, and with "kiln daemon" the daemon.
// Each command has a file of its own; commands lists them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/log"
	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/namespace"
	"github.com/kiln-build/kiln/internal/session/export"
)

// Exit codes. They are documented in the help of kiln itself.
const (
	exitOK       = 0
	exitFailed   = 1   // the build, or what else was asked for, failed
	exitUsage    = 2   // the command line is wrong
	exitDaemon   = 125 // no daemon answers, or none could be started
	exitCanceled = 130 // interrupted
)

// version is set when a release is built.
var version = "0.1.0-dev"

// env is what a command sees of the world.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	pages          *firstError // stdout, for text that is written piece by piece; run sets it
	getenv         func(string) string
	uid            int            // of who started the program
	namespaces     namespace.Info // of the daemon
	// drive, if not nil, is the frontend of builds.
	drive client.BuildFunc
}

func main() {
	if len(os.Args) > 0 && os.Args[0] == executor.LateProgram {
		fmt.Fprintln(os.Stderr, executor.RunLate(os.Stdin, os.Stdout, os.Args[1:]))
		os.Exit(exitFailed)
	}
	e := &env{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, uid: os.Getuid()}
	heap := uint64(clientHeap)
	if isDaemon(os.Args) {
		heap = daemonHeap
		// What a container runtime makes in a file system, such as /dev, must not
		// depend on who started the daemon.
		syscall.Umask(0o022)
		// The daemon runs in namespaces of its own, and has to enter them
		// before anything else.
		if err := e.enterNamespaces(); err != nil {
			fmt.Fprintf(e.stderr, "%s: start daemon: %v\n", calledAs(os.Args), err)
			if calledAs(os.Args) == "buildkitd" {
				os.Exit(exitFailed)
			}
			os.Exit(exitDaemon)
		}
	} else {
		forgetPages() // a daemon does when it has started
	}
	economize(e.getenv, heap)
	if err := log.SetLevel("error"); err != nil { // containerd's packages: what matters comes as errors
		fmt.Fprintln(e.stderr, err)
	}
	ctx, stop := interruptible(context.Background(), patienceOf(os.Args), os.Exit)
	code := runAs(calledAs(os.Args))(ctx, e, os.Args)
	stop()
	os.Exit(code)
}

// patienceOf is how many interrupts a program takes in good order; BuildKit's take
// two. A daemon must: who stops a service signals all of its processes, and the
// outer one passes its signal on to the inner one.
func patienceOf(args []string) int {
	if calledAs(args) == "buildctl" || isDaemon(args) {
		return 2
	}
	return 1
}

// runAs returns what the program is under a name: BuildKit's programs by
// theirs, else kiln.
func runAs(name string) func(ctx context.Context, e *env, args []string) int {
	switch name {
	case "buildkitd":
		return runBuildkitd
	case "buildctl":
		return runBuildctl
	}
	return run
}

// isDaemon tells whether a command line runs the daemon, and does not merely ask
// for its help.
func isDaemon(args []string) bool {
	if calledAs(args) == "buildkitd" {
		return !asksOnly(args[1:])
	}
	if len(args) < 2 || args[1] != "daemon" {
		return false
	}
	return !slices.ContainsFunc(args[2:], func(a string) bool { return a == "--help" || a == "-h" || a == "help" })
}

// interruptible returns a context that the first interrupt cancels. One more than
// patience exits at once.
func interruptible(ctx context.Context, patience int, exit func(int)) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	signals := make(chan os.Signal, patience+1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	done := make(chan struct{})
	go func() {
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			case <-signals:
				if n >= patience {
					exit(exitCanceled)
				}
				cancel()
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		cancel()
	}
}

// run runs a command line and returns the exit code.
func run(ctx context.Context, e *env, args []string) int {
	spanned, span := startSpan(ctx, "kiln", e.getenv)
	e.pages = &firstError{to: e.stdout}
	err := rootCommand(e).Run(spanned, splitShorthands(args))
	if err == nil {
		err = e.pages.err
	}
	if !isDaemon(args) { // which has spans of its own
		span.end(err)
	}
	code := exitCode(ctx, err)
	var shown *shownError
	switch {
	case err == nil, errors.As(err, &shown) && shown.err == nil:
	case code == exitCanceled:
		fmt.Fprintln(e.stderr, "kiln: canceled")
	default:
		fmt.Fprintf(e.stderr, "kiln: %v\n", err)
	}
	return code
}

// firstError is a writer that remembers its first error, for those who do not look
// at each.
type firstError struct {
	to  io.Writer
	err error
}

func (w *firstError) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if w.err == nil {
		w.err = err
	}
	return n, err
}

func exitCode(ctx context.Context, err error) int {
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &usage):
		return exitUsage
	case ctx.Err() != nil:
		return exitCanceled
	case errors.Is(err, client.ErrUnreachable):
		return exitDaemon
	}
	return exitFailed
}

// usageError is a mistake on the command line.
type usageError struct {
	command string
	text    string
}

func (e *usageError) Error() string {
	return fmt.Sprintf("%s\nSee '%s --help'.", e.text, e.command)
}

func usagef(cmd *cli.Command, format string, args ...any) error {
	return &usageError{command: cmd.FullName(), text: fmt.Sprintf(format, args...)}
}

// shownError is an error that the user has been told of, but for err if there
// is one.
type shownError struct{ err error }

func (e *shownError) Error() string {
	if e.err == nil {
		return "failed"
	}
	return e.err.Error()
}

func (e *shownError) Unwrap() error { return e.err }

const rootDescription = `Kiln builds container images from Dockerfiles. It needs no set-up: where no
daemon answers, it starts one in the background, which leaves when it is idle.

Examples:
   kiln build -t hello .             build an image from ./Dockerfile
   kiln build -o out .               put the files of the result into ./out
   kiln build --push -t HOST/NAME .  build and push
   kiln history ls                   builds of the past
   kiln why                          why steps ran and were not cached
   kiln du                           what takes space
   kiln prune                        give space back

Which daemon is used:
   --host or KILN_HOST, else BUILDKIT_HOST, such as unix:///run/kiln/kiln.sock,
   tcp://HOST:PORT, ssh://HOST or docker-container://NAME. Without them, your own, which is started if need be.
   KILN_ROOT is the folder of its state.

How progress is shown:
   BUILDKIT_PROGRESS         as --progress, which counts more
   NO_COLOR                  anything: no colours
   BUILDKIT_COLORS           such as run=green:warning=yellow:error=255,0,0:cancel=light-blue
   BUILDKIT_TTY_LOG_LINES    lines of a running step's log in view, 6 without it
   TTY_DISPLAY_RATE          milliseconds between two pictures, 100 without it
   PROGRESS_NO_TRUNC=0       plain shortens long names of steps

Exit codes:
   0    success
   1    the build failed, or what else was asked for
   2    the command line is wrong
   125  no daemon answers, or none could be started
   130  interrupted`

// commands lists the commands, in the order of the help.
func commands(e *env) []*cli.Command {
	return []*cli.Command{
		buildCommand(e),
		duCommand(e),
		pruneCommand(e),
		cacheCommand(e),
		imagesCommand(e),
		historyCommand(e),
		whyCommand(e),
		workersCommand(e),
		daemonCommand(e),
		dockerfileCommand(e),
		frontendCommand(e),
		debugCommand(e),
		dialStdioCommand(e),
		versionCommand(e),
		helpCommand(e),
		completionCommand(e),
		completeCommand(e),
	}
}

func rootCommand(e *env) *cli.Command {
	root := &cli.Command{
		Name:        "kiln",
		Usage:       "build container images",
		Description: rootDescription,
		Version:     version,
		Writer:      e.pages,
		ErrWriter:   e.stderr,
		Reader:      e.stdin,
		Commands:    commands(e),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "host", Usage: "the daemon's `ADDRESS`: unix://PATH, tcp://HOST:PORT, ssh://HOST, docker-container://NAME …"},
			&cli.StringFlag{
				Name: "tlsdir", Sources: cli.EnvVars("KILN_TLS_DIR", "BUILDKIT_TLS_DIR"),
				Usage: "`FOLDER` of ca.pem, cert.pem and key.pem (or ca.crt, tls.crt and tls.key) for a daemon with TLS",
			},
		},
		ExitErrHandler: func(context.Context, *cli.Command, error) {}, // run does it
	}
	prepare(root)
	return root
}

// prepare gives a command and those below it our habits.
func prepare(cmd *cli.Command) {
	cmd.DisableSliceFlagSeparator = true
	cmd.HideHelpCommand = true // helpCommand is it, and a PATH may be called help
	for _, f := range cmd.Flags {
		if s, ok := f.(cli.StringerSetter); ok {
			s.SetStringer(flagHelp)
		}
	}
	cmd.OnUsageError = func(_ context.Context, c *cli.Command, err error, _ bool) error {
		return usagef(c, "%s", explainUsage(c, err))
	}
	if cmd.Action == nil {
		cmd.Action = unknownCommand
	}
	for _, sub := range cmd.Commands {
		prepare(sub)
	}
}

// flagHelp is a flag's line in the help: its names once, whether or not it may be
// repeated, so that the lines fit a terminal.
func flagHelp(f cli.Flag) string {
	names, usage, _ := strings.Cut(cli.FlagStringer(f), "\t")
	names, _, _ = strings.Cut(names, " [ ")
	return names + "\t" + usage
}

// explainUsage makes the library's message one that helps.
func explainUsage(cmd *cli.Command, err error) string {
	text := err.Error()
	if rest, ok := strings.CutPrefix(text, "invalid value "); ok {
		value, rest, _ := strings.Cut(rest, " for flag -")
		name, _, _ := strings.Cut(rest, ": ")
		return fmt.Sprintf("--%s %s: want %s", name, value, wantedBy(cmd, name))
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: "); ok {
		return name + " needs a value"
	}
	name, ok := strings.CutPrefix(text, "flag provided but not defined: ")
	if !ok {
		return text
	}
	name = strings.TrimLeft(name, "-")
	if advice := insteadOf(name); advice != "" && cmd.Name == "build" {
		return fmt.Sprintf("kiln build has no %s: %s", dashed(name), advice)
	}
	name = dashed(name)
	if s := nearestFlag(cmd, strings.TrimLeft(name, "-")); s != "" {
		return fmt.Sprintf("unknown flag %s. Did you mean %s?", name, s)
	}
	return "unknown flag " + name
}

// dashed is a flag's name as it is written.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// wantedBy says what values a flag takes.
func wantedBy(cmd *cli.Command, name string) string {
	for _, f := range cmd.Flags {
		if !slices.Contains(f.Names(), name) {
			continue
		}
		switch f.(type) {
		case *cli.BoolFlag:
			return "true or false"
		case *cli.DurationFlag:
			return "a duration such as 30s, 5m or 2h"
		}
		return "a number"
	}
	return "another value"
}

// nearestFlag returns the flag that a word most likely stands for, or "".
func nearestFlag(cmd *cli.Command, word string) string {
	best, bestDistance := "", len(word)/3+1
	for _, f := range cmd.Flags {
		for _, name := range f.Names() {
			if d := distance(word, name); len(name) > 1 && d <= bestDistance && (best == "" || d < bestDistance) {
				best, bestDistance = "--"+name, d
			}
		}
	}
	return best
}

// distance is the number of letters to change, add, remove or swap to make b of a.
func distance(a, b string) int {
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j]+cost, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}

// unknownCommand is what runs if no command is named, or none that there is.
func unknownCommand(_ context.Context, cmd *cli.Command) error {
	name := cmd.Args().First()
	if name == "" {
		return cli.ShowSubcommandHelp(cmd)
	}
	return noSuchCommand(cmd, name)
}

// noSuchCommand says that a command has no such command, and which could be meant.
func noSuchCommand(cmd *cli.Command, name string) error {
	best, bestDistance := "", len(name)/3+1
	for _, c := range cmd.Commands {
		if d := distance(name, c.Name); d <= bestDistance && !c.Hidden {
			best, bestDistance = c.Name, d
		}
	}
	if best != "" {
		return usagef(cmd, "unknown command %q. Did you mean %q?", name, best)
	}
	return usagef(cmd, "unknown command %q", name)
}

// noArgs refuses arguments.
func noArgs(cmd *cli.Command) error {
	if cmd.Args().Present() {
		return usagef(cmd, "unexpected argument %q", cmd.Args().First())
	}
	return nil
}

// writeFile writes a file as [export.WriteFile] does.
func writeFile(name string, data []byte) error {
	return export.WriteFile(name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}
