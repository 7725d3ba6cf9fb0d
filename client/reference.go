package client

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// Reference is a file system of a build that is under way.
type Reference struct {
	gateway *Gateway
	id      string
	def     *pb.Definition
}

// reference is nil for the reference to nothing.
func (g *Gateway) reference(w *gateway.Ref) *Reference {
	if w.GetId() == "" {
		return nil
	}
	return &Reference{g, w.GetId(), w.GetDef()}
}

// wire is the reference for the daemon; nil is the reference to nothing.
func (r *Reference) wire() *gateway.Ref {
	if r == nil {
		return &gateway.Ref{}
	}
	return &gateway.Ref{Id: r.id, Def: r.def}
}

// ToState makes a State of the reference, to build on. That of nil is empty.
func (r *Reference) ToState() (llb.State, error) {
	switch {
	case r == nil:
		return llb.Scratch(), nil
	case r.def == nil:
		if err := r.gateway.opts.Caps.need("reference.output", "tell the definition of a result"); err != nil {
			return llb.State{}, err
		}
		return llb.State{}, errors.New("the daemon did not tell the definition of the result")
	}
	return stateOf(r.def)
}

// Evaluate waits until the files are there.
func (r *Reference) Evaluate(ctx context.Context) error {
	if !r.gateway.opts.Caps["gateway.evaluate"] { // old daemons: a look at the files does it
		_, err := r.StatFile(ctx, ".")
		return err
	}
	_, err := r.gateway.api.Evaluate(ctx, &gateway.EvaluateRequest{Ref: r.id})
	return err
}

// FileRange is a part of a file, in bytes.
type FileRange struct{ Offset, Length int64 }

// ReadFile reads a file, or a part of it if part is not nil.
func (r *Reference) ReadFile(ctx context.Context, name string, part *FileRange) ([]byte, error) {
	resp, err := r.gateway.api.ReadFile(ctx, readRequest(r.id, name, part, 0))
	return resp.GetData(), err
}

func readRequest(id, name string, part *FileRange, mount int) *gateway.ReadFileRequest {
	req := &gateway.ReadFileRequest{Ref: id, FilePath: name, MountIndex: int32(mount)}
	if part != nil {
		req.Range = &gateway.FileRange{Offset: part.Offset, Length: part.Length}
	}
	return req
}

// ReadDir lists a directory. pattern selects names, as for path.Match; "" is all.
func (r *Reference) ReadDir(ctx context.Context, name, pattern string) ([]FileStat, error) {
	if err := r.gateway.opts.Caps.need("readdir", "list directories"); err != nil {
		return nil, err
	}
	resp, err := r.gateway.api.ReadDir(ctx, &gateway.ReadDirRequest{Ref: r.id, DirPath: name, IncludePattern: pattern})
	if err != nil {
		return nil, err
	}
	return fileStats(resp.GetEntries()), nil
}

// StatFile describes a file.
func (r *Reference) StatFile(ctx context.Context, name string) (*FileStat, error) {
	if err := r.gateway.opts.Caps.need("statfile", "describe files"); err != nil {
		return nil, err
	}
	resp, err := r.gateway.api.StatFile(ctx, &gateway.StatFileRequest{Ref: r.id, Path: name})
	if err != nil {
		return nil, err
	}
	st := fileStat(resp.GetStat())
	return &st, nil
}

// FileStat describes a file of a result.
type FileStat struct {
	Path     string // its name
	Mode     fs.FileMode
	UID, GID uint32
	Size     int64 // bytes
	ModTime  time.Time
	Linkname string // of a symlink, or the other name of a hard link
	// Devmajor and Devminor are the numbers of a device.
	Devmajor, Devminor int64
	Xattrs             map[string][]byte
}

func fileStat(st *fsutil.Stat) FileStat {
	return FileStat{
		Path: st.GetPath(), Mode: fs.FileMode(st.GetMode()), UID: st.GetUid(), GID: st.GetGid(), Size: st.GetSize(),
		ModTime: time.Unix(0, st.GetModTime()), Linkname: st.GetLinkname(),
		Devmajor: st.GetDevmajor(), Devminor: st.GetDevminor(), Xattrs: st.GetXattrs(),
	}
}

func fileStats(list []*fsutil.Stat) []FileStat {
	out := make([]FileStat, 0, len(list))
	for _, st := range list {
		out = append(out, fileStat(st))
	}
	return out
}
