// Package config reads buildkitd.toml, the configuration of a daemon in the
// form of BuildKit's docs/buildkitd.toml.md, into structs.
//
// [Load] promises that each value it returns is one that the daemon can work
// with: an error names the file, the line and the key, what was found there and
// what was expected. Keys that mean nothing here are no error, as they are none
// to BuildKit, but are told in the warnings. The package is pure but for reading
// files, knows nothing of the daemon, and sits before all else: the command line
// overrules what it returns, and cmd/kiln makes a daemon of both.
package config

import "slices"

// Config is a whole buildkitd.toml. The zero value is an empty file.
type Config struct {
	Root             string   `toml:"root"`  // folder of all state
	Debug            bool     `toml:"debug"` // out of use: Log.Level
	Trace            bool     `toml:"trace"` // out of use: Log.Level
	Entitlements     []string `toml:"insecure-entitlements"`
	ProxyNetwork     bool     `toml:"proxyNetwork"`
	ProvenanceEnvDir string   `toml:"provenanceEnvDir"`

	Log      Log      `toml:"log"`
	GRPC     GRPC     `toml:"grpc"`
	OTEL     OTEL     `toml:"otel"`
	CDI      CDI      `toml:"cdi"`
	Workers  Workers  `toml:"worker"`
	DNS      DNS      `toml:"dns"`
	History  *History `toml:"history"` // nil: there is no such section
	System   System   `toml:"system"`
	Frontend Frontend `toml:"frontend"`
	Cache    Cache    `toml:"cache"`
	// Registries are by the host of image references, such as "docker.io" or
	// "localhost:5000".
	Registries map[string]Registry `toml:"registry"`
	// Compaction is of BuildKit's databases, which Kiln has none of.
	Compaction map[string]any `toml:"compaction"`
}

// Log is how the daemon logs.
type Log struct {
	Format string `toml:"format"` // "text" or "json"; "" is text
	Level  string `toml:"level"`  // "error", "warn", "info", "debug" or "trace"; "" is info
}

// GRPC is where the daemon listens.
type GRPC struct {
	Address            []string `toml:"address"`
	DebugAddress       string   `toml:"debugAddress"`
	UID                *int     `toml:"uid"` // owner of sockets
	GID                *int     `toml:"gid"`
	SecurityDescriptor string   `toml:"securityDescriptor"` // of Windows' pipes
	TLS                TLS      `toml:"tls"`
}

// TLS names the PEM files of listeners on tcp.
type TLS struct {
	Cert string `toml:"cert"`
	Key  string `toml:"key"`
	CA   string `toml:"ca"` // of clients, which must then show a certificate
}

// OTEL is where steps may send traces to.
type OTEL struct {
	SocketPath string `toml:"socketPath"`
}

// CDI is the container device interface.
type CDI struct {
	Disabled    *bool    `toml:"disabled"`
	SpecDirs    []string `toml:"specDirs"`
	AutoAllowed []string `toml:"autoAllowed"`
}

// Workers are the two kinds of workers. Kiln's own one is configured by OCI.
type Workers struct {
	OCI        OCI        `toml:"oci"`
	Containerd Containerd `toml:"containerd"`
}

// GC limits what the cache takes of the disk.
type GC struct {
	GC       *bool     `toml:"gc"`            // nil is true
	KeepSize DiskSpace `toml:"gckeepstorage"` // out of use: Reserved
	Reserved DiskSpace `toml:"reservedSpace"`
	MaxUsed  DiskSpace `toml:"maxUsedSpace"`
	MinFree  DiskSpace `toml:"minFreeSpace"`
	// Cap is what the whole folder of state may take, builds under way included. It
	// is Kiln's own: buildkitd has no such limit.
	Cap      DiskSpace `toml:"cap"`
	Policies []Policy  `toml:"gcpolicy"` // in place of those that follow from the limits
}

// Policy is one rule of the collection of garbage.
type Policy struct {
	All      bool      `toml:"all"`
	Filters  []string  `toml:"filters"`
	KeepFor  Duration  `toml:"keepDuration"`
	KeepSize DiskSpace `toml:"keepBytes"` // out of use: Reserved
	Reserved DiskSpace `toml:"reservedSpace"`
	MaxUsed  DiskSpace `toml:"maxUsedSpace"`
	MinFree  DiskSpace `toml:"minFreeSpace"`
}

// Network is how steps are connected.
type Network struct {
	Mode          string `toml:"networkMode"` // "auto", "host", "cni" or "bridge"; "" is auto
	CNIConfigPath string `toml:"cniConfigPath"`
	CNIBinaryPath string `toml:"cniBinaryPath"`
	CNIPoolSize   int    `toml:"cniPoolSize"`
	BridgeName    string `toml:"bridgeName"`
	BridgeSubnet  string `toml:"bridgeSubnet"` // such as "10.10.0.0/16"
}

// OCI is the worker that runs containers by itself.
type OCI struct {
	Enabled          *bool             `toml:"enabled"` // nil is "auto"
	Labels           map[string]string `toml:"labels"`
	Platforms        []string          `toml:"platforms"`
	Snapshotter      string            `toml:"snapshotter"`
	Rootless         bool              `toml:"rootless"`
	NoProcessSandbox bool              `toml:"noProcessSandbox"`
	GC
	Network
	UserRemap        string         `toml:"userRemapUnsupported"`
	Binary           string         `toml:"binary"` // the OCI runtime
	ProxySnapshotter string         `toml:"proxySnapshotterPath"`
	CgroupParent     string         `toml:"defaultCgroupParent"`
	Stargz           map[string]any `toml:"stargzSnapshotter"`
	AppArmor         string         `toml:"apparmor-profile"`
	SELinux          bool           `toml:"selinux"`
	MaxParallelism   int            `toml:"max-parallelism"` // steps at a time; 0 is no limit
}

// Containerd is the worker that runs containers by containerd. Kiln has none;
// its section is read so that a file need not change.
type Containerd struct {
	Address   string            `toml:"address"`
	Enabled   *bool             `toml:"enabled"` // nil is "auto"
	Labels    map[string]string `toml:"labels"`
	Platforms []string          `toml:"platforms"`
	Namespace string            `toml:"namespace"`
	Runtime   ContainerdRuntime `toml:"runtime"`
	GC
	Network
	Snapshotter    string `toml:"snapshotter"`
	AppArmor       string `toml:"apparmor-profile"`
	SELinux        bool   `toml:"selinux"`
	MaxParallelism int    `toml:"max-parallelism"`
	CgroupParent   string `toml:"defaultCgroupParent"`
	Rootless       bool   `toml:"rootless"`
	HyperV         bool   `toml:"hypervIsolation"`
}

// ContainerdRuntime is a shim of containerd.
type ContainerdRuntime struct {
	Name    string         `toml:"name"`
	Path    string         `toml:"path"`
	Options map[string]any `toml:"options"`
}

// Registry is how to talk to one registry.
type Registry struct {
	Mirrors  []string  `toml:"mirrors"` // hosts, with an optional path
	HTTP     *bool     `toml:"http"`
	Insecure *bool     `toml:"insecure"`
	CAs      []string  `toml:"ca"`
	KeyPairs []KeyPair `toml:"keypair"`
	// Dirs have authorities (*.crt) and key pairs (*.cert with *.key).
	Dirs []string `toml:"tlsconfigdir"`
}

// KeyPair names the PEM files of a client certificate.
type KeyPair struct {
	Key  string `toml:"key"`
	Cert string `toml:"cert"`
}

// DNS is what resolv.conf of steps says.
type DNS struct {
	Nameservers   []string `toml:"nameservers"`
	Options       []string `toml:"options"`
	SearchDomains []string `toml:"searchDomains"`
}

// History limits the records of builds.
type History struct {
	MaxAge     Duration `toml:"maxAge"`
	MaxEntries *int64   `toml:"maxEntries"` // nil: by age alone if there is one, else 50; 0 records nothing
}

// System is what belongs nowhere else.
type System struct {
	PlatformsMaxAge        *Duration `toml:"platformsCacheMaxAge"` // how long emulators are not looked for again
	MaxRegistryConcurrency *int      `toml:"maxRegistryConcurrency"`
	SessionAuthTimeout     *Duration `toml:"sessionAuthTimeout"`
}

// Frontend says which frontends builds may use.
type Frontend struct {
	Dockerfile struct {
		Enabled *bool `toml:"enabled"` // nil is true
	} `toml:"dockerfile.v0"`
	Gateway struct {
		Enabled             *bool    `toml:"enabled"`             // nil is true
		AllowedRepositories []string `toml:"allowedRepositories"` // empty allows all
	} `toml:"gateway.v0"`
}

// Cache is of caches for others, and of the one that GitHub Actions offers.
type Cache struct {
	Trust  CacheTrust        `toml:"trust"`
	Mounts []CacheMountLimit `toml:"mount"` // the first that matches counts
	GHA    struct {
		Sign   map[string]any `toml:"sign"`
		Verify map[string]any `toml:"verify"`
	} `toml:"gha"`
}

// CacheMountLimit is how large and how old folders of RUN --mount=type=cache may
// become; then they begin empty again.
type CacheMountLimit struct {
	ID      string    `toml:"id"`      // as in the build file; may be a pattern
	MaxSize DiskSpace `toml:"maxSize"` // none: no limit
	MaxAge  Duration  `toml:"maxAge"`  // since it was last used; none: no limit
}

// CacheTrust says whose records of caches by key count, and who this daemon is.
type CacheTrust struct {
	Key         string        `toml:"key"`         // file of the daemon's own private key, PEM of PKCS #8; "" has it make one
	Unsigned    bool          `toml:"unsigned"`    // what has no signature counts, too
	ReadScopes  []string      `toml:"readScopes"`  // patterns; nil is all
	WriteScopes []string      `toml:"writeScopes"` // patterns; nil is all
	Writers     []CacheWriter `toml:"writer"`      // none is everybody
}

// CacheWriter is somebody whose records count.
type CacheWriter struct {
	Name   string   `toml:"name"`
	Key    string   `toml:"key"`    // public, "ed25519:..."
	Scopes []string `toml:"scopes"` // patterns of what it may write; nil is all
}

// Entitlement reports whether builds that ask for it are granted e.
func (c *Config) Entitlement(e string) bool { return slices.Contains(c.Entitlements, e) }

// Enabled is the value of a switch that is on unless it is turned off.
func Enabled(b *bool) bool { return b == nil || *b }
