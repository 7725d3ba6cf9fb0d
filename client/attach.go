package client

import (
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"

	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/auth"
	sessioncontent "github.com/kiln-build/kiln/internal/session/content"
	"github.com/kiln-build/kiln/internal/session/export"
	"github.com/kiln-build/kiln/internal/session/files"
	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/ssh"
	"github.com/kiln-build/kiln/internal/session/upload"
)

// Attach is what a build may use of this machine, and no more.
type Attach struct {
	// SharedKey names what this build's session has in common with earlier ones,
	// so that the daemon needs only the changes. It may be empty.
	SharedKey string
	// Dirs are directories that may be read, by name, such as "context".
	Dirs map[string]string
	// Files are directories that exist only here: for each name, files by name.
	Files map[string]map[string][]byte
	// Uploads can be read once each, at the URLs http://buildkit-session/NAME.
	Uploads map[string]io.Reader
	// Layouts are OCI layouts that may be read: directories by store id.
	Layouts map[string]string
	Secrets []Secret
	// SSH are the unix sockets of ssh agents, by id, such as "default".
	SSH map[string]string
	// DockerConfig is the directory of the Docker configuration with the
	// credentials of registries; "" is the usual one.
	DockerConfig string
}

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
}

// finish completes the outputs that the daemon only writes blobs to.
func (s *services) finish(response map[string]string) error {
	for _, o := range s.outputs {
		if err := o.Finish(response["containerimage.descriptor"]); err != nil {
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

func (a *Attach) services(exports []Export) (_ *services, err error) {
	s := &services{stores: map[string]content.Store{}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	s.list = append(s.list, auth.NewProvider(auth.DockerConfig(a.DockerConfig)))
	if len(a.Dirs)+len(a.Files) > 0 {
		dirs := map[string]files.Source{}
		for name, dir := range a.Dirs {
			dirs[name] = files.FromDir(dir)
		}
		for name, f := range a.Files {
			dirs[name] = files.FromMemory(f)
		}
		s.list = append(s.list, files.NewProvider(dirs))
	}
	if len(a.Uploads) > 0 {
		p := upload.NewProvider()
		for name, r := range a.Uploads {
			p.Add(name, r)
		}
		s.list = append(s.list, p)
	}
	if len(a.Secrets) > 0 {
		p, err := secret.NewProvider(a.Secrets)
		if err != nil {
			return nil, err
		}
		s.list = append(s.list, p)
	}
	if len(a.SSH) > 0 {
		s.list = append(s.list, ssh.NewProvider(a.SSH))
	}
	if err := s.layouts(a.Layouts); err != nil {
		return nil, err
	}
	if err := s.targets(exports); err != nil {
		return nil, err
	}
	if len(s.stores) > 0 {
		s.list = append(s.list, sessioncontent.NewProvider(s.stores))
	}
	return s, nil
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
