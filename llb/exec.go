package llb

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/llb/pb"
)

// None as an input or output number says that there is none: an empty file
// system to read from, or a result that nobody may use.
const None = -1

// ExecOp runs a process in a container.
type ExecOp struct {
	Args, Env      []string
	Cwd            string
	User           string // "uid[:gid]" or names
	Hostname       string
	ExtraHosts     []HostIP
	Ulimits        []Ulimit
	CgroupParent   string
	ValidExitCodes []int // empty means 0 alone
	Proxy          *ProxyEnv
	// RemoveStubs removes mount points that were made for the run, parents included.
	RemoveStubs bool
	Network     NetMode
	Security    SecurityMode
	Mounts      []Mount
	SecretEnv   []SecretEnv
	Devices     []CDIDevice
}

// HostIP is a line for /etc/hosts.
type HostIP struct{ Host, IP string }

// Ulimit is a resource limit of a process; Name as in "nofile".
type Ulimit struct {
	Name       string
	Soft, Hard int64
}

// ProxyEnv is put into the environment of a run without becoming part of its key.
type ProxyEnv struct{ HTTPProxy, HTTPSProxy, FTPProxy, NoProxy, AllProxy string }

// SecretEnv puts a secret into an environment variable.
type SecretEnv struct {
	ID, Name string
	Optional bool
}

// CDIDevice asks for a device by its CDI name.
type CDIDevice struct {
	Name     string
	Optional bool
}

// NetMode is the network that a process sees. The values are the wire's.
type NetMode int

// Networks. NetHost needs the entitlement "network.host".
const (
	NetSandbox NetMode = iota
	NetHost
	NetNone
)

// SecurityMode is how a process is confined. The values are the wire's.
type SecurityMode int

// Confinements. SecurityInsecure needs the entitlement "security.insecure".
const (
	SecuritySandbox SecurityMode = iota
	SecurityInsecure
)

// MountKind is what is mounted. The values are the wire's.
type MountKind int

// Kinds of mounts.
const (
	MountBind MountKind = iota
	MountSecret
	MountSSH
	MountCache
	MountTmpfs
)

// Mount is a file system that a process sees.
type Mount struct {
	Kind         MountKind
	Input        int    // number of the vertex's input, or None
	Selector     string // path inside the input
	Dest         string
	Output       int // number of the vertex's output, or None
	ReadOnly     bool
	TmpfsSize    int64 // bytes; 0 sets no limit
	CacheID      string
	CacheSharing CacheSharing
	Secret       *SecretMount // for MountSecret and MountSSH
	ResultID     string
	ContentCache MountContentCache
}

// SecretMount describes the file or socket of a secret or an ssh agent.
type SecretMount struct {
	ID       string
	UID, GID uint32
	Mode     uint32 // permission bits
	Optional bool
}

// CacheSharing says who may use a cache mount at a time. The values are the wire's.
type CacheSharing int

// Ways to share a cache mount.
const (
	CacheShared CacheSharing = iota
	CachePrivate
	CacheLocked
)

// MountContentCache says whether an input's content may stand in for its
// definition in the cache key. The values are the wire's.
type MountContentCache int

// Uses of an input's content in the key.
const (
	ContentDefault MountContentCache = iota
	ContentOn
	ContentOff
)

// rootMount is where every exec has its root file system.
const rootMount = "/"

// Kind returns "exec".
func (*ExecOp) Kind() string { return "exec" }

// Name returns the arguments, joined by spaces.
func (o *ExecOp) Name() string { return strings.Join(o.Args, " ") }

// Outputs returns how many mounts have an output.
func (o *ExecOp) Outputs() int {
	n := 0
	for _, m := range o.Mounts {
		if m.hasOutput() {
			n++
		}
	}
	return n
}

// hasOutput reports whether what the mount holds after the run is a result.
// Clients leave the output number of secrets and sockets at 0, meaning nothing.
func (m *Mount) hasOutput() bool {
	return m.Kind == MountBind && m.Output != None
}

// OutputOf returns the number of the output that the mount at dest has, or None.
func (o *ExecOp) OutputOf(dest string) int {
	for _, m := range o.Mounts {
		if m.Dest == dest && m.hasOutput() {
			return m.Output
		}
	}
	return None
}

// MountFrom is a mount that says by edge where its content comes from.
type MountFrom struct {
	Mount          // Input and Output do not count
	From      Edge // without a vertex, an empty file system
	KeepInput bool // throw away what the run writes to it
}

// BuildExec makes a vertex of op with mounts put in order as BuildKit's client
// library does it, so that equal steps have equal digests: mounts sorted by
// destination, then secrets and then ssh sockets as given; equal sources are
// one input; outputs numbered in that order for bind mounts that may be
// written. Sockets without a destination get a default one, and the first is
// in the environment. The root mount must be among the mounts. To use a result,
// ask op's [ExecOp.OutputOf]. Mounts of op itself are replaced.
func BuildExec(op ExecOp, mounts []MountFrom) *Vertex {
	var sorted, secrets, sockets []MountFrom
	for _, m := range mounts {
		switch m.Kind {
		case MountSecret:
			secrets = append(secrets, m)
		case MountSSH:
			if m.Dest == "" {
				m.Dest = defaultSocket(len(sockets))
			}
			sockets = append(sockets, m)
		default:
			sorted = append(sorted, m)
		}
	}
	slices.SortStableFunc(sorted, func(a, b MountFrom) int { return strings.Compare(a.Dest, b.Dest) })

	var inputs inputList
	outputs := 0
	op.Mounts = make([]Mount, 0, len(mounts))
	for _, m := range sorted {
		m.Input, m.Output = None, None
		if m.From.Vertex != nil {
			m.Input = inputs.add(m.From)
		}
		if m.Kind == MountBind && !m.ReadOnly && !m.KeepInput {
			m.Output = outputs
			outputs++
		}
		op.Mounts = append(op.Mounts, m.Mount)
	}
	for _, m := range append(secrets, sockets...) {
		m.Input, m.Output = None, 0
		op.Mounts = append(op.Mounts, m.Mount)
	}
	if len(sockets) > 0 && !hasEnv(op.Env, sshSocketEnv) {
		op.Env = append(slices.Clip(op.Env), sshSocketEnv+"="+sockets[0].Dest)
	}
	return &Vertex{Op: &op, Inputs: inputs.edges}
}

// sshSocketEnv is where programs look for the agent's socket.
const sshSocketEnv = "SSH_AUTH_SOCK"

// defaultSocket is where the nth socket is unless the step says otherwise.
func defaultSocket(n int) string { return fmt.Sprintf("/run/buildkit/ssh_agent.%d", n) }

func hasEnv(env []string, name string) bool {
	return slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

func (o *ExecOp) verify(inputs int) error {
	if len(o.Args) == 0 {
		return errors.New("exec has no arguments")
	}
	if o.Network < NetSandbox || o.Network > NetNone {
		return fmt.Errorf("exec: invalid network mode %d", o.Network)
	}
	if o.Security < SecuritySandbox || o.Security > SecurityInsecure {
		return fmt.Errorf("exec: invalid security mode %d", o.Security)
	}
	root := false
	var outputs numbering
	for i := range o.Mounts {
		m := &o.Mounts[i]
		if err := m.verify(inputs); err != nil {
			return fmt.Errorf("exec mount %q: %w", m.Dest, err)
		}
		if m.Dest == rootMount {
			if root || m.Kind == MountSecret || m.Kind == MountSSH {
				return fmt.Errorf("exec mount %d cannot be the root file system", i)
			}
			root = true
		}
		if m.hasOutput() {
			outputs = append(outputs, m.Output)
		}
	}
	if !root {
		return fmt.Errorf("exec has no mount at %q", rootMount)
	}
	if err := outputs.verify(); err != nil {
		return fmt.Errorf("exec mounts: %w", err)
	}
	return nil
}

func (m *Mount) verify(inputs int) error {
	switch {
	case m.Dest == "":
		return errors.New("has no destination")
	case m.Input != None && (m.Input < 0 || m.Input >= inputs):
		return fmt.Errorf("is of input number %d of %d", m.Input, inputs)
	case m.Output < None:
		return fmt.Errorf("has output number %d", m.Output)
	case m.Kind < MountBind || m.Kind > MountTmpfs:
		return fmt.Errorf("mount type %d is unknown", m.Kind)
	case m.CacheSharing < CacheShared || m.CacheSharing > CacheLocked:
		return fmt.Errorf("cache sharing mode %d is unknown", m.CacheSharing)
	case m.ContentCache < ContentDefault || m.ContentCache > ContentOff:
		return fmt.Errorf("content cache mode %d is unknown", m.ContentCache)
	case m.TmpfsSize < 0:
		return fmt.Errorf("tmpfs size %d is negative", m.TmpfsSize)
	case (m.Kind == MountSecret || m.Kind == MountSSH) && m.Secret == nil:
		return errors.New("does not say which secret")
	}
	return nil
}

// numbering is a list of output numbers, which must be 0 and up, each once.
type numbering []int

func (n numbering) verify() error {
	seen := make([]bool, len(n))
	for _, i := range n {
		if i < 0 || i >= len(n) || seen[i] {
			return fmt.Errorf("output number %d: the %d outputs must be numbered from 0, each once", i, len(n))
		}
		seen[i] = true
	}
	return nil
}

// caps lists what BuildKit's client library declares.
func (o *ExecOp) caps(need func(string)) {
	needIf := func(cond bool, id string) {
		if cond {
			need(id)
		}
	}
	need(CapExecMetaBase)
	needIf(len(o.ValidExitCodes) > 0, CapExecValidExitCode)
	needIf(len(o.Ulimits) > 0, CapExecMetaUlimit)
	needIf(o.Network != NetSandbox, CapExecMetaNetwork)
	needIf(o.Security != SecuritySandbox, CapExecMetaSecurity)
	needIf(o.Proxy != nil, CapExecMetaProxy)
	needIf(len(o.Devices) > 0, CapExecMetaCDI)
	needIf(len(o.SecretEnv) > 0, CapExecSecretEnv)
	needIf(len(o.SecretEnv) > 0, CapExecMountSecret)
	for i := range o.Mounts {
		m := &o.Mounts[i]
		needIf(m.Selector != "", CapExecMountSelector)
		needIf(m.ContentCache != ContentDefault, CapExecMountContentCache)
		switch m.Kind {
		case MountBind:
			needIf(m.Input != None, CapExecMountBind)
		case MountCache:
			need(CapExecMountCache)
			need(CapExecMountCacheSharing)
		case MountTmpfs:
			need(CapExecMountTmpfs)
			needIf(m.TmpfsSize > 0, CapExecMountTmpfsSize)
		case MountSecret:
			need(CapExecMountSecret)
		case MountSSH:
			need(CapExecMountSSH)
		}
	}
}

func (o *ExecOp) encode(op *pb.Op) {
	meta := &pb.Meta{
		Args: o.Args, Env: o.Env, Cwd: o.Cwd, User: o.User, Hostname: o.Hostname,
		CgroupParent: o.CgroupParent, RemoveMountStubsRecursive: o.RemoveStubs,
	}
	for _, h := range o.ExtraHosts {
		meta.ExtraHosts = append(meta.ExtraHosts, &pb.HostIP{Host: h.Host, IP: h.IP})
	}
	for _, u := range o.Ulimits {
		meta.Ulimit = append(meta.Ulimit, &pb.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	for _, code := range o.ValidExitCodes {
		meta.ValidExitCodes = append(meta.ValidExitCodes, int32(code))
	}
	if p := o.Proxy; p != nil {
		meta.ProxyEnv = &pb.ProxyEnv{
			HttpProxy: p.HTTPProxy, HttpsProxy: p.HTTPSProxy, FtpProxy: p.FTPProxy,
			NoProxy: p.NoProxy, AllProxy: p.AllProxy,
		}
	}
	exec := &pb.ExecOp{Meta: meta, Network: pb.NetMode(o.Network), Security: pb.SecurityMode(o.Security)}
	for i := range o.Mounts {
		exec.Mounts = append(exec.Mounts, o.Mounts[i].encode())
	}
	for _, s := range o.SecretEnv {
		exec.Secretenv = append(exec.Secretenv, &pb.SecretEnv{ID: s.ID, Name: s.Name, Optional: s.Optional})
	}
	for _, d := range o.Devices {
		exec.CdiDevices = append(exec.CdiDevices, &pb.CDIDevice{Name: d.Name, Optional: d.Optional})
	}
	op.Op = &pb.Op_Exec{Exec: exec}
}

func (m *Mount) encode() *pb.Mount {
	w := &pb.Mount{
		Input: int64(m.Input), Selector: m.Selector, Dest: m.Dest, Output: int64(m.Output),
		Readonly: m.ReadOnly, MountType: pb.MountType(m.Kind),
		ResultID: m.ResultID, ContentCache: pb.MountContentCache(m.ContentCache),
	}
	if m.Kind == MountTmpfs || m.TmpfsSize != 0 {
		w.TmpfsOpt = &pb.TmpfsOpt{Size: m.TmpfsSize}
	}
	if m.Kind == MountCache || m.CacheID != "" || m.CacheSharing != CacheShared {
		w.CacheOpt = &pb.CacheOpt{ID: m.CacheID, Sharing: pb.CacheSharingOpt(m.CacheSharing)}
	}
	if s := m.Secret; s != nil && m.Kind == MountSSH {
		w.SSHOpt = &pb.SSHOpt{ID: s.ID, Uid: s.UID, Gid: s.GID, Mode: s.Mode, Optional: s.Optional}
	} else if s != nil {
		w.SecretOpt = &pb.SecretOpt{ID: s.ID, Uid: s.UID, Gid: s.GID, Mode: s.Mode, Optional: s.Optional}
	}
	return w
}

func decodeExec(m *pb.ExecOp) (*ExecOp, error) {
	meta := m.GetMeta()
	if meta == nil {
		return nil, errors.New("exec has no meta")
	}
	o := &ExecOp{
		Args: meta.Args, Env: meta.Env, Cwd: meta.Cwd, User: meta.User, Hostname: meta.Hostname,
		CgroupParent: meta.CgroupParent, RemoveStubs: meta.RemoveMountStubsRecursive,
		Network: NetMode(m.Network), Security: SecurityMode(m.Security),
	}
	for _, h := range meta.ExtraHosts {
		o.ExtraHosts = append(o.ExtraHosts, HostIP{Host: h.GetHost(), IP: h.GetIP()})
	}
	for _, u := range meta.Ulimit {
		o.Ulimits = append(o.Ulimits, Ulimit{Name: u.GetName(), Soft: u.GetSoft(), Hard: u.GetHard()})
	}
	for _, code := range meta.ValidExitCodes {
		o.ValidExitCodes = append(o.ValidExitCodes, int(code))
	}
	if p := meta.ProxyEnv; p != nil {
		o.Proxy = &ProxyEnv{
			HTTPProxy: p.HttpProxy, HTTPSProxy: p.HttpsProxy, FTPProxy: p.FtpProxy,
			NoProxy: p.NoProxy, AllProxy: p.AllProxy,
		}
	}
	for _, w := range m.Mounts {
		o.Mounts = append(o.Mounts, decodeMount(w))
	}
	for _, s := range m.Secretenv {
		o.SecretEnv = append(o.SecretEnv, SecretEnv{ID: s.GetID(), Name: s.GetName(), Optional: s.GetOptional()})
	}
	for _, d := range m.CdiDevices {
		o.Devices = append(o.Devices, CDIDevice{Name: d.GetName(), Optional: d.GetOptional()})
	}
	return o, nil
}

func decodeMount(w *pb.Mount) Mount {
	m := Mount{
		Kind: MountKind(w.GetMountType()), Input: number(w.GetInput()), Selector: w.GetSelector(),
		Dest: w.GetDest(), Output: number(w.GetOutput()), ReadOnly: w.GetReadonly(),
		TmpfsSize: w.GetTmpfsOpt().GetSize(),
		CacheID:   w.GetCacheOpt().GetID(), CacheSharing: CacheSharing(w.GetCacheOpt().GetSharing()),
		ResultID: w.GetResultID(), ContentCache: MountContentCache(w.GetContentCache()),
	}
	if s := w.GetSSHOpt(); s != nil && m.Kind == MountSSH {
		m.Secret = &SecretMount{ID: s.ID, UID: s.Uid, GID: s.Gid, Mode: s.Mode, Optional: s.Optional}
	} else if s := w.GetSecretOpt(); s != nil && m.Kind == MountSecret {
		m.Secret = &SecretMount{ID: s.ID, UID: s.Uid, GID: s.Gid, Mode: s.Mode, Optional: s.Optional}
	}
	return m
}
