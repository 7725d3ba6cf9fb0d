package op

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/contenthash"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/llb"
)

// Entitlements that an operation may need (BuildKit's util/entitlements).
const (
	EntitlementNetworkHost      = "network.host"
	EntitlementSecurityInsecure = "security.insecure"
)

// Entitlements are the kinds of entitlements that there are.
func Entitlements() []string {
	return []string{EntitlementNetworkHost, EntitlementSecurityInsecure, EntitlementDevice}
}

// mostMounts is how many mounts a step may have. All mounts that the daemon has made are
// counted by the kernel together.
const mostMounts = 1_000

// windowsPath is the PATH on Windows where the image sets none (BuildKit's
// util/system/path.go).
const windowsPath = `c:\Windows\System32;c:\Windows;C:\Windows\System32\WindowsPowerShell\v1.0`

// execOp runs a process in a container.
type execOp struct {
	base
	op      *llb.ExecOp
	proxied bool          // the network is the proxy's
	devices []string      // that the run gets, by their full names
	keyed   []string      // ids of secrets whose values count, see [Job.KeyedSecrets]
	secrets []keyedSecret // set by CacheMap
	trace   string        // what spans of the process are part of
}

func newExecOp(b base, o *llb.ExecOp, job *Job) (*execOp, error) {
	if o.Network == llb.NetHost {
		if err := job.allows(EntitlementNetworkHost); err != nil {
			return nil, err
		}
	}
	if o.Security == llb.SecurityInsecure {
		if err := job.allows(EntitlementSecurityInsecure); err != nil {
			return nil, err
		}
	}
	if len(o.Mounts) > mostMounts {
		return nil, fmt.Errorf("%d mounts: expected at most %d", len(o.Mounts), mostMounts)
	}
	if err := checkContentCache(o); err != nil {
		return nil, err
	}
	e := &execOp{base: b, op: o, proxied: job.proxied(o.Network), trace: job.trace(b.vertex.Digest())}
	if job != nil {
		e.keyed = job.KeyedSecrets
	}
	var err error
	e.devices, err = b.worker.devices(o, b.vertex.Name(), job)
	return e, err
}

func (o *execOp) CacheMap(ctx context.Context) (solver.CacheMap, error) {
	d, err := execDigest(o.op, o.platform())
	if err != nil {
		return solver.CacheMap{}, err
	}
	if o.proxied {
		d = saltProxied(d)
	}
	if d, err = o.withSecrets(ctx, d); err != nil {
		return solver.CacheMap{}, err
	}
	cm := solver.CacheMap{Digest: d, Deps: make([]solver.Dep, len(o.vertex.Inputs))}
	for i := range cm.Deps {
		cm.Deps[i] = o.dep(i)
	}
	return cm, nil
}

// dep says how input i decides the result: by content where the process sees no
// more of it than what is mounted, and cannot make it part of its result
// (BuildKit's cache/contenthash).
func (o *execOp) dep(i int) solver.Dep {
	var paths []string
	byContent := true
	for _, m := range o.op.Mounts {
		if m.Input != i || m.Kind != llb.MountBind && m.Kind != llb.MountCache {
			continue
		}
		paths = append(paths, path.Join("/", m.Selector))
		// The root counts by content only where that was asked for: it is large.
		wanted := m.ContentCache == llb.ContentOn || m.ContentCache == llb.ContentDefault && m.Dest != "/"
		byContent = byContent && wanted && sealed(m)
	}
	dep := solver.Dep{Selector: selectorDigest(paths)}
	if byContent && len(paths) > 0 {
		dep.Digest = func(ctx context.Context, r solver.Result) (string, error) {
			var sels []contenthash.Selector
			for _, p := range paths {
				sels = append(sels, contenthash.Selector{Path: p, FollowLinks: true})
			}
			ref, _ := r.(*layer.Ref)
			return o.checksum(ctx, i, ref, sels)
		}
	}
	return dep
}

func (o *execOp) Exec(ctx context.Context, inputs []solver.Result) (_ []solver.Result, err error) {
	if err := o.runnable(); err != nil {
		return nil, err
	}
	release, err := o.worker.step(ctx, o.vertex)
	if err != nil {
		return nil, err
	}
	defer release()
	ctx = withSessions(ctx)
	ms := &mountSet{worker: o.worker, inputs: refs(inputs), description: strings.Join(o.op.Args, " "), cwd: o.op.Cwd}
	defer func() {
		if err != nil {
			err = o.failure(ctx, err, ms)
		}
		err = errors.Join(err, ms.discard())
	}()
	if err := ms.mountAll(ctx, o.op.Mounts); err != nil {
		return nil, err
	}
	spec, err := o.spec(ctx, ms)
	if err != nil {
		return nil, err
	}
	run := o.run
	if o.proxied {
		run = o.runProxied
	}
	if err := run(ctx, spec); err != nil {
		return nil, err
	}
	ms.good = true
	return ms.commit(ctx, o.vertex.Op.Outputs())
}

// failure adds to an error the file systems of the run. What the run could
// write to is no longer the set's to discard.
func (o *execOp) failure(ctx context.Context, err error, ms *mountSet) error {
	if uerr := ms.unmount(); uerr != nil {
		return errors.Join(err, uerr)
	}
	f := &Failure{Err: err, Action: llb.None, Input: llb.None}
	for _, m := range o.op.Mounts {
		var in *State
		if m.Input != llb.None && (m.Kind == llb.MountBind || m.Kind == llb.MountCache) {
			in = known(ms.inputs[m.Input])
		}
		f.Inputs = append(f.Inputs, in)
	}
	f.Mounts = slices.Clone(f.Inputs)
	ctx = context.WithoutCancel(ctx)
	for _, s := range ms.states {
		kept, kerr := o.worker.keep(ctx, s.Mutable)
		if kerr != nil {
			f.Err = errors.Join(f.Err, kerr)
		}
		f.Mounts[s.mount] = kept
	}
	ms.states = nil
	return f
}

// sealed reports whether nothing of a mount's input that is not mounted can
// become part of a result.
func sealed(m llb.Mount) bool {
	return m.ReadOnly || m.Output == llb.None || path.Join("/", m.Selector) == "/"
}

// checkContentCache refuses to go by content where that would give wrong results.
func checkContentCache(o *llb.ExecOp) error {
	for _, m := range o.Mounts {
		if m.ContentCache == llb.ContentOn && m.Kind == llb.MountBind && !sealed(m) {
			return fmt.Errorf("invalid mount cache content at %s: a writable part of a file system, %q, cannot count by its content", m.Dest, m.Selector)
		}
	}
	return nil
}

// checksum names the content of input i, by the digest of the record that stands for
// it in BuildKit's caches (cache/remotecache/v1). So a content that only
// such a cache tells of, and nobody can digest here, makes the same key as one that
// was digested.
func (b base) checksum(ctx context.Context, i int, ref *layer.Ref, sels []contenthash.Selector) (string, error) {
	w := b.worker
	d, err := w.Layers.Checksum(withSessions(ctx), ref, sels)
	var missing *contenthash.NotFoundError
	if errors.As(err, &missing) { // what carrying the action out would say
		err = fmt.Errorf("%w: lstat %s: no such file or directory%s", err, missing.Path, b.sought(i))
	}
	if err != nil {
		return "", &Failure{Err: err, Inputs: []*State{known(ref)}, Action: llb.None, Input: i}
	}
	name := string(digest.FromString(string(d) + "@-1"))
	if w.Listed != nil && ref != nil {
		w.Listed(name, func() ([]contenthash.Listed, error) { return w.Layers.List(withSessions(ctx), ref, sels) })
	}
	return name, nil
}

// sought says where a path of input i was looked for, if that is a directory of the
// client: people can look there, too.
func (b base) sought(i int) string {
	from, ok := b.vertex.Inputs[i].Vertex.Op.(*llb.SourceOp)
	if !ok || from.Scheme() != "local" {
		return ""
	}
	return fmt.Sprintf(" (looked for in the client's directory %q, without what its .dockerignore leaves out)", strings.TrimPrefix(from.Identifier, "local://"))
}

// runnable tells whether this machine can run programs of the platform.
func (o *execOp) runnable() error {
	p := o.platform()
	all := o.worker.Platforms
	if o.worker.Detected != nil {
		all = append(all[:len(all):len(all)], o.worker.Detected()...)
	}
	for _, have := range all {
		if platforms.Only(have).Match(p) {
			return nil
		}
	}
	if p.OS == "windows" {
		return fmt.Errorf("cannot run programs of platform %s here: this machine runs %s, and only a daemon on Windows runs those of Windows; leave the RUN out, or make its files in a stage with FROM --platform=$BUILDPLATFORM and copy them",
			platforms.Format(p), formatPlatforms(o.worker))
	}
	return fmt.Errorf("cannot run programs of platform %s here: this machine runs %s; set up emulation (binfmt_misc with qemu) for it or choose another platform",
		platforms.Format(p), formatPlatforms(o.worker))
}

func formatPlatforms(w *Worker) string {
	var all []string
	for _, p := range w.Platforms {
		all = append(all, platforms.Format(p))
	}
	return strings.Join(all, ", ")
}

func (o *execOp) run(ctx context.Context, spec executor.Spec) error {
	step := progress.StepFrom(ctx)
	ctx, stop := o.limited(ctx)
	defer stop()
	step.Moment("ExecOp started", nil)
	said := &lastBytes{to: step.Log(2)}
	c, err := o.worker.Executor.Start(ctx, spec, executor.IO{Stdout: step.Log(1), Stderr: said})
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return o.failed(err)
	}
	step.Moment("Container created", nil)
	step.Moment("Container started", nil)
	err = c.Wait(ctx)
	if cerr := c.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("remove container: %w", cerr)
	}
	var start *executor.StartError
	if errors.As(err, &start) && !bytes.Contains(said.last, []byte(start.Reason)) {
		fmt.Fprintln(said, start.Reason) // some runtimes do not; the error has the code alone
	}
	var exit *executor.ExitError
	code := 0
	if errors.As(err, &exit) {
		code = exit.Code
	} else if err != nil && ctx.Err() == nil {
		return o.failed(err)
	}
	step.Moment("Container exited", &code)
	valid := o.op.ValidExitCodes
	if len(valid) == 0 {
		valid = []int{0}
	}
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case start != nil: // the code is none of the process's
	case slices.Contains(valid, code):
		return nil
	case exit == nil:
		exit = &executor.ExitError{Code: code}
	}
	err = o.failed(exit)
	if o.worker.NoRoom != nil { // while the disk is as the process left it
		err = o.worker.NoRoom(err)
	}
	return err
}

// lastBytes passes on what is written, and remembers the end of it.
type lastBytes struct {
	to   io.Writer
	last []byte
}

func (w *lastBytes) Write(p []byte) (int, error) {
	const most = 4 << 10
	w.last = append(w.last, p[max(0, len(p)-most):]...)
	w.last = w.last[max(0, len(w.last)-most):]
	return w.to.Write(p)
}

func (o *execOp) failed(err error) error { return &ProcessError{Args: o.op.Args, Err: err} }

// ProcessError says that a step's process ended badly, or could not be started.
type ProcessError struct {
	Args []string
	Err  error // an *[executor.ExitError], if it ended
}

// Error names the process and how it ended.
func (e *ProcessError) Error() string {
	return fmt.Sprintf("process %q did not complete successfully: %v", strings.Join(e.Args, " "), e.Err)
}

// Unwrap returns how it ended.
func (e *ProcessError) Unwrap() error { return e.Err }

func (o *execOp) spec(ctx context.Context, ms *mountSet) (executor.Spec, error) {
	p := executor.Process{Args: o.op.Args, Cwd: path.Join("/", o.op.Cwd)}
	var err error
	if p.UID, p.GID, p.Groups, err = ms.user(o.op.User); err != nil {
		return executor.Spec{}, o.failed(err)
	}
	env := append(slices.Clone(o.op.Env), proxyEnv(o.op.Proxy)...)
	if p.Env, err = o.worker.environment(ctx, env, o.op.SecretEnv, o.platform().OS); err != nil {
		return executor.Spec{}, err
	}
	for _, u := range o.op.Ulimits {
		p.Rlimits = append(p.Rlimits, executor.Rlimit{Name: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	spec := executor.Spec{
		ID: newID(), Process: p, Root: ms.root, ReadOnlyRoot: ms.rootReadOnly, Mounts: ms.binds,
		Hostname: o.op.Hostname, Insecure: o.op.Security == llb.SecurityInsecure, CgroupParent: o.op.CgroupParent,
		Devices: o.devices, Trace: o.trace,
	}
	if spec.Network, err = network(o.op.Network); err != nil {
		return executor.Spec{}, err
	}
	if spec.Hosts, err = hosts(o.op.ExtraHosts); err != nil {
		return executor.Spec{}, err
	}
	if r := o.vertex.Meta.Resources; r != nil {
		spec.Limits = executor.Limits{
			Memory: r.Memory, MemorySwap: r.MemorySwap, CPUShares: r.CPUShares, CPUPeriod: r.CPUPeriod,
			CPUQuota: r.CPUQuota, CPUSetCPUs: r.CpusetCpus, CPUSetMems: r.CpusetMems,
		}
	}
	return spec, nil
}

func network(m llb.NetMode) (executor.Network, error) {
	switch m {
	case llb.NetSandbox:
		return executor.NetworkSandbox, nil
	case llb.NetHost:
		return executor.NetworkHost, nil
	case llb.NetNone:
		return executor.NetworkNone, nil
	}
	return 0, fmt.Errorf("invalid network mode %d: expected 0 (sandbox), 1 (host) or 2 (none)", m)
}

func hosts(extra []llb.HostIP) (out []executor.Host, err error) {
	for _, h := range extra {
		ip, err := netip.ParseAddr(h.IP)
		if err != nil {
			return nil, fmt.Errorf("failed to parse IP %s of extra host %q: %w", h.IP, h.Host, err)
		}
		out = append(out, executor.Host{Name: h.Host, IP: ip.String()})
	}
	return out, nil
}

// environment is that of a process: env, the secrets that it wants, and where
// it sets no PATH that of the operating system.
func (w *Worker) environment(ctx context.Context, env []string, secrets []llb.SecretEnv, system string) ([]string, error) {
	for _, s := range secrets {
		if s.ID == "" {
			return nil, fmt.Errorf("secret ID missing for %q environment variable", s.Name)
		}
		value, err := w.secret(ctx, s.ID, s.Optional)
		if err != nil {
			return nil, err
		}
		if value != nil {
			env = append(env, s.Name+"="+string(value))
		}
	}
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		return env, nil
	}
	if system == "windows" {
		return append(env, "PATH="+windowsPath), nil
	}
	return append([]string{"PATH=" + llb.DefaultPath}, env...), nil
}

// proxyEnv is the proxy's variables in both cases of letters.
func proxyEnv(p *llb.ProxyEnv) (env []string) {
	if p == nil {
		return nil
	}
	for _, v := range []struct{ name, value string }{
		{"HTTP_PROXY", p.HTTPProxy}, {"HTTPS_PROXY", p.HTTPSProxy}, {"FTP_PROXY", p.FTPProxy}, {"NO_PROXY", p.NoProxy}, {"ALL_PROXY", p.AllProxy},
	} {
		if v.value != "" {
			env = append(env, v.name+"="+v.value, strings.ToLower(v.name)+"="+v.value)
		}
	}
	return env
}
