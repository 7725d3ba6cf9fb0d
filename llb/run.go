package llb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// DefaultPath is the PATH of processes on Linux where neither an image nor a step
// sets one (BuildKit's util/system/path.go).
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// ExecInfo is a command that is to be run.
type ExecInfo struct {
	Constraints
	State          State
	Mounts         []MountInfo
	ReadonlyRootFS bool
	ProxyEnv       *ProxyEnv
	Secrets        []SecretInfo
	SSH            []SSHInfo
	CDIDevices     []CDIDeviceInfo
}

// RunOption is an option of [State.Run].
type RunOption interface{ SetRunOption(*ExecInfo) }

type runOptionFunc func(*ExecInfo)

func (f runOptionFunc) SetRunOption(i *ExecInfo) { f(i) }

// SetRunOption changes the surroundings of the command, not those after it.
func (o StateOption) SetRunOption(i *ExecInfo) { i.State = o(i.State) }

// Run runs a command in the State. The result is the root file system after it;
// the surroundings stay as they were.
func (s State) Run(opts ...RunOption) ExecState {
	info := &ExecInfo{State: s}
	for _, o := range opts {
		o.SetRunOption(info)
	}
	e := &execNode{info: info}
	e.node = &node{own: &info.Constraints, make: e.make}
	root := e.add(rootMount, info.State.out, func(m *mount) { m.readonly = info.ReadonlyRootFS })
	for _, m := range info.Mounts {
		e.add(m.Target, m.Source, m.Opts...)
	}
	return ExecState{State: s.WithOutput(root), exec: e}
}

// ExecState is the State after a command, with access to its mounts.
type ExecState struct {
	State
	exec *execNode
}

// AddMount adds a mount to the command and returns what it holds after it.
func (e ExecState) AddMount(target string, source State, opts ...MountOption) State {
	return source.WithOutput(e.exec.add(target, source.out, opts...))
}

// GetMount returns what the mount holds after the command, or the empty file
// system if there is no such mount.
func (e ExecState) GetMount(target string) State {
	for _, m := range e.exec.mounts {
		if m.target == target {
			return NewState(m.output)
		}
	}
	return NewState(nil)
}

// Root returns the root file system after the command.
func (e ExecState) Root() State { return e.State }

// mount is a mount of a command.
type mount struct {
	target       string
	source       Output
	output       Output
	readonly     bool
	selector     string
	cacheID      string
	cacheSharing CacheSharing
	tmpfs        *TmpfsInfo
	noOutput     bool
	contentCache MountContentCache
}

// MountOption is an option of [AddMount].
type MountOption func(*mount)

// MountInfo is a mount and where its content comes from.
type MountInfo struct {
	Target string
	Source Output
	Opts   []MountOption
}

// Readonly has the command not write to the mount.
func Readonly(m *mount) { m.readonly = true }

// ForceNoOutput throws away what the command writes to the mount.
func ForceNoOutput(m *mount) { m.noOutput = true }

// SourcePath mounts only a path of the source.
func SourcePath(p string) MountOption { return func(m *mount) { m.selector = p } }

// ContentCache says whether content may stand in for the definition in the key.
func ContentCache(c MountContentCache) MountOption { return func(m *mount) { m.contentCache = c } }

// Modes for [ContentCache].
const (
	MountContentCacheDefault = ContentDefault
	MountContentCacheOn      = ContentOn
	MountContentCacheOff     = ContentOff
)

// CacheMountSharingMode says who may use a cache mount at a time.
type CacheMountSharingMode = CacheSharing

// Modes for [AsPersistentCacheDir].
const (
	CacheMountShared  = CacheShared
	CacheMountPrivate = CachePrivate
	CacheMountLocked  = CacheLocked
)

// AsPersistentCacheDir has the mount keep its content from build to build.
func AsPersistentCacheDir(id string, sharing CacheMountSharingMode) MountOption {
	return func(m *mount) { m.cacheID, m.cacheSharing = id, sharing }
}

// TmpfsInfo is a file system in memory.
type TmpfsInfo struct {
	Size int64 // bytes; 0 sets no limit
}

// TmpfsOption is an option of [Tmpfs].
type TmpfsOption interface{ SetTmpfsOption(*TmpfsInfo) }

type tmpfsOptionFunc func(*TmpfsInfo)

func (f tmpfsOptionFunc) SetTmpfsOption(i *TmpfsInfo) { f(i) }

// TmpfsSize limits the size, in bytes.
func TmpfsSize(b int64) TmpfsOption { return tmpfsOptionFunc(func(i *TmpfsInfo) { i.Size = b }) }

// Tmpfs mounts a file system in memory. The source must be [Scratch].
func Tmpfs(opts ...TmpfsOption) MountOption {
	info := &TmpfsInfo{}
	for _, o := range opts {
		o.SetTmpfsOption(info)
	}
	return func(m *mount) { m.tmpfs = info }
}

// execNode makes the vertex of a command.
type execNode struct {
	node   *node
	info   *ExecInfo
	mounts []*mount
}

// add adds a mount and returns its output.
func (e *execNode) add(target string, source Output, opts ...MountOption) Output {
	m := &mount{target: target, source: source}
	for _, o := range opts {
		o(m)
	}
	e.mounts = append(e.mounts, m)
	switch {
	case m.readonly:
		m.output = source
	case m.tmpfs != nil:
		m.output = errOutput{fmt.Errorf("tmpfs mount %q has no result", target)}
	case m.noOutput || m.cacheID != "":
		m.output = errOutput{fmt.Errorf("mount %q has no result", target)}
	default:
		m.output = &nodeOutput{node: e.node, plat: e.info.Platform, index: func(op Op) (int, error) {
			exec, ok := op.(*ExecOp)
			if !ok || exec.OutputOf(target) == None {
				return 0, fmt.Errorf("mount %q has no result", target)
			}
			return exec.OutputOf(target), nil
		}}
	}
	return m.output
}

func (e *execNode) make(b *builder) (*Vertex, error) {
	op, err := e.op(b)
	if err != nil {
		return nil, err
	}
	mounts := make([]MountFrom, 0, len(e.mounts))
	for _, m := range e.mounts {
		from, err := m.build(b)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, from)
	}
	for _, s := range e.info.Secrets {
		if s.Env != nil {
			op.SecretEnv = append(op.SecretEnv, SecretEnv{ID: s.ID, Name: *s.Env, Optional: s.Optional})
		}
		if s.Target != nil {
			mounts = append(mounts, s.mount())
		}
	}
	for _, s := range e.info.SSH {
		mounts = append(mounts, s.mount())
	}
	platform := e.info.Platform
	if platform == nil {
		if platform, err = platformOf(b.ctx, e.info.State, b.constraints); err != nil {
			return nil, err
		}
	}
	platform = b.platform(platform)
	own := &Constraints{WorkerConstraints: e.info.WorkerConstraints, Metadata: e.info.Metadata}
	e.setPath(b, &op, own, platform, mounts)
	return b.finish(BuildExec(op, mounts), own, platform), nil
}

// setPath sets a search path if the daemon is known not to.
func (e *execNode) setPath(b *builder, op *ExecOp, own *Constraints, platform *ocispecs.Platform, mounts []MountFrom) {
	if b.constraints.Caps == nil {
		return
	}
	if b.constraints.Caps[CapExecMetaSetsDefaultPath] {
		own.addCap(CapExecMetaSetsDefaultPath)
		return
	}
	if platform.OS == "windows" || hasEnv(op.Env, "PATH") {
		return
	}
	// The socket's variable goes first, as in BuildKit's library.
	if i := slices.IndexFunc(mounts, func(m MountFrom) bool { return m.Kind == MountSSH }); i >= 0 && !hasEnv(op.Env, sshSocketEnv) {
		dest := mounts[i].Dest
		if dest == "" {
			dest = defaultSocket(0)
		}
		op.Env = append(op.Env, sshSocketEnv+"="+dest)
	}
	op.Env = append(op.Env, "PATH="+DefaultPath)
}

// op makes the operation without its mounts.
func (e *execNode) op(b *builder) (ExecOp, error) {
	s, c := e.info.State, b.constraints
	op := ExecOp{RemoveStubs: true, Proxy: e.info.ProxyEnv}
	env, err := envOf(b.ctx, s, c)
	if err != nil {
		return op, err
	}
	if len(env.vars) > 0 {
		op.Env = env.ToArray()
	}
	network, err1 := valueOfEnum(b.ctx, s, keyNetwork, c)
	security, err2 := valueOfEnum(b.ctx, s, keySecurity, c)
	op.Network, op.Security = NetMode(network), SecurityMode(security)
	err = errors.Join(err1, err2,
		load(b, s, keyArgs, &op.Args), load(b, s, keyDir, &op.Cwd), load(b, s, keyUser, &op.User),
		load(b, s, keyHostname, &op.Hostname), load(b, s, keyCgroup, &op.CgroupParent),
		load(b, s, keyExitCodes, &op.ValidExitCodes), load(b, s, keyHosts, &op.ExtraHosts),
		load(b, s, keyUlimits, &op.Ulimits))
	switch {
	case err != nil:
		return op, err
	case len(op.Args) == 0:
		return op, errors.New("run has no arguments")
	case op.Cwd == "":
		return op, fmt.Errorf("run %q has no working directory", strings.Join(op.Args, " "))
	}
	for _, d := range e.info.CDIDevices {
		op.Devices = append(op.Devices, CDIDevice(d))
	}
	return op, nil
}

// load sets to to a value of the State.
func load[T any](b *builder, s State, key stateKey, to *T) (err error) {
	*to, err = valueOf[T](b.ctx, s, key, b.constraints)
	return err
}

// valueOfEnum returns a value that is one of the wire's enums.
func valueOfEnum(ctx context.Context, s State, key stateKey, c *Constraints) (int32, error) {
	v, err := s.value(ctx, key, c)
	if err != nil || v == nil {
		return 0, err
	}
	n, ok := v.(protoreflect.Enum)
	if !ok {
		return 0, fmt.Errorf("state value %q is a %T", key, v)
	}
	return int32(n.Number()), nil
}

func (m *mount) build(b *builder) (MountFrom, error) {
	from, err := b.edge(m.source)
	if err != nil {
		return MountFrom{}, err
	}
	to := MountFrom{
		Mount: Mount{
			Dest: m.target, Selector: m.selector, ReadOnly: m.readonly, ContentCache: m.contentCache,
			CacheID: m.cacheID, CacheSharing: m.cacheSharing,
		},
		From: from, KeepInput: m.noOutput,
	}
	switch {
	case m.tmpfs != nil:
		if from.Vertex != nil {
			return to, fmt.Errorf("tmpfs mount %q has a source, expected scratch", m.target)
		}
		to.Kind, to.TmpfsSize = MountTmpfs, m.tmpfs.Size
	case m.cacheID != "":
		to.Kind = MountCache
	}
	return to, nil
}

// With changes the surroundings of the command.
func With(opts ...StateOption) RunOption {
	return runOptionFunc(func(i *ExecInfo) { i.State = i.State.With(opts...) })
}

// Args sets the command.
func Args(args []string) RunOption {
	return runOptionFunc(func(i *ExecInfo) { i.State = i.State.WithValue(keyArgs, args) })
}

// Shlex sets the command from a line that is split as a shell does it.
func Shlex(line string) RunOption {
	return runOptionFunc(func(i *ExecInfo) {
		i.State = i.State.withValue(keyArgs, func(context.Context, *Constraints) (any, error) { return splitWords(line) })
	})
}

// Shlexf is Shlex with a format.
func Shlexf(format string, v ...any) RunOption { return Shlex(fmt.Sprintf(format, v...)) }

// AddMount mounts a State into the command.
func AddMount(dest string, source State, opts ...MountOption) RunOption {
	return runOptionFunc(func(i *ExecInfo) { i.Mounts = append(i.Mounts, MountInfo{dest, source.out, opts}) })
}

// ReadonlyRootFS has the command not write to its root file system.
func ReadonlyRootFS() RunOption { return runOptionFunc(func(i *ExecInfo) { i.ReadonlyRootFS = true }) }

// WithProxy sets proxies that do not become part of the cache key.
func WithProxy(p ProxyEnv) RunOption { return runOptionFunc(func(i *ExecInfo) { i.ProxyEnv = &p }) }

// ValidExitCodes are the exit codes of success.
func ValidExitCodes(codes ...int) RunOption {
	return runOptionFunc(func(i *ExecInfo) { i.State = i.State.WithValue(keyExitCodes, codes) })
}

// AddExtraHost adds a line to /etc/hosts.
func AddExtraHost(host string, ip net.IP) RunOption {
	return runOptionFunc(func(i *ExecInfo) { i.State = i.State.AddExtraHost(host, ip) })
}

// AddUlimit sets a resource limit.
func AddUlimit(name UlimitName, soft, hard int64) RunOption {
	return runOptionFunc(func(i *ExecInfo) { i.State = i.State.AddUlimit(name, soft, hard) })
}

// WithCgroupParent sets the cgroup that the command runs below.
func WithCgroupParent(parent string) RunOption {
	return runOptionFunc(func(i *ExecInfo) { i.State = i.State.WithCgroupParent(parent) })
}

// UlimitName names a resource limit.
type UlimitName string

// Resource limits.
const (
	UlimitCore       UlimitName = "core"
	UlimitCPU        UlimitName = "cpu"
	UlimitData       UlimitName = "data"
	UlimitFsize      UlimitName = "fsize"
	UlimitLocks      UlimitName = "locks"
	UlimitMemlock    UlimitName = "memlock"
	UlimitMsgqueue   UlimitName = "msgqueue"
	UlimitNice       UlimitName = "nice"
	UlimitNofile     UlimitName = "nofile"
	UlimitNproc      UlimitName = "nproc"
	UlimitRss        UlimitName = "rss"
	UlimitRtprio     UlimitName = "rtprio"
	UlimitRttime     UlimitName = "rttime"
	UlimitSigpending UlimitName = "sigpending"
	UlimitStack      UlimitName = "stack"
)
