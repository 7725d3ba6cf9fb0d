package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/auth"
	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/exporter"
	"github.com/kiln-build/kiln/internal/session/files"
	"github.com/kiln-build/kiln/internal/session/policy"
	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/ssh"
	"github.com/kiln-build/kiln/internal/session/upload"
	"github.com/kiln-build/kiln/llb/pb"
)

// Attach is what a build may use of this machine, and no more.
type Attach struct {
	// SharedKey names what this build's session has in common with earlier ones,
	// so that the daemon needs only the changes. It may be empty.
	SharedKey string
	// Dirs are directories that may be read, by name, such as "context".
	Dirs map[string]string
	// Trees are file systems that may be read, by name: directories that exist
	// only in this program. Names are shared with Dirs.
	Trees map[string]fs.FS
	// Files are directories that exist only here: for each name, files by name.
	Files map[string]map[string][]byte
	// Uploads can be read once each, at the URLs http://buildkit-session/NAME.
	Uploads map[string]io.Reader
	// Layouts are OCI layouts that may be read: directories by store id.
	Layouts map[string]string
	// Stores are content stores that may be read, by store id. Ids are shared with
	// Layouts.
	Stores  map[string]content.Store
	Secrets []Secret
	// SSH are the unix sockets of ssh agents, by id, such as "default".
	SSH map[string]string
	// Agents are ssh agents in other forms, by id; see [SSHAgent].
	Agents map[string]SSHAgent
	// DockerConfig is the directory of the Docker configuration with the
	// credentials of registries; "" is the usual one.
	DockerConfig string
	// RegistryTLS says how to reach the token servers of registries, by the host of
	// the registry.
	RegistryTLS map[string]*tls.Config
	// Services are more services that the daemon may call. Nothing that this struct
	// attaches may be among them.
	Services []Service
}

// Service is a service of gRPC that a client offers to the daemon.
type Service = session.Attachable

// SSHAgent is an ssh agent made of private keys, or a socket of any kind.
type SSHAgent = ssh.Agent

// Secret is a secret in a file or in a variable of the environment.
type Secret = secret.Source

// Export is one output of a build.
type Export struct {
	// Type is image, oci, docker, local or tar.
	Type  string
	Attrs map[string]string
	// One of these takes what comes back, for the types that send something:
	// Dir the files of local, Layout an image of type oci with tar=false, the
	// others archives.
	Dir    string
	Layout string
	File   string
	Writer io.Writer
	// Store takes the blobs of an image of type oci with tar=false.
	Store content.Store
	// DeleteOthers removes what is in Dir and not in the result.
	DeleteOthers bool
}

// LayoutDigest returns the digest of what an OCI layout has under a tag, or of
// its only image if tag is empty.
func LayoutDigest(dir, tag string) (string, error) {
	l, err := sessioncontent.OpenLayout(dir)
	if err != nil {
		return "", err
	}
	desc, err := l.Resolve(tag)
	if err = errors.Join(err, l.Close()); err != nil {
		return "", err
	}
	return desc.Digest.String(), nil
}

// services are what is attached to a session.
type services struct {
	list    []session.Attachable
	closers []io.Closer
	stores  map[string]content.Store // of blobs, by id
	outputs []*sessioncontent.Output
	imports []CacheEntry // those that are there
	caches  []*cacheOutput
}

// finish completes the outputs that the daemon only writes blobs to.
func (s *services) finish(ctx context.Context, response map[string]string) error {
	for _, o := range s.outputs {
		if err := o.Finish(response["containerimage.descriptor"], response["image.name"]); err != nil {
			return err
		}
	}
	for _, c := range s.caches {
		if err := c.finish(ctx, response["cache.manifest"]); err != nil {
			return err
		}
	}
	return nil
}

// close lets go of what was opened for reading only, so that an error is none.
func (s *services) close() {
	for _, c := range s.closers {
		_ = c.Close()
	}
}

// services opens all that a build's session serves.
func (o *SolveOpt) services() (_ *services, err error) {
	s := &services{stores: map[string]content.Store{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	a := &o.Attach
	s.list = append(s.list, auth.NewProvider((&auth.DockerConfig{Dir: a.DockerConfig}).Lookup, auth.Options{Dir: a.DockerConfig, TLS: a.RegistryTLS}))
	for _, attach := range []func(*Attach) error{s.directories, s.uploads, s.secrets, s.agents, s.contentStores} {
		if err := attach(a); err != nil {
			return nil, err
		}
	}
	if err := s.cacheStores(o.CacheExports, o.CacheImports); err != nil {
		return nil, err
	}
	if err := s.targets(o.Exports); err != nil {
		return nil, err
	}
	if len(s.stores) > 0 {
		s.list = append(s.list, sessioncontent.NewProvider(s.stores))
	}
	if o.SourcePolicyVerifier != nil {
		s.list = append(s.list, policy.NewProvider(o.SourcePolicyVerifier.answer))
	}
	if o.SessionExporter != nil {
		s.list = append(s.list, exporter.NewProvider(exportChooser{o.SessionExporter}))
	}
	s.list = append(s.list, a.Services...)
	return s, nil
}

// directories attaches what may be read as files.
func (s *services) directories(a *Attach) error {
	dirs := map[string]files.Source{}
	for name, dir := range a.Dirs {
		dirs[name] = files.FromDir(dir)
	}
	for name, tree := range a.Trees {
		dirs[name] = files.FromFS(tree)
	}
	for name, f := range a.Files {
		dirs[name] = files.FromMemory(f)
	}
	if len(dirs) > 0 {
		s.list = append(s.list, files.NewProvider(dirs))
	}
	return nil
}

func (s *services) uploads(a *Attach) error {
	if len(a.Uploads) == 0 {
		return nil
	}
	p := upload.NewProvider()
	for name, r := range a.Uploads {
		p.Add(name, r)
	}
	s.list = append(s.list, p)
	return nil
}

func (s *services) secrets(a *Attach) error {
	if len(a.Secrets) == 0 {
		return nil
	}
	p, err := secret.NewProvider(a.Secrets)
	if err != nil {
		return err
	}
	s.list = append(s.list, p)
	return nil
}

func (s *services) agents(a *Attach) error {
	if len(a.SSH)+len(a.Agents) == 0 {
		return nil
	}
	p, err := ssh.NewAgentProvider(a.SSH, a.Agents)
	if err != nil {
		return err
	}
	s.list = append(s.list, p)
	return nil
}

// contentStores attaches content stores to build from; they are called "oci:" and
// the id.
func (s *services) contentStores(a *Attach) error {
	for id, store := range a.Stores {
		s.stores["oci:"+id] = store
	}
	return s.layouts(a.Layouts)
}

// checkLocals tells of a directory that a definition reads and that is not offered,
// before the daemon has to ask for it in vain.
func (a *Attach) checkLocals(def *pb.Definition) error {
	for _, raw := range def.GetDef() {
		var op pb.Op
		if err := proto.Unmarshal(raw, &op); err != nil {
			return fmt.Errorf("failed to parse llb proto op: %w", err)
		}
		name, local := strings.CutPrefix(op.GetSource().GetIdentifier(), "local://")
		if !local || op.GetSource().GetAttrs()["local.session"] != "" {
			continue
		}
		_, dir := a.Dirs[name]
		_, tree := a.Trees[name]
		_, memory := a.Files[name]
		if !dir && !tree && !memory {
			return fmt.Errorf("local directory %s not enabled", name)
		}
	}
	return nil
}

// layouts attaches OCI layouts; their stores are called "oci:" and the id.
func (s *services) layouts(dirs map[string]string) error {
	for id, dir := range dirs {
		l, err := sessioncontent.OpenLayout(dir)
		if err != nil {
			return err
		}
		s.closers = append(s.closers, l)
		s.stores["oci:"+id] = l
	}
	return nil
}

// layoutOutput attaches a directory that an image is written to, blob by blob.
func (s *services) layoutOutput(dir string) error {
	if _, taken := s.stores[sessioncontent.ExportStore]; taken {
		return errors.New("only one output can be a layout (tar=false): leave out the others")
	}
	o, err := sessioncontent.NewOutput(dir)
	if err != nil {
		return err
	}
	s.outputs = append(s.outputs, o)
	s.stores[sessioncontent.ExportStore] = o
	return nil
}

// storeOutput attaches a content store that an image is written to.
func (s *services) storeOutput(store content.Store) error {
	if _, taken := s.stores[sessioncontent.ExportStore]; taken {
		return errors.New("only one output can be a layout (tar=false): leave out the others")
	}
	s.stores[sessioncontent.ExportStore] = store
	return nil
}

// targets attaches the outputs.
func (s *services) targets(exports []Export) error {
	targets := map[int]export.Target{}
	for i, e := range exports {
		switch {
		case e.Dir != "":
			if e.Type != "local" {
				return fmt.Errorf("output of type %s is a stream of bytes: it needs a file, not the directory %s", e.Type, e.Dir)
			}
			targets[i] = files.DirTarget{Name: e.Dir, Delete: e.DeleteOthers}
		case e.Layout != "":
			if err := s.layoutOutput(e.Layout); err != nil {
				return err
			}
		case e.Store != nil:
			if err := s.storeOutput(e.Store); err != nil {
				return err
			}
		case e.Type == "local":
			return errors.New("output of type local needs a directory")
		case e.File != "":
			targets[i] = export.FileTarget{Name: e.File}
		case e.Writer != nil:
			targets[i] = export.WriterTarget{W: e.Writer}
		}
	}
	if len(targets) > 0 {
		s.list = append(s.list, export.NewTargets(targets))
	}
	return nil
}
