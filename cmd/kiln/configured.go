package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/cachemount"
	"github.com/kiln-build/kiln/internal/config"
	"github.com/kiln-build/kiln/internal/executor/binfmt"
	"github.com/kiln-build/kiln/internal/executor/oci"
	"github.com/kiln-build/kiln/internal/gc"
	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/namespace"
	"github.com/kiln-build/kiln/internal/registry"
	"github.com/kiln-build/kiln/internal/store"
)

// This file makes what the parts of a daemon want of a buildkitd.toml.

// registryConfig says how to talk to registries.
func registryConfig(c *config.Config) registry.Config {
	r := registry.Config{UserAgent: "kiln/" + version, Hosts: map[string]registry.Host{}}
	if n := c.System.MaxRegistryConcurrency; n != nil {
		r.Connections = *n
	}
	for name, h := range c.Registries {
		host := registry.Host{
			HTTP: h.HTTP, Insecure: h.Insecure != nil && *h.Insecure, CAs: h.CAs, Dirs: h.Dirs,
		}
		for _, m := range h.Mirrors {
			where, path := config.SplitMirror(m)
			if path != "" {
				where += "/" + path
			}
			host.Mirrors = append(host.Mirrors, where)
		}
		for _, p := range h.KeyPairs {
			host.KeyPairs = append(host.KeyPairs, registry.KeyPair{Key: p.Key, Cert: p.Cert})
		}
		r.Hosts[name] = host
	}
	return r
}

// newCollector returns what keeps the root folder within its limits, by the rules.
func newCollector(c *config.Config, root string, db *store.Store, layers *layerStore, others gc.Keeper) (*gc.Collector, []gc.Policy, error) {
	policies, err := gcPolicies(c, root)
	if err != nil {
		return nil, nil, err
	}
	total, err := diskSize(root)
	if err != nil {
		return nil, nil, err
	}
	return &gc.Collector{
		Root: root, Layers: layers.Store, Store: db, Others: others, Images: layers.blobs, Cap: c.Workers.OCI.Cap.Exactly(total),
	}, policies, nil
}

// gcPolicies are the rules of the collection of garbage below root; none is one
// that is turned off.
func gcPolicies(c *config.Config, root string) ([]gc.Policy, error) {
	total, err := diskSize(root)
	if err != nil {
		return nil, err
	}
	var out []gc.Policy
	for _, r := range c.Workers.OCI.Rules(total) {
		p := gc.Policy{
			All: r.All, Filters: r.Filters, KeepFor: r.KeepFor.Duration,
			MaxUsed: r.MaxUsed.On(total), Reserved: r.Reserved.On(total), MinFree: r.MinFree.On(total),
		}
		if _, err := gc.ParseFilters(p.Filters); err != nil {
			return nil, fmt.Errorf("worker.oci.gcpolicy: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}

// diskSize is the size in bytes of the file system of a folder.
func diskSize(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("size of the disk at %s: %w", dir, err)
	}
	return int64(fs.Blocks) * fs.Bsize, nil
}

// mountLimits are how large and how old cache mounts may become.
func mountLimits(c *config.Config, root string) (out []cachemount.Limit, err error) {
	if len(c.Cache.Mounts) == 0 {
		return nil, nil
	}
	total, err := diskSize(root)
	if err != nil {
		return nil, err
	}
	for i, m := range c.Cache.Mounts {
		if m.ID == "" {
			return nil, fmt.Errorf("cache.mount %d has no id: expected that of a RUN --mount=type=cache, or a pattern such as \"*\"", i+1)
		}
		out = append(out, cachemount.Limit{Name: m.ID, MaxSize: m.MaxSize.On(total), MaxAge: m.MaxAge.Duration})
	}
	return out, nil
}

// retention says how long builds are remembered.
func retention(c *config.Config) history.Retention {
	h := c.History
	if h == nil {
		return history.DefaultRetention()
	}
	r := history.Retention{MaxAge: h.MaxAge.Duration}
	switch {
	case h.MaxEntries != nil:
		r.MaxEntries, r.Off = int(*h.MaxEntries), *h.MaxEntries == 0
	case h.MaxAge.Duration == 0:
		return history.DefaultRetention()
	}
	return r
}

// executorConfig says how containers are run.
func executorConfig(s settings, ns namespace.Info, stateDir string) oci.Config {
	w := s.config.Workers.OCI
	return oci.Config{
		StateDir: stateDir, Binary: w.Binary, Rootless: ns.Rootless || w.Rootless, CgroupParent: w.CgroupParent,
		TraceSocket: traceSocket(s.config, s.root), AppArmor: w.AppArmor, SharedProcesses: w.NoProcessSandbox,
		DNS: oci.DNS{
			Nameservers: s.config.DNS.Nameservers, Search: s.config.DNS.SearchDomains, Options: s.config.DNS.Options,
		},
		Network: oci.NetworkConfig{Pool: w.Subnet(), Ready: w.CNIPoolSize, Host: w.Mode == "host"},
		Logger:  slog.Default(),
	}
}

// traceSocket is where steps send their spans. BuildKit has one place for all
// daemons of a machine, where they take each other's away.
func traceSocket(c *config.Config, root string) string {
	return cmp.Or(c.OTEL.SocketPath, filepath.Join(root, "run", "otel-grpc.sock"))
}

// platformsMaxAge is how long the list of emulators holds.
func platformsMaxAge(c *config.Config) time.Duration {
	if age := c.System.PlatformsMaxAge; age != nil {
		return age.Duration
	}
	return 20 * time.Second
}

// workerPlatforms are what the configuration lists, or else what this machine runs.
func workerPlatforms(c *config.Config, machine *binfmt.Detector) ([]ocispecs.Platform, error) {
	if len(c.Workers.OCI.Platforms) == 0 {
		return machine.Platforms(), nil
	}
	var out []ocispecs.Platform
	for _, text := range c.Workers.OCI.Platforms {
		p, err := platforms.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("invalid platforms: %w", err)
		}
		out = append(out, platforms.Normalize(p))
	}
	return out, nil
}

// slots bounds the steps that are carried out at a time.
func slots(c *config.Config) (files, steps chan struct{}) {
	if n := c.Workers.OCI.MaxParallelism; n > 0 {
		steps = make(chan struct{}, n)
	}
	return make(chan struct{}, 4*runtime.GOMAXPROCS(0)), steps
}

// enabledFrontends leaves out those that the configuration turns off.
func enabledFrontends(c *config.Config, all map[string]frontend.Frontend) map[string]frontend.Frontend {
	if !config.Enabled(c.Frontend.Dockerfile.Enabled) {
		delete(all, "dockerfile.v0")
	}
	if !config.Enabled(c.Frontend.Gateway.Enabled) {
		delete(all, "gateway.v0")
	}
	return all
}

// entitlements are what builds that ask for them are granted.
func entitlements(c *config.Config) []string {
	out := c.Entitlements
	if d := c.CDI.Disabled; (d == nil || !*d) && !c.Entitlement("device") {
		out = append(out[:len(out):len(out)], "device") // the devices are named by files that root wrote
	}
	return out
}

// snapshotterName is the one of ours that a name stands for.
func snapshotterName(name string) (ours, notice string) {
	switch name {
	case "":
		return "auto", ""
	case "fuse-overlayfs", "stargz":
		return "auto", fmt.Sprintf("Kiln has no snapshotter %s: overlayfs is used where it works, else plain copies.", name)
	}
	return name, ""
}

// notices are what of a configuration the user may miss.
func notices(c *config.Config) (out []string) {
	w := c.Workers.OCI
	if _, text := snapshotterName(w.Snapshotter); text != "" {
		out = append(out, text)
	}
	if w.Enabled != nil && !*w.Enabled {
		out = append(out, "The oci worker is turned off, but it is the only one that Kiln has: it does the work.")
	}
	if w.NoProcessSandbox {
		out = append(out, "noProcessSandbox: steps see the processes of the daemon and of each other, and can end them. "+
			"It is for a daemon that is rootless in a container.")
	}
	if w.SELinux && !hasSELinux() {
		out = append(out, "SELinux has no effect: this machine has none.")
	}
	return out
}

// hasSELinux tells whether the kernel labels processes.
func hasSELinux() bool {
	_, err := os.Stat("/sys/fs/selinux")
	return err == nil
}

// confinement refuses what containers would not get, and what would put the
// machine in their hands.
func confinement(c *config.Config, rootless bool) error {
	w := c.Workers.OCI
	if w.SELinux && hasSELinux() {
		return errors.New("SELinux labels are asked for, which Kiln does not give to steps: " +
			"take the setting out to run them with seccomp, AppArmor and namespaces alone")
	}
	if w.NoProcessSandbox && !rootless {
		return errors.New("can't enable NoProcessSandbox without Rootless")
	}
	return nil
}
