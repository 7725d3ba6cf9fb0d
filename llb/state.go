package llb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb/pb"
)

// State is a file system that a build makes, together with the surroundings
// that the next step inherits: environment, working directory, user, platform.
// It is a value: every method returns a new State and leaves the old as it was.
// Names and behaviour are those of BuildKit's client library.
//
// Nothing is computed before [State.Marshal] or [State.Graph], which is when
// the default platform and other constraints become known.
type State struct {
	out      Output
	scope    *scope
	defaults []ConstraintsOpt
}

// Output is one result of an operation that is not made yet. [Edge] is one too,
// so that a State can continue a graph: NewState(graph.Root).
type Output interface {
	// edge makes the operation, for the constraints of the builder.
	edge(*builder) (Edge, error)
	// platform is what the result is known to be for, or nil.
	platform() *ocispecs.Platform
}

// StateOption changes a State. It can also be given to [State.Run].
type StateOption func(State) State

// scope is a linked list of the values that a State carries.
type scope struct {
	parent *scope
	key    any
	value  func(context.Context, *Constraints) (any, error)
	async  *asyncState // if set, the values are those of what it yields
}

// stateKey is the type of this package's keys of values.
type stateKey string

// Keys of the values that steps look at.
const (
	keyArgs      stateKey = "args"
	keyDir       stateKey = "dir"
	keyEnv       stateKey = "env"
	keyHosts     stateKey = "hosts"
	keyHostname  stateKey = "hostname"
	keyUlimits   stateKey = "ulimits"
	keyCgroup    stateKey = "cgroup"
	keyUser      stateKey = "user"
	keyExitCodes stateKey = "exitcodes"
	keyPlatform  stateKey = "platform"
	keyNetwork   stateKey = "network"
	keySecurity  stateKey = "security"
)

// NewState returns a State of the output with the working directory "/". A nil
// output is the empty file system.
func NewState(o Output) State {
	if e, ok := o.(Edge); ok && e.Vertex == nil {
		o = nil
	}
	return State{out: o}.Dir("/").withOutputPlatform()
}

// Scratch returns the empty file system.
func Scratch() State { return NewState(nil) }

func (s State) withOutputPlatform() State {
	if s.out != nil {
		if p := s.out.platform(); p != nil {
			return s.Platform(*p)
		}
	}
	return s
}

// WithValue returns a State that carries the value under the key.
func (s State) WithValue(key, value any) State {
	return s.withValue(key, func(context.Context, *Constraints) (any, error) { return value, nil })
}

func (s State) withValue(key any, value func(context.Context, *Constraints) (any, error)) State {
	s.scope = &scope{parent: s.scope, key: key, value: value}
	s.defaults = nil
	return s
}

// Value returns the value that the State carries under the key, or nil.
func (s State) Value(ctx context.Context, key any, opts ...ConstraintsOpt) (any, error) {
	return s.value(ctx, key, applied(opts))
}

func applied(opts []ConstraintsOpt) *Constraints {
	c := &Constraints{}
	for _, o := range opts {
		o.SetConstraintsOption(c)
	}
	return c
}

func (s State) value(ctx context.Context, key any, c *Constraints) (any, error) {
	for at := s.scope; at != nil; at = at.parent {
		if at.async != nil {
			target, err := at.async.do(ctx, c)
			if err != nil {
				return nil, err
			}
			return target.value(ctx, key, c)
		}
		if at.key == key {
			return at.value(ctx, c)
		}
	}
	return nil, nil
}

// valueOf returns the value under one of this package's keys, or the zero value.
func valueOf[T any](ctx context.Context, s State, key stateKey, c *Constraints) (T, error) {
	var zero T
	v, err := s.value(ctx, key, c)
	if err != nil || v == nil {
		return zero, err
	}
	t, ok := v.(T)
	if !ok {
		return zero, fmt.Errorf("state value %q is a %T, expected a %T", key, v, zero)
	}
	return t, nil
}

// Async returns a State that f computes from s when the build is marshalled.
func (s State) Async(f func(context.Context, State, *Constraints) (State, error)) State {
	a := &asyncState{from: s, f: f}
	return State{out: a, scope: &scope{async: a}}
}

// asyncState is the Output of a State that is computed late, and once.
type asyncState struct {
	from State
	f    func(context.Context, State, *Constraints) (State, error)

	mu   sync.Mutex
	done bool
	to   State
	err  error
}

func (a *asyncState) do(ctx context.Context, c *Constraints) (State, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done {
		return a.to, a.err
	}
	to, err := a.f(ctx, a.from, c)
	if ctx.Err() == nil { // what a cancelled caller got is not the answer
		a.done, a.to, a.err = true, to, err
	}
	return to, err
}

func (a *asyncState) edge(b *builder) (Edge, error) {
	target, err := a.do(b.ctx, b.constraints)
	if err != nil {
		return Edge{}, err
	}
	return b.edge(target.out)
}

func (a *asyncState) platform() *ocispecs.Platform { return nil }

// SetMarshalDefaults sets constraints that Marshal applies before its own.
func (s State) SetMarshalDefaults(opts ...ConstraintsOpt) State {
	s.defaults = opts
	return s
}

// Output returns what the State is of, nil for the empty file system.
func (s State) Output() Output { return s.out }

// WithOutput returns a State of another output in the same surroundings.
func (s State) WithOutput(o Output) State {
	s.out, s.defaults = o, nil
	return s.withOutputPlatform()
}

// Reset returns a State of s's file system in the surroundings of other.
func (s State) Reset(other State) State { return Reset(other)(s) }

// Reset takes surroundings over from other; see [State.Reset].
func Reset(other State) StateOption {
	return func(s State) State {
		s = NewState(s.out)
		top := *s.scope
		top.parent = other.scope
		s.scope = &top
		return s
	}
}

// With applies the options in order.
func (s State) With(opts ...StateOption) State {
	for _, o := range opts {
		s = o(s)
	}
	return s
}

// AddEnv sets an environment variable.
func AddEnv(key, value string) StateOption {
	return func(s State) State {
		return s.withValue(keyEnv, func(ctx context.Context, c *Constraints) (any, error) {
			env, err := envOf(ctx, s, c)
			if err != nil {
				return nil, err
			}
			return env.AddOrReplace(key, value), nil
		})
	}
}

// AddEnvf is AddEnv with a format for the value.
func AddEnvf(key, value string, v ...any) StateOption { return AddEnv(key, fmt.Sprintf(value, v...)) }

// Dir sets the working directory. A relative one is below the former.
func Dir(dir string) StateOption {
	return func(s State) State {
		return s.withValue(keyDir, func(ctx context.Context, c *Constraints) (any, error) {
			if path.IsAbs(dir) {
				return dir, nil
			}
			before, err := valueOf[string](ctx, s, keyDir, c)
			if err != nil {
				return nil, fmt.Errorf("get working directory: %w", err)
			}
			if before == "" {
				before = "/"
			}
			return path.Join(before, dir), nil
		})
	}
}

// Dirf is Dir with a format.
func Dirf(format string, v ...any) StateOption { return Dir(fmt.Sprintf(format, v...)) }

// User sets the user that commands run as.
func User(user string) StateOption {
	return func(s State) State { return s.WithValue(keyUser, user) }
}

// Hostname sets the name of the host that commands see.
func Hostname(name string) StateOption {
	return func(s State) State { return s.WithValue(keyHostname, name) }
}

// Network sets the network that commands see.
func Network(mode pb.NetMode) StateOption {
	return func(s State) State { return s.WithValue(keyNetwork, mode) }
}

// Security sets how commands are confined.
func Security(mode pb.SecurityMode) StateOption {
	return func(s State) State { return s.WithValue(keySecurity, mode) }
}

// Modes for [Network] and [Security].
const (
	NetModeSandbox       = pb.NetMode_UNSET
	NetModeHost          = pb.NetMode_HOST
	NetModeNone          = pb.NetMode_NONE
	SecurityModeSandbox  = pb.SecurityMode_SANDBOX
	SecurityModeInsecure = pb.SecurityMode_INSECURE
)

// AddEnv sets an environment variable.
func (s State) AddEnv(key, value string) State { return AddEnv(key, value)(s) }

// AddEnvf is AddEnv with a format for the value.
func (s State) AddEnvf(key, value string, v ...any) State { return AddEnvf(key, value, v...)(s) }

// Dir sets the working directory. A relative one is below the former.
func (s State) Dir(dir string) State { return Dir(dir)(s) }

// Dirf is Dir with a format.
func (s State) Dirf(format string, v ...any) State { return Dirf(format, v...)(s) }

// User sets the user that commands run as.
func (s State) User(user string) State { return User(user)(s) }

// Hostname sets the name of the host that commands see.
func (s State) Hostname(name string) State { return Hostname(name)(s) }

// Network sets the network that commands see.
func (s State) Network(mode pb.NetMode) State { return Network(mode)(s) }

// Security sets how commands are confined.
func (s State) Security(mode pb.SecurityMode) State { return Security(mode)(s) }

// Platform sets the platform that commands run for.
func (s State) Platform(p ocispecs.Platform) State {
	return s.WithValue(keyPlatform, platforms.Normalize(p))
}

// AddExtraHost adds a line to /etc/hosts.
func (s State) AddExtraHost(host string, ip net.IP) State {
	return appendValue(s, keyHosts, HostIP{Host: host, IP: ip.String()})
}

// AddUlimit sets a resource limit.
func (s State) AddUlimit(name UlimitName, soft, hard int64) State {
	return appendValue(s, keyUlimits, Ulimit{Name: string(name), Soft: soft, Hard: hard})
}

// WithCgroupParent sets the cgroup that commands run below.
func (s State) WithCgroupParent(parent string) State { return s.WithValue(keyCgroup, parent) }

// appendValue adds to a value that is a list.
func appendValue[T any](s State, key stateKey, item T) State {
	return s.withValue(key, func(ctx context.Context, c *Constraints) (any, error) {
		list, err := valueOf[[]T](ctx, s, key, c)
		if err != nil {
			return nil, err
		}
		return append(slices.Clip(list), item), nil
	})
}

// GetEnv returns an environment variable and whether it is set.
func (s State) GetEnv(ctx context.Context, key string, opts ...ConstraintsOpt) (string, bool, error) {
	env, err := s.Env(ctx, opts...)
	if err != nil {
		return "", false, err
	}
	v, ok := env.Get(key)
	return v, ok, nil
}

// Env returns the environment.
func (s State) Env(ctx context.Context, opts ...ConstraintsOpt) (*EnvList, error) {
	return envOf(ctx, s, applied(opts))
}

// GetDir returns the working directory.
func (s State) GetDir(ctx context.Context, opts ...ConstraintsOpt) (string, error) {
	return valueOf[string](ctx, s, keyDir, applied(opts))
}

// GetArgs returns the command that was last given.
func (s State) GetArgs(ctx context.Context, opts ...ConstraintsOpt) ([]string, error) {
	return valueOf[[]string](ctx, s, keyArgs, applied(opts))
}

// GetHostname returns the name of the host.
func (s State) GetHostname(ctx context.Context, opts ...ConstraintsOpt) (string, error) {
	return valueOf[string](ctx, s, keyHostname, applied(opts))
}

// GetPlatform returns the platform, or nil if none is set.
func (s State) GetPlatform(ctx context.Context, opts ...ConstraintsOpt) (*ocispecs.Platform, error) {
	return platformOf(ctx, s, applied(opts))
}

func platformOf(ctx context.Context, s State, c *Constraints) (*ocispecs.Platform, error) {
	v, err := s.value(ctx, keyPlatform, c)
	if err != nil || v == nil {
		return nil, err
	}
	p, ok := v.(ocispecs.Platform)
	if !ok {
		return nil, fmt.Errorf("state value %q is a %T", keyPlatform, v)
	}
	return &p, nil
}

// GetNetwork returns the network that commands see.
func (s State) GetNetwork(ctx context.Context, opts ...ConstraintsOpt) (pb.NetMode, error) {
	return valueOf[pb.NetMode](ctx, s, keyNetwork, applied(opts))
}

// GetSecurity returns how commands are confined.
func (s State) GetSecurity(ctx context.Context, opts ...ConstraintsOpt) (pb.SecurityMode, error) {
	return valueOf[pb.SecurityMode](ctx, s, keySecurity, applied(opts))
}

// WithImageConfig takes environment, working directory and platform from the
// JSON of an image's configuration.
func (s State) WithImageConfig(config []byte) (State, error) {
	var img ocispecs.Image
	if err := json.Unmarshal(config, &img); err != nil {
		return State{}, fmt.Errorf("decode image config: %w", err)
	}
	for _, env := range img.Config.Env {
		if k, v, _ := strings.Cut(env, "="); k != "" {
			s = s.AddEnv(k, v)
		}
	}
	s = s.Dir(img.Config.WorkingDir)
	if img.Architecture != "" && img.OS != "" {
		s = s.Platform(img.Platform)
	}
	return s, nil
}

// Validate reports what is wrong with the State without encoding it.
func (s State) Validate(ctx context.Context, c *Constraints) error {
	_, err := newBuilder(ctx, c).edge(s.out)
	return err
}

// errOutput is for results that a step does not have.
type errOutput struct{ err error }

func (o errOutput) edge(*builder) (Edge, error)  { return Edge{}, o.err }
func (o errOutput) platform() *ocispecs.Platform { return nil }

// edge makes an Edge usable as the output of a State.
func (e Edge) edge(*builder) (Edge, error) {
	if e.Vertex == nil {
		return Edge{}, errors.New("edge has no vertex")
	}
	return e, nil
}

func (e Edge) platform() *ocispecs.Platform {
	if e.Vertex == nil {
		return nil
	}
	return e.Vertex.Platform
}
