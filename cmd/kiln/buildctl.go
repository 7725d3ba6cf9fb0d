package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v3"
	"google.golang.org/grpc/codes"

	"github.com/kiln-build/kiln/client"
)

// buildctl is the program under the name buildctl: the flags, the output, the exit
// codes and what errors say are those of BuildKit's program of that name, so that
// scripts, drivers and probes written for it work.
type buildctl struct {
	*env
	log *slog.Logger
}

// buildkitAddress is where BuildKit's programs look for their daemon.
func buildkitAddress(e *env) string {
	if v := e.getenv("BUILDKIT_HOST"); v != "" {
		return v
	}
	if runtime := e.getenv("XDG_RUNTIME_DIR"); e.uid != 0 {
		if runtime == "" {
			runtime = fmt.Sprintf("/run/user/%d", e.uid)
		}
		return "unix://" + filepath.Join(runtime, "buildkit", "buildkitd.sock")
	}
	return "unix:///run/buildkit/buildkitd.sock"
}

// runBuildctl runs a command line of buildctl and returns the exit code: 1 for each
// error, but for a command that is not there.
func runBuildctl(ctx context.Context, e *env, args []string) int {
	b := &buildctl{env: e, log: slog.New(slog.DiscardHandler)}
	if len(args) > 1 && (args[1] == "--version" || args[1] == "-v") {
		fmt.Fprintln(e.stdout, "buildctl", modulePath, "v"+version, revision())
		return exitOK
	}
	ctx, span := startSpan(ctx, "buildctl", e.getenv)
	err := b.root().Run(ctx, args)
	span.end(err)
	var coded cli.ExitCoder
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &coded):
		fmt.Fprintln(e.stderr, err)
		return coded.ExitCode()
	}
	var failure *client.Error
	if errors.As(err, &failure) {
		for _, reason := range failure.Denials {
			if reason != "" {
				fmt.Fprintf(e.stderr, "policy deny: %s\n", reason)
			}
		}
	}
	fmt.Fprintf(e.stderr, "error: %s\n", errorText(err))
	return exitFailed
}

// modulePath is what the program is made of.
const modulePath = "github.com/kiln-build/kiln"

// errorText says an error of a daemon as BuildKit's programs do: its code before the
// message, if it has one.
func errorText(err error) string {
	text := err.Error()
	var e *client.Error
	if !errors.As(err, &e) || e.Code == codes.OK || e.Code == codes.Unknown {
		return text
	}
	coded := e.Code.String() + ": " + e.Message
	if i := strings.Index(text, client.ErrUnreachable.Error()); i >= 0 && errors.Is(err, client.ErrUnreachable) {
		return text[:i] + coded
	}
	if before, ok := strings.CutSuffix(text, e.Message); ok {
		return before + coded
	}
	return text
}

func (b *buildctl) root() *cli.Command {
	root := &cli.Command{
		Name:                  "buildctl",
		Usage:                 "build utility",
		Version:               version,
		EnableShellCompletion: true,
		Writer:                b.stdout,
		ErrWriter:             b.stderr,
		Reader:                b.stdin,
		ExitErrHandler:        func(context.Context, *cli.Command, error) {}, // runBuildctl does it
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "debug", Usage: "enable debug output in logs"},
			&cli.StringFlag{Name: "addr", Usage: "buildkitd address", Value: buildkitAddress(b.env)},
			&cli.StringFlag{Name: "log-format", Usage: "log formatter: json or text", Value: "text"},
			&cli.StringFlag{Name: "tlsservername", Usage: "buildkitd server name for certificate validation"},
			&cli.StringFlag{Name: "tlscacert", Usage: "CA certificate for validation"},
			&cli.StringFlag{Name: "tlscert", Usage: "client certificate"},
			&cli.StringFlag{Name: "tlskey", Usage: "client key"},
			&cli.StringFlag{
				Name: "tlsdir",
				Usage: "directory containing CA certificate, client certificate, and client key. " +
					"Supported file names are (ca.pem, cert.pem, key.pem) or (ca.crt, tls.crt, tls.key)",
				Sources: cli.EnvVars("BUILDKIT_TLS_DIR"),
			},
			&cli.IntFlag{Name: "timeout", Usage: "timeout backend connection after value seconds", Value: 5},
			&cli.BoolFlag{Name: "wait", Usage: "block RPCs until the connection becomes available"},
		},
		Commands: []*cli.Command{
			b.duCommand(), b.pruneCommand(), b.pruneHistoriesCommand(), b.buildCommand(), b.debugCommand(), b.dialStdioCommand(),
		},
		Before: b.setLog,
	}
	likeBuildctl(root)
	return root
}

// likeBuildctl keeps commas in the values of flags that may be repeated, and tells of a
// flag that there is not as buildctl does.
func likeBuildctl(cmd *cli.Command) {
	cmd.DisableSliceFlagSeparator = true
	cmd.OnUsageError = func(_ context.Context, c *cli.Command, err error, _ bool) error {
		fmt.Fprintf(c.Root().ErrWriter, "Incorrect Usage: %v\n\n", err)
		if c.Root() == c { // of other commands it does not tell the usage
			return errors.Join(err, cli.ShowRootCommandHelp(c))
		}
		return err
	}
	for _, sub := range cmd.Commands {
		likeBuildctl(sub)
	}
}

func (b *buildctl) setLog(ctx context.Context, cmd *cli.Command) (context.Context, error) {
	options := &slog.HandlerOptions{Level: slog.LevelInfo}
	if cmd.Bool("debug") {
		options.Level = slog.LevelDebug
	}
	switch format := cmd.String("log-format"); format {
	case "json":
		b.log = slog.New(slog.NewJSONHandler(b.stderr, options))
	case "text", "":
		b.log = slog.New(slog.NewTextHandler(b.stderr, options))
	default:
		return ctx, fmt.Errorf("unsupported log type %q", format)
	}
	return ctx, nil
}

// address is where the daemon listens. A script's --addr "$ADDR" without a value
// means the usual place, as it does for BuildKit's program.
func (b *buildctl) address(cmd *cli.Command) string {
	if v := cmd.String("addr"); v != "" {
		return v
	}
	return buildkitAddress(b.env)
}

// connect returns a client of the daemon that the global flags name.
func (b *buildctl) connect(ctx context.Context, cmd *cli.Command) (*client.Client, error) {
	address := b.address(cmd)
	files, err := tlsFiles(cmd, address)
	if err != nil {
		return nil, err
	}
	opt := client.Options{OnClose: nameSpan(ctx, cmd.FullName())}
	if files.CA != "" || files.Cert != "" || files.Key != "" {
		if opt.TLS, err = client.TLSConfig(files); err != nil {
			return nil, err
		}
	}
	if !strings.Contains(address, "://") {
		address = "tcp://" + address // as gRPC takes it
	}
	c, err := client.New(address, opt)
	if err != nil {
		return nil, err
	}
	if cmd.Bool("wait") {
		if d := time.Duration(cmd.Int("timeout")) * time.Second; d > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, d)
			defer cancel()
		}
		if err := c.Wait(ctx); err != nil {
			if errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%s: %w", codes.DeadlineExceeded, err)
			}
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// withClient calls f with a client.
func (b *buildctl) withClient(ctx context.Context, cmd *cli.Command, f func(*client.Client) error) (err error) {
	c, err := b.connect(ctx, cmd)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return f(c)
}

// tlsFiles are the files of the TLS flags.
func tlsFiles(cmd *cli.Command, address string) (client.TLSFiles, error) {
	f := client.TLSFiles{
		CA: cmd.String("tlscacert"), Cert: cmd.String("tlscert"), Key: cmd.String("tlskey"), ServerName: cmd.String("tlsservername"),
	}
	if f.ServerName == "" {
		u, err := url.Parse(address)
		if err != nil {
			return f, err
		}
		f.ServerName = u.Hostname()
	}
	dir := cmd.String("tlsdir")
	if dir == "" {
		return f, nil
	}
	if f.CA != "" || f.Cert != "" || f.Key != "" {
		return f, errors.New("cannot specify tlsdir and tlscacert/tlscert/tlskey at the same time")
	}
	for _, file := range []struct {
		to             *string
		name, fallback string
	}{{&f.CA, "ca.pem", "ca.crt"}, {&f.Cert, "cert.pem", "tls.crt"}, {&f.Key, "key.pem", "tls.key"}} {
		path := filepath.Join(dir, file.name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			path = filepath.Join(dir, file.fallback)
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return f, fmt.Errorf("directory did not contain one of the needed files: %s or %s", file.name, file.fallback)
		} else if err != nil {
			return f, err
		}
		*file.to = path
	}
	return f, nil
}

// formatFlag is the flag of commands whose output is made by a template.
func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Usage: "Format the output using the given Go template, e.g, '{{json .}}'"}
}

// printer writes values by a template.
type printer struct {
	out    io.Writer
	format *format
}

// newPrinter reads a template; "json" stands for all as JSON.
func newPrinter(out io.Writer, text string) (*printer, error) {
	if text == "json" {
		text = "{{json .}}"
	}
	f, err := parseFormat(text)
	if err != nil {
		return nil, err
	}
	return &printer{out, f}, nil
}

func jsonText(v any) (string, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return strings.TrimSpace(buf.String()), err
}

// print writes a value and ends the line.
func (p *printer) print(v any) error {
	if err := p.format.execute(p.out, v); err != nil {
		return err
	}
	_, err := fmt.Fprintln(p.out)
	return err
}

func (b *buildctl) dialStdioCommand() *cli.Command {
	return &cli.Command{
		Name:   "dial-stdio",
		Usage:  "Proxy the stdio stream to the daemon connection. Should not be invoked manually.",
		Hidden: true,
		Action: func(_ context.Context, cmd *cli.Command) error {
			return dialStdio(b.env, b.address(cmd), time.Duration(cmd.Int("timeout"))*time.Second)
		},
	}
}

// dialStdio connects standard input and output to the daemon at a unix socket.
func dialStdio(e *env, address string, timeout time.Duration) error {
	scheme, socket, ok := strings.Cut(address, "://")
	if !ok {
		return fmt.Errorf("invalid address %s", address)
	}
	if scheme != "unix" {
		return fmt.Errorf("invalid address %s (expected unix://, got %s://)", address, scheme)
	}
	return client.DialStdio(socket, timeout, e.stdin, e.stdout)
}
