package llb

import "time"

// None as an input or output number says that there is none: an empty file
// system to read from, or a result that nobody may use.
const None = -1

// SourceOp brings files in from outside: an image, a local directory, a URL.
type SourceOp struct {
	Identifier string            // "scheme://...", see WIRE.md section 3.1
	Attrs      map[string]string // by the names of WIRE.md section 3.1
}

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

// FileOp changes files without running a process. Its actions run in order.
type FileOp struct{ Actions []FileStep }

// FileStep is one step of a FileOp. Numbers below the count of the vertex's
// inputs name inputs, numbers from there on name the results of earlier
// actions, and None is the empty file system (WIRE.md section 3.3).
type FileStep struct {
	Input     int
	Secondary int // what a copy reads from
	Output    int // number of the vertex's output, or None
	// Do is one of *[DoCopy], *[DoMkfile], *[DoMkdir], *[DoRm], *[DoSymlink].
	Do FileDo
}

// FileDo is what a file action does.
type FileDo interface{ fileDo() }

// DoCopy copies files from the secondary input.
type DoCopy struct {
	Src, Dest           string
	Owner               *Ownership
	Mode                int    // permission bits, -1 keeps the source's
	ModeStr             string // symbolic, such as "u+x,go-w"
	FollowSymlink       bool   // of Src itself
	DirContents         bool   // copy what is in a directory, not the directory
	Unpack              bool   // extract archives, as Docker's ADD does
	CreateDest          bool   // make missing parents of Dest
	Wildcard            bool   // Src is a pattern
	AllowEmptyWildcard  bool
	Timestamp           int64 // Unix nanoseconds, -1 keeps the source's
	Include, Exclude    []string
	ReplaceExistingDest bool
	Required            []string
}

// DoMkfile writes a file.
type DoMkfile struct {
	Path      string
	Mode      int
	Data      []byte
	Owner     *Ownership
	Timestamp int64 // Unix nanoseconds, -1 is the time of the run
}

// DoMkdir makes a directory.
type DoMkdir struct {
	Path      string
	Mode      int
	Parents   bool
	Owner     *Ownership
	Timestamp int64
}

// DoRm removes a file or tree. It never follows the last symlink.
type DoRm struct {
	Path          string
	AllowNotFound bool
	Wildcard      bool
}

// DoSymlink makes New a symbolic link to Old.
type DoSymlink struct {
	Old, New  string
	Owner     *Ownership
	Timestamp int64
}

// Ownership sets the owner of files. Either side may be nil to leave it at 0.
type Ownership struct{ User, Group *Owner }

// Owner is a user or group: a number, or a name looked up in Input's
// /etc/passwd or /etc/group.
type Owner struct {
	ID    uint32
	Name  string // if set, ID does not count
	Input int
}

// BuildOp evaluates a graph that an earlier step wrote.
type BuildOp struct {
	Inputs map[string]int // by name; "buildkit.llb.definition" holds the file
	Attrs  map[string]string
}

// MergeOp lays its inputs over each other, later ones on top.
type MergeOp struct{ Inputs []int }

// DiffOp is what Upper has that Lower does not; either may be None.
type DiffOp struct{ Lower, Upper int }

// PassthroughOp hands inputs on as its outputs, for the sake of order.
type PassthroughOp struct {
	ID     string
	Output []int // input numbers
}

// KeepTime as a timestamp keeps the time of the source, or takes the present.
const KeepTime = int64(-1)

// UnixNano converts t for the Timestamp fields of file actions; nil keeps the time.
func UnixNano(t *time.Time) int64 {
	if t == nil {
		return KeepTime
	}
	return t.UnixNano()
}
