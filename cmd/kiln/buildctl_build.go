package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/llb/pb"
)

func (b *buildctl) buildCommand() *cli.Command {
	list := func(name, usage string, aliases ...string) cli.Flag {
		return &cli.StringSliceFlag{Name: name, Aliases: aliases, Usage: usage}
	}
	text := func(name, usage string) cli.Flag { return &cli.StringFlag{Name: name, Usage: usage} }
	return &cli.Command{
		Name:    "build",
		Aliases: []string{"b"},
		Usage:   "build",
		UsageText: `
	To build and push an image using Dockerfile:
	  $ buildctl build --frontend dockerfile.v0 --opt target=foo --opt build-arg:foo=bar --local context=. --local dockerfile=. --output type=image,name=docker.io/username/image,push=true
	`,
		Flags: []cli.Flag{
			list("output", "Define exports for build result, e.g. --output type=image,name=docker.io/username/image,push=true", "o"),
			&cli.StringFlag{Name: "progress", Usage: "Set type of progress (auto, plain, tty, rawjson). Use plain to show container output", Value: "auto"},
			text("trace", "Path to trace file. Defaults to no tracing."),
			list("local", "Allow build access to the local directory"),
			list("oci-layout", "Allow build access to the local OCI layout"),
			text("frontend", "Define frontend used for build"),
			list("opt", "Define custom options for frontend, e.g. --opt target=foo --opt build-arg:foo=bar"),
			&cli.BoolFlag{Name: "no-cache", Usage: "Disable cache for all the vertices"},
			list("export-cache", "Export build cache, e.g. --export-cache type=registry,ref=example.com/foo/bar, or --export-cache type=local,dest=path/to/dir"),
			list("import-cache", "Import build cache, e.g. --import-cache type=registry,ref=example.com/foo/bar, or --import-cache type=local,src=path/to/dir"),
			list("secret", "Secret value exposed to the build. Format id=secretname,src=filepath"),
			list("allow", "Allow extra privileged entitlement, e.g. network.host, security.insecure, device"),
			list("ssh", "Allow forwarding SSH agent or a raw Unix socket to the builder. Format default|<id>[=<socket>[,raw=false]|<key>[,<key>]]"),
			text("metadata-file", "Output build metadata (e.g., image digest) to a file as JSON"),
			text("source-policy-file", "Read source policy file from a JSON file"),
			&cli.BoolFlag{Name: "proxy-network", Usage: "Run build with proxy network enforcement"},
			text("ref-file", "Write build ref to a file"),
			list("registry-auth-tlscontext", "Overwrite TLS configuration when authenticating with registries, e.g. "+
				"--registry-auth-tlscontext host=https://myserver:2376,insecure=false,ca=/path/to/my/ca.crt,cert=/path/to/my/cert.crt,key=/path/to/my/key.crt"),
			text("debug-json-cache-metrics", "Where to output json cache metrics, use 'stdout' or 'stderr' for standard (error) output."),
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return b.withClient(ctx, cmd, func(c *client.Client) error { return b.build(ctx, cmd, c) })
		},
	}
}

func (b *buildctl) build(ctx context.Context, cmd *cli.Command, c *client.Client) (err error) {
	start := time.Now()
	opt, def, err := b.buildOptions(cmd)
	if err != nil {
		return err
	}
	for _, dir := range withoutCache(opt.CacheImports) {
		b.log.Warn("local cache import at " + dir + " skipped: there is no index.json")
	}
	if name := cmd.String("ref-file"); name != "" {
		defer func() { err = errors.Join(err, writeFile(name, []byte(opt.Ref))) }()
	}
	display, err := b.display(cmd.String("progress"), b.stderr)
	if err != nil {
		return err
	}
	sinks := fan{display}
	if name := cmd.String("trace"); name != "" {
		f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		trace, err := client.NewDisplay(client.DisplayOptions{Mode: client.DisplayRawJSON, Out: f})
		if err != nil {
			return err
		}
		b.log.Info("tracing logs to " + name)
		sinks = append(sinks, trace)
	}
	var metrics *cacheMetrics
	if cmd.String("debug-json-cache-metrics") != "" {
		metrics = newCacheMetrics(start)
		sinks = append(sinks, metrics)
	}
	result, sub, err := solveThroughGateway(ctx, c, opt, def, sinks)
	_ = display.Finish(failureOf(ctx, err)) // that nobody could see the progress is no failure to buildctl
	if metrics != nil {
		err = errors.Join(err, b.writeMetrics(cmd.String("debug-json-cache-metrics"), metrics))
	}
	if err != nil {
		return err
	}
	if name := cmd.String("metadata-file"); name != "" && result.Response != nil {
		if err := writeMetadata(name, result.Response); err != nil {
			return err
		}
	}
	return writeSubresult(b.stdout, sub)
}

// fan hands events on to several.
type fan []client.Sink

func (f fan) Emit(e client.Event) {
	for _, s := range f {
		s.Emit(e)
	}
}

// solveThroughGateway builds as the driver of the build, which has the daemon solve a
// definition or ask a frontend. sub is what a subrequest answers.
func solveThroughGateway(ctx context.Context, c *client.Client, opt client.SolveOpt, def *pb.Definition, sink client.Sink) (_ *client.Result, sub map[string][]byte, err error) {
	frontend := opt.Frontend
	result, err := c.Build(ctx, opt, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		req := client.SolveRequest{
			Definition: def, Frontend: frontend, FrontendOpt: maps.Clone(opt.FrontendAttrs), CacheImports: g.BuildOpts().CacheImports,
		}
		_, isSub := req.FrontendOpt["requestid"]
		if _, given := req.FrontendOpt["frontend.caps"]; isSub && !given {
			req.FrontendOpt["frontend.caps"] = "moby.buildkit.frontend.subrequests"
		}
		made, err := g.Solve(ctx, req)
		if err == nil && isSub {
			sub = made.Metadata
		}
		return made, err
	}, sink)
	var failure *client.Error
	if errors.As(err, &failure) && !strings.HasPrefix(err.Error(), "listing workers") {
		err = fmt.Errorf("failed to solve: %w", err)
	}
	return result, sub, err
}

// buildOptions reads the flags of a build; def is nil if a frontend makes it.
func (b *buildctl) buildOptions(cmd *cli.Command) (opt client.SolveOpt, def *pb.Definition, err error) {
	opt = client.SolveOpt{
		Frontend: cmd.String("frontend"), Entitlements: cmd.StringSlice("allow"), ProxyNetwork: cmd.Bool("proxy-network"),
		Ref: strings.ToLower(rand.Text())[:25],
	}
	a := &opt.Attach
	if a.RegistryTLS, err = registryTLS(cmd.StringSlice("registry-auth-tlscontext")); err != nil {
		return opt, nil, err
	}
	if a.Agents, err = sshAgents(cmd.StringSlice("ssh")); err != nil {
		return opt, nil, err
	}
	if a.Secrets, err = secretSources(cmd.StringSlice("secret")); err != nil {
		return opt, nil, err
	}
	if err := checkEntitlements(opt.Entitlements); err != nil {
		return opt, nil, err
	}
	if opt.Exports, err = b.exports(cmd.StringSlice("output")); err != nil {
		return opt, nil, err
	}
	if opt.CacheExports, err = b.caches("export-cache", cmd.StringSlice("export-cache")); err != nil {
		return opt, nil, err
	}
	if opt.CacheImports, err = b.caches("import-cache", cmd.StringSlice("import-cache")); err != nil {
		return opt, nil, err
	}
	if name := cmd.String("source-policy-file"); name != "" {
		if opt.SourcePolicy, err = client.ReadSourcePolicy(name); err != nil {
			return opt, nil, err
		}
	}
	if opt.FrontendAttrs, err = frontendOpts(b.env, cmd.StringSlice("opt")); err != nil {
		return opt, nil, fmt.Errorf("invalid opt: %w", err)
	}
	if a.Dirs, err = localDirs(cmd.StringSlice("local")); err != nil {
		return opt, nil, fmt.Errorf("invalid local: %w", err)
	}
	if a.Stores, err = layoutStores(cmd.StringSlice("oci-layout")); err != nil {
		return opt, nil, fmt.Errorf("invalid oci-layout: %w", err)
	}
	if opt.Frontend != "" {
		if cmd.Bool("no-cache") {
			opt.FrontendAttrs["no-cache"] = ""
		}
		return opt, nil, nil
	}
	def, err = stdinDefinition(b.env, cmd.Bool("no-cache"))
	return opt, def, err
}

// errNoDefinition says that standard input is empty.
var errNoDefinition = errors.New("empty definition sent to build. Specify --frontend instead?")

// stdinDefinition reads LLB from standard input.
func stdinDefinition(e *env, noCache bool) (*pb.Definition, error) {
	if isDevice(e.stdin) {
		return nil, errors.New("please specify --frontend or pipe LLB definition to stdin")
	}
	def, err := readDefinition(e, "-")
	if err != nil {
		return nil, fmt.Errorf("failed to parse input: %w", err)
	}
	if len(def.GetDef()) == 0 {
		return nil, errNoDefinition
	}
	if !noCache {
		return def, nil
	}
	if def.Metadata == nil {
		def.Metadata = map[string]*pb.OpMetadata{}
	}
	for _, raw := range def.GetDef() {
		id := string(digest.FromBytes(raw))
		if def.Metadata[id] == nil {
			def.Metadata[id] = &pb.OpMetadata{}
		}
		def.Metadata[id].IgnoreCache = true
	}
	return def, nil
}

// writeMetadata writes what is known of a result as JSON: values that are an object
// of JSON in base64 become one.
func writeMetadata(name string, response map[string]string) error {
	out := map[string]any{}
	for k, v := range response {
		out[k] = v
		raw, err := base64.StdEncoding.DecodeString(v)
		var object map[string]any
		if err == nil && json.Unmarshal(raw, &object) == nil && len(object) > 0 {
			out[k] = json.RawMessage(raw)
		}
	}
	data, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(name, data)
}

// writeSubresult writes what a subrequest answers: its text, or else all of it.
func writeSubresult(out io.Writer, sub map[string][]byte) error {
	if text, ok := sub["result.txt"]; ok {
		_, err := out.Write(text)
		return err
	}
	for _, k := range slices.Sorted(maps.Keys(sub)) {
		if strings.HasPrefix(k, "result.") {
			if _, err := fmt.Fprintf(out, "%s\n%s\n", k, sub[k]); err != nil {
				return err
			}
		}
	}
	return nil
}
