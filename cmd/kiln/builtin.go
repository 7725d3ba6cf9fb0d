package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontends/earthfile"
	"github.com/kiln-build/kiln/frontends/ickfile"
	llbfile "github.com/kiln-build/kiln/frontends/llb"
	"github.com/kiln-build/kiln/frontends/mockerfile"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/cache"
	cachev0 "github.com/kiln-build/kiln/internal/cache/v0"
	"github.com/kiln-build/kiln/internal/cachemount"
	"github.com/kiln-build/kiln/internal/config"
	"github.com/kiln-build/kiln/internal/content"
	"github.com/kiln-build/kiln/internal/daemon"
	"github.com/kiln-build/kiln/internal/dockerfile"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/executor/binfmt"
	"github.com/kiln-build/kiln/internal/executor/fake"
	"github.com/kiln-build/kiln/internal/executor/oci"
	"github.com/kiln-build/kiln/internal/exporter"
	dockerexporter "github.com/kiln-build/kiln/internal/exporter/docker"
	imageexporter "github.com/kiln-build/kiln/internal/exporter/image"
	localexporter "github.com/kiln-build/kiln/internal/exporter/local"
	ociexporter "github.com/kiln-build/kiln/internal/exporter/oci"
	tarexporter "github.com/kiln-build/kiln/internal/exporter/tar"
	"github.com/kiln-build/kiln/internal/gateway"
	"github.com/kiln-build/kiln/internal/history"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/namespace"
	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/proxy"
	"github.com/kiln-build/kiln/internal/registry"
	"github.com/kiln-build/kiln/internal/session"
	sessionexporter "github.com/kiln-build/kiln/internal/session/exporter"
	"github.com/kiln-build/kiln/internal/session/policy"
	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/ssh"
	"github.com/kiln-build/kiln/internal/snapshot"
	"github.com/kiln-build/kiln/internal/solver"
	"github.com/kiln-build/kiln/internal/source"
	blobsource "github.com/kiln-build/kiln/internal/source/blob"
	gitsource "github.com/kiln-build/kiln/internal/source/git"
	httpsource "github.com/kiln-build/kiln/internal/source/http"
	imagesource "github.com/kiln-build/kiln/internal/source/image"
	layoutsource "github.com/kiln-build/kiln/internal/source/layout"
	localsource "github.com/kiln-build/kiln/internal/source/local"
	"github.com/kiln-build/kiln/internal/store"
)

// This file is the only list of implementations: here, and nowhere else, it is
// said which sources, frontends, executors and exporters there are.

// settings are what of the daemon's options its parts depend on.
type settings struct {
	root     string
	executor string // "oci" or "fake"
	idle     time.Duration
	config   *config.Config
}

// closers are undone in reverse order.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

func (c *closers) Close() error {
	var errs []error
	for _, f := range slices.Backward(*c) {
		errs = append(errs, f())
	}
	*c = nil
	return errors.Join(errs...)
}

// newDaemon puts a daemon together on a root folder. Close its parts when it
// serves no more.
func newDaemon(ctx context.Context, s settings, ns namespace.Info) (_ *daemon.Server, _ *closers, err error) {
	parts := &closers{}
	defer func() {
		if err != nil {
			err = errors.Join(err, parts.Close())
		}
	}()
	db, err := openDatabase(s.root, parts)
	if err != nil {
		return nil, nil, err
	}
	reg := registry.New(registryConfig(s.config))
	blobs := newRemotes(reg)
	past, err := history.Open(filepath.Join(s.root, "history"), db, retention(s.config))
	if err != nil {
		return nil, nil, err
	}
	parts.add(past.Close)
	layers, snapshots, err := openLayers(ctx, s, db, blobs, parts)
	if err != nil {
		return nil, nil, err
	}
	ex, devices, err := newExecutor(s, ns, parts)
	if err != nil {
		return nil, nil, err
	}
	folders, err := openFolders(s)
	if err != nil {
		return nil, nil, err
	}
	sessions := session.NewManager()
	machine := &binfmt.Detector{MaxAge: platformsMaxAge(s.config)}
	native, err := workerPlatforms(s.config, machine)
	if err != nil {
		return nil, nil, err
	}
	collector, policies, err := newCollector(s.config, s.root, db, layers, keepers{cacheMountKeeper{folders.mounts}, folders.repos})
	if err != nil {
		return nil, nil, err
	}
	collector.Past = past
	env, err := provenanceEnv(s.config)
	if err != nil {
		return nil, nil, err
	}
	images, err := gateway.NewImageFrontend(s.config.Frontend.Gateway.AllowedRepositories, ownFrontends())
	if err != nil {
		return nil, nil, err
	}
	files, steps := slots(s.config)
	caches, err := newCaches(s, cache.New(db, layers.Store), db, blobs, parts)
	if err != nil {
		return nil, nil, err
	}
	ledger := history.NewLedger(db)
	builder := &build.Builder{
		Solver: solver.New(caches.Own), Caches: caches,
		Worker: &op.Worker{
			Platforms: native, Sources: newSources(layers, db, reg, sessions, folders.repos, folders.scratch), Executor: ex, Layers: layers.Store,
			CacheMounts: folders.mounts, Devices: devices, Secrets: secret.Daemon{}, SSH: ssh.Daemon{}, Scratch: folders.scratch,
			Slots: files, Steps: steps, Detected: machine.Platforms, Proxy: &proxy.Proxy{}, Room: newRoom(collector, ledger), Listed: listFiles(ledger), SecretHash: folders.hash,
			NoRoom: func(err error) error { return collector.Explain(err, true) },
			Late:   lateProgram(s, parts),
		},
		Frontends: enabledFrontends(s.config, map[string]frontend.Frontend{
			"dockerfile.v0": dockerfile.New(), build.ImageFrontendName: images,
		}),
		Exporters:    newExporters(layers, db, reg, blobs),
		Entitlements: entitlements(s.config), Caps: daemon.Caps(), ProxyNetwork: s.config.ProxyNetwork,
		ProvenanceEnv: env, DockerfileVersion: dockerfile.Version, Version: version,
		NoRoom: func(err error) error { return collector.Explain(err, false) },
	}
	parts.add(builder.Close)
	spans, err := daemon.NewSpanCollector(ctx)
	if err != nil {
		return nil, nil, err
	}
	id, err := workerID(s.root)
	if err != nil {
		return nil, nil, err
	}
	server := daemon.New(daemon.Config{
		Builder: builder, Sessions: sessions, Policy: policy.Daemon{}, Exports: sessionexporter.Daemon{}, Platforms: native,
		Detected: machine.Platforms, Policies: policies, Devices: devices,
		Collector: collector,
		History:   past, Blobs: layers.blobs, Ledger: ledger, Spans: spans,
		WorkerID: id, Version: "v" + version, Revision: revision(), IdleTimeout: s.idle, Trim: trimMemory, Labels: workerLabels(snapshots.Kind, s, ns),
	})
	images.Attach(server.Gateway())
	return server, parts, nil
}

// ownFrontends are the frontends of other languages than Dockerfiles, by the
// repositories of their images.
func ownFrontends() map[string]frontend.Frontend {
	return map[string]frontend.Frontend{
		earthfile.Image: earthfile.New(), ickfile.Image: ickfile.New(), llbfile.Image: llbfile.New(), mockerfile.Image: mockerfile.New(),
	}
}

func openDatabase(root string, parts *closers) (*store.Store, error) {
	if err := os.MkdirAll(root, 0o711); err != nil {
		return nil, fmt.Errorf("make root folder: %w", err)
	}
	db, err := store.Open(root)
	if err != nil {
		return nil, err
	}
	parts.add(db.Close)
	logRecovery(db.Recovered())
	return db, nil
}

// folders are what of the root belongs to steps and sources.
type folders struct {
	mounts  *cachemount.Mounts
	repos   *gitsource.Repos
	scratch string // of runs, emptied
	hash    op.SecretHash
}

func openFolders(s settings) (f folders, err error) {
	limits, err := mountLimits(s.config, s.root)
	if err != nil {
		return f, err
	}
	if f.mounts, err = cachemount.Open(filepath.Join(s.root, "cachemounts"), limits...); err != nil {
		return f, err
	}
	f.scratch = filepath.Join(s.root, "tmp", "runs")
	if err := errors.Join(os.RemoveAll(f.scratch), os.MkdirAll(f.scratch, 0o700)); err != nil {
		return f, fmt.Errorf("make folder for runs: %w", err)
	}
	if f.hash, err = secretHash(s.root); err != nil {
		return f, err
	}
	f.repos, err = gitsource.OpenRepos(filepath.Join(s.root, "git"))
	return f, err
}

// layerStore is the layers and the blobs that they are made of.
type layerStore struct {
	*layer.Store
	blobs *content.Store
}

func openLayers(ctx context.Context, s settings, db *store.Store, from layer.Fetcher, parts *closers) (*layerStore, *snapshot.Store, error) {
	kind, _ := snapshotterName(s.config.Workers.OCI.Snapshotter)
	snapshots, err := snapshot.Open(filepath.Join(s.root, "snapshots"), kind)
	if err != nil {
		return nil, nil, err
	}
	parts.add(snapshots.Close)
	logRecovery(snapshots.Recovered())
	blobs, err := content.Open(ctx, filepath.Join(s.root, "content"))
	if err != nil {
		return nil, nil, err
	}
	parts.add(blobs.Close)
	layers, err := layer.NewStore(ctx, layer.Config{
		Dir: filepath.Join(s.root, "layers"), Snapshots: snapshots, Content: blobs, Records: db,
		Fetcher:    from,
		References: func(ctx context.Context) (map[digest.Digest]bool, error) { return db.References(ctx, blobs) },
	})
	if err != nil {
		return nil, nil, err
	}
	parts.add(layers.Close)
	return &layerStore{layers, blobs}, snapshots, nil
}

// logRecovery tells of what a crash of the machine cost, if anything.
func logRecovery(sentence string) {
	if sentence != "" {
		slog.Warn(sentence)
	}
}

// newCaches are our own cache and how it is exchanged with others.
func newCaches(s settings, own *cache.Cache, db *store.Store, from *remotes, parts *closers) (c build.Caches, err error) {
	c = build.Caches{Own: own, Format: cachev0.Format{}, Fetcher: from, Volatile: from.volatile, Remember: registry.Remember}
	c.Memory = cache.NewMemory(time.Hour)
	if c.Identity, err = cacheIdentity(s.root, s.config.Cache.Trust); err != nil {
		return c, err
	}
	c.Places = from.caches(c.Identity.Public())
	if c.Trust, err = cacheTrust(s.config.Cache.Trust); err != nil {
		return c, err
	}
	if c.Later, err = build.NewLater(db); err != nil {
		return c, err
	}
	parts.add(c.Later.Close)
	return c, nil
}

// newExecutor returns what runs containers and, if they can have any, the
// machine's devices.
func newExecutor(s settings, ns namespace.Info, parts *closers) (executor.Executor, op.Devices, error) {
	switch s.executor {
	case "fake":
		return fake.New(), nil, nil
	case "oci":
		config := executorConfig(s, ns, filepath.Join(s.root, "run"))
		var devices op.Devices
		if cdi := s.config.CDI; cdi.Disabled == nil || !*cdi.Disabled {
			found, err := oci.OpenDevices(cdi.SpecDirs, cdi.AutoAllowed)
			if err != nil {
				return nil, nil, err
			}
			config.Devices, devices = found, found
		}
		ex, err := oci.New(config)
		if err != nil {
			return nil, nil, err
		}
		parts.add(ex.Close)
		return ex, devices, nil
	}
	return nil, nil, fmt.Errorf("no executor %q: expected oci or fake", s.executor)
}

// lateProgram is this program, as what waits in containers; "" where steps run in none.
func lateProgram(s settings, parts *closers) string {
	if s.executor != "oci" {
		return ""
	}
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	f, err := os.Open(self)
	if err != nil {
		return "" // it was replaced: frontends start as any container
	}
	parts.add(f.Close)
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd())
}

func newSources(layers *layerStore, db *store.Store, reg *registry.Client, sessions *session.Manager, repos *gitsource.Repos, scratch string) []source.Source {
	blobs := blobsource.New(blobsource.Config{Layers: layers, Blobs: layoutsource.Fetcher{Next: reg}, Sessions: sessions, Memo: db})
	return []source.Source{
		imagesource.New(imagesource.Config{Layers: layers, Content: layers.blobs, Registry: reg, Images: db, Memo: db}),
		layoutsource.New(layers, db, sessions),
		blobs,
		// Servers that make a difference do so by the name that they know.
		httpsource.New(httpsource.Config{Layers: layers, Memo: db, UserAgent: "kiln/" + version + " (like buildkit/v0.33)"}),
		gitsource.New(gitsource.Config{Layers: layers, Memo: db, Repos: repos, Scratch: scratch, Blobs: []source.Source{blobs}}),
		localsource.New(localsource.Config{Layers: layers, Memo: db, Sessions: sessions, Trees: layers}),
	}
}

func newExporters(layers *layerStore, db *store.Store, reg *registry.Client, from layer.Fetcher) map[string]exporter.Exporter {
	return map[string]exporter.Exporter{
		"image":  imageexporter.New(imageexporter.Config{Layers: layers, Content: layers.blobs, Images: db, Registry: reg, Fetcher: from}),
		"oci":    ociexporter.New(layers),
		"docker": dockerexporter.New(layers),
		"local":  localexporter.New(layers),
		"tar":    tarexporter.New(layers),
	}
}

// workerID names the root folder's worker, the same after every start.
func workerID(root string) (string, error) {
	file := filepath.Join(root, "workerid")
	if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
		return string(b), nil
	}
	id := digest.FromString(fmt.Sprint(root, time.Now().UnixNano(), os.Getpid())).Encoded()[:25]
	if err := os.WriteFile(file, []byte(id), 0o600); err != nil {
		return "", fmt.Errorf("write worker id: %w", err)
	}
	return id, nil
}

// workerLabels are by the keys of BuildKit's worker/label.
func workerLabels(snapshotter string, s settings, ns namespace.Info) map[string]string {
	const prefix = "org.mobyproject.buildkit.worker."
	network := "cni"
	if c := executorConfig(s, ns, ""); c.Rootless || c.Network.Host {
		network = "host"
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	labels := map[string]string{
		prefix + "executor": s.executor, prefix + "snapshotter": snapshotter, prefix + "hostname": host,
		prefix + "network": network, prefix + "oci.process-mode": "sandbox", prefix + "selinux.enabled": "false",
	}
	if s.config.Workers.OCI.NoProcessSandbox {
		labels[prefix+"oci.process-mode"] = "no-sandbox"
	}
	if profile := s.config.Workers.OCI.AppArmor; profile != "" {
		labels[prefix+"apparmor.profile"] = profile
	}
	maps.Copy(labels, s.config.Workers.OCI.Labels)
	return labels
}

// cacheMountKeeper shows cache mounts to the daemon as what else is kept.
type cacheMountKeeper struct{ mounts *cachemount.Mounts }

func (k cacheMountKeeper) Usage() ([]layer.Usage, error) {
	all, err := k.mounts.Usage()
	if err != nil {
		return nil, err
	}
	var out []layer.Usage
	for _, u := range all {
		out = append(out, layer.Usage{
			Record: layer.Record{
				ID: u.Name, Type: "exec.cachemount", Description: "cache mount " + u.ID,
				CreatedAt: u.Created, LastUsed: u.LastUsed, UsageCount: u.Uses,
			},
			InUse: u.InUse, Size: u.Size,
		})
	}
	return out, nil
}

func (k cacheMountKeeper) Remove(id string) (bool, error) { return k.mounts.Remove(id) }
