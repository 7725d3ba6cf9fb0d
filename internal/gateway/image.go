package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/llb"
)

// ImageFrontend runs images as frontends (BuildKit's frontend/gateway).
type ImageFrontend struct {
	allowed []string // repositories; empty is all
	builtin map[string]frontend.Frontend
	service *Service
	// Silence is how long a frontend may take to say its first word: a program that
	// takes longer is most likely none.
	Silence time.Duration
}

// NewImageFrontend returns the frontend that runs images of the given
// repositories, or any if there are none. It serves after Attach. A frontend of
// builtin, by its repository, serves without its image unless a request names that
// by a digest, or puts something else in its place.
func NewImageFrontend(repositories []string, builtin map[string]frontend.Frontend) (*ImageFrontend, error) {
	f := &ImageFrontend{builtin: builtin, Silence: 2 * time.Minute}
	for _, r := range repositories {
		named, err := reference.ParseNormalizedNamed(r)
		if err != nil {
			return nil, fmt.Errorf(`read allowedRepositories of frontend."gateway.v0": %q: %w`, r, err)
		}
		f.allowed = append(f.allowed, reference.TrimNamed(named).Name())
	}
	return f, nil
}

// Attach sets the service that answers the frontends. It is called before the
// first build.
func (f *ImageFrontend) Attach(s *Service) { f.service = s }

// Build runs the image that the option "source" names.
func (f *ImageFrontend) Build(ctx context.Context, req frontend.Request, gw frontend.Gateway) (*frontend.Result, error) {
	br, ok := gw.(*build.Bridge)
	if !ok || f.service == nil {
		return nil, errors.New("frontend images can be run by a daemon alone")
	}
	if _, ok := req.Opts["gateway-devel"]; ok {
		return nil, errors.New("development gateway is no longer supported")
	}
	source, ok := req.Opts["source"]
	if !ok {
		return nil, errors.New("no source specified for gateway")
	}
	if err := f.check(source); err != nil {
		return nil, err
	}
	own, err := f.own(source, req)
	if err != nil {
		return nil, err
	}
	if own != nil {
		return own.Build(ctx, req, br)
	}
	image, err := findImage(ctx, br, source, req)
	if err != nil {
		return nil, err
	}
	if err := image.checkCaps(req); err != nil {
		return nil, err
	}
	return f.run(ctx, br, image, req)
}

// check refuses images that the daemon's configuration does not allow.
func (f *ImageFrontend) check(source string) error {
	if len(f.allowed) == 0 {
		return nil
	}
	named, err := reference.ParseNormalizedNamed(source)
	if err != nil {
		return fmt.Errorf("read frontend image %q: %w", source, err)
	}
	if !slices.Contains(f.allowed, reference.TrimNamed(named).Name()) {
		return fmt.Errorf("'%s' is not an allowed gateway source", source)
	}
	return nil
}

// own is the built-in frontend for the request; nil if there is none.
func (f *ImageFrontend) own(source string, req frontend.Request) (frontend.Frontend, error) {
	named, err := reference.ParseNormalizedNamed(source)
	if err != nil {
		return nil, fmt.Errorf("read frontend image %q: %w", source, err)
	}
	_, isPinned := named.(reference.Digested)
	for k := range req.Opts {
		if replaced, ok := strings.CutPrefix(k, "context:"); ok {
			replaced, _, _ = strings.Cut(replaced, "::")
			isPinned = isPinned || replaced == shortName(named)
		}
	}
	if isPinned {
		return nil, nil
	}
	return f.builtin[reference.FamiliarName(named)], nil
}

// shortName is how options name an image.
func shortName(named reference.Named) string {
	return strings.TrimSuffix(reference.FamiliarString(named), ":latest")
}

// errServerClosed ends a frontend whose connection has ended before it.
var errServerClosed = errors.New("frontend grpc server closed unexpectedly")

// How long a frontend whose connection has ended may take to exit: with a result
// returned, and without one, when it most likely crashes.
const (
	leaving  = 10 * time.Second
	crashing = time.Second
)

// run runs the frontend's container. What the frontend says went wrong counts
// more than how its container failed, and that more than a result.
func (f *ImageFrontend) run(ctx context.Context, br *build.Bridge, image *frontendImage, req frontend.Request) (*frontend.Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	program, err := f.program(ctx, br, image)
	if err != nil {
		return nil, err
	}
	env, err := f.environment(br, req)
	if err != nil {
		return nil, err
	}
	stdio, conn, spoke := newFrontendConn()
	log := &lateLog{sink: br.Sink(), name: "[frontend] " + image.name}
	defer log.end()
	type answer struct {
		result *frontend.Result
		err    error
	}
	answers := make(chan answer, 1)
	serving, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		res, err := f.service.ServeFrontend(serving, br, req.Inputs, conn)
		answers <- answer{res, err}
		wait := leaving
		if res == nil && err == nil {
			wait = crashing
		}
		select {
		case <-time.After(wait):
			cancel(errServerClosed)
		case <-serving.Done(): // the frontend has exited
		}
	}()
	go func() {
		select {
		case <-spoke:
		case <-serving.Done():
		case <-time.After(f.Silence):
			cancel(fmt.Errorf("image %s has said nothing for %v: expected a frontend, which speaks to the daemon by its standard output", image.name, f.Silence))
		}
	}()
	c, task, err := program.Start(ctx, env, executor.IO{Stdin: stdio.in, Stdout: stdio.out, Stderr: log})
	if c != nil {
		defer func() { _ = c.Release() }() // how it ended is known from its process
	}
	if err == nil {
		err = task.Wait(context.WithoutCancel(ctx)) // ctx ends it, too
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	stdio.out.Close()
	stop()
	got := <-answers
	if said := conn.babble(); said != "" {
		log.explain(fmt.Sprintf("image %s wrote %q to its standard output, which is for calls to the daemon alone: expected a frontend, which logs to its standard error\n", image.name, said))
	}
	switch {
	case got.err != nil:
		return nil, got.err
	case err != nil:
		return nil, err
	case got.result == nil:
		return nil, errors.New("no result for incomplete build")
	default:
		return got.result, nil
	}
}

// program is the frontend's: the image's entrypoint, or /run, with the image's files,
// which it may change for itself.
func (f *ImageFrontend) program(ctx context.Context, br *build.Bridge, image *frontendImage) (*build.Program, error) {
	def, err := image.graph.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode frontend image %s: %w", image.name, err)
	}
	metadata, err := proto.Marshal(def)
	if err != nil {
		return nil, fmt.Errorf("encode frontend image %s: %w", image.name, err)
	}
	spec := build.ContainerSpec{
		Mounts: []build.ContainerMount{{Mount: llb.Mount{Dest: "/"}, Ref: image.files}},
		Given:  []build.GivenFolder{{Dest: "/run/config/buildkit/metadata", Files: map[string][]byte{"frontend.bin": metadata}}},
	}
	if none, err := strconv.ParseBool(image.config.Labels["moby.buildkit.frontend.network.none"]); err == nil && none {
		spec.Network = llb.NetNone
	}
	p := build.Process{Args: []string{"/run"}, Env: image.config.Env, Cwd: "/"}
	if image.config.Entrypoint != nil {
		p.Args = image.config.Entrypoint
	}
	if image.config.WorkingDir != "" {
		p.Cwd = image.config.WorkingDir
	}
	key := ""
	if image.digest != "" && spec.Network == llb.NetNone {
		// The one says what the config is, the other which files were found by it.
		key = image.digest + " " + string(image.graph.Root.Vertex.Digest())
	}
	program, err := br.NewProgram(ctx, key, spec, p)
	if err != nil {
		return nil, fmt.Errorf("run frontend %s: %w", image.name, err)
	}
	return program, nil
}

// environment is what the frontend is told of the build.
func (f *ImageFrontend) environment(br *build.Bridge, req frontend.Request) (env []string, err error) {
	for n, k := range slices.Sorted(maps.Keys(req.Opts)) {
		env = append(env, fmt.Sprintf("BUILDKIT_FRONTEND_OPT_%d=%s=%s", n, k, req.Opts[k]))
	}
	workers, err := f.service.host.FrontendWorkers()
	if err != nil {
		return nil, fmt.Errorf("list workers of the daemon: %w", err)
	}
	// Frontends show the product in what they say about old daemons.
	return append(env, "BUILDKIT_SESSION_ID="+br.SessionID(), "BUILDKIT_WORKERS="+string(workers), "BUILDKIT_EXPORTEDPRODUCT=buildkit"), nil
}

// frontendImage is a frontend as an image.
type frontendImage struct {
	name   string // as the user wrote it
	digest string // "" if unknown
	config ocispecs.ImageConfig
	graph  *llb.Graph
	files  *build.Ref
}

// findImage finds and fetches the image, or what the user put in its place.
func findImage(ctx context.Context, br *build.Bridge, source string, req frontend.Request) (*frontendImage, error) {
	image := &frontendImage{name: source}
	found, err := findReplacement(ctx, br, image, req)
	if err == nil && !found {
		err = findByName(ctx, br, image, req.Worker)
	}
	if err != nil {
		return nil, err
	}
	ref, err := br.Solve(ctx, image.graph)
	if err != nil {
		return nil, err
	}
	var isRef bool
	if image.files, isRef = ref.(*build.Ref); !isRef {
		return nil, errors.New("the frontend's image has no files")
	}
	files, err := image.files.Layer(ctx)
	if err != nil {
		return nil, err
	}
	if files == nil {
		return nil, errors.New("gateway source didn't return default result")
	}
	return image, nil
}

// findByName finds an image by its name, for the worker's platform.
func findByName(ctx context.Context, br *build.Bridge, image *frontendImage, worker ocispecs.Platform) error {
	named, err := reference.ParseNormalizedNamed(image.name)
	if err != nil {
		return fmt.Errorf("read frontend image %q: %w", image.name, err)
	}
	return useImage(ctx, br, image, worker, &llb.SourceOp{Identifier: "docker-image://" + reference.TagNameOnly(named).String()})
}

// useImage resolves an image to be run, and pins it.
func useImage(ctx context.Context, br *build.Bridge, image *frontendImage, worker ocispecs.Platform, o *llb.SourceOp) error {
	meta, err := br.ResolveSource(ctx, o, frontend.ResolveOpt{Platform: &worker, LogName: "resolve image config for " + o.Identifier})
	if err != nil {
		return err
	}
	var config ocispecs.Image
	if err := json.Unmarshal(meta.Config, &config); err != nil {
		return fmt.Errorf("decode config of frontend image %s: %w", image.name, err)
	}
	pinned := &llb.SourceOp{Identifier: meta.Op.Identifier, Attrs: map[string]string{}}
	maps.Copy(pinned.Attrs, meta.Op.Attrs)
	if scheme, ref, _ := strings.Cut(pinned.Identifier, "://"); scheme == "docker-image" {
		pinned.Attrs[llb.AttrImageRecordType] = "frontend"
		if meta.Digest != "" && !strings.Contains(ref, "@") {
			pinned.Identifier += "@" + string(meta.Digest)
		}
	}
	image.digest, image.config = string(meta.Digest), config.Config
	image.graph = &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: pinned, Platform: &worker}}}
	return nil
}

// inputsCap is the capability to take inputs.
const inputsCap = "moby.buildkit.frontend.inputs"

// takesInputs are frontends that take inputs although they are older than the
// label: docker/dockerfile 1.1.6 and 1.1.7, and the experimental ones of these
// versions.
func takesInputs(digest string) bool {
	switch digest {
	case "sha256:9ac1c43a60e31dca741a6fe8314130a9cd4c4db0311fbbc636ff992ef60ae76d",
		"sha256:080bd74d8778f83e7b670de193362d8c593c8b14f5c8fb919d28ee8feda0d069",
		"sha256:60543a9d92b92af5088fb2938fb09b2072684af8384399e153e137fe081f8ab4",
		"sha256:de85b2f3a3e8a2f7fe48e8e84a65f6fdd5cd5183afa6412fff9caa6871649c44":
		return true
	}
	return false
}

// checkCaps refuses a request that needs capabilities which the frontend's image
// does not declare.
func (image *frontendImage) checkCaps(req frontend.Request) error {
	has := readFrontendCaps(image.config.Labels["moby.buildkit.frontend.caps"])
	if takesInputs(image.digest) {
		has = append(has, inputsCap)
	}
	wants := readFrontendCaps(req.Opts["frontend.caps"])
	if len(req.Inputs) > 0 {
		wants = append(wants, inputsCap)
	}
	for _, c := range wants {
		if !slices.Contains(has, c) {
			return &frontend.UnsupportedError{Kind: "capability", Name: c}
		}
	}
	return nil
}

// readFrontendCaps reads a list such as "a,b+version".
func readFrontendCaps(list string) (names []string) {
	for c := range strings.SplitSeq(list, ",") {
		if name, _, _ := strings.Cut(c, "+"); name != "" {
			names = append(names, name)
		}
	}
	return names
}
