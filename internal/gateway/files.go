package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/moby/patternmatcher"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/build"
	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/session"
)

// withRoot calls f with the files of the ref that a request names.
func (s *Service) withRoot(ctx context.Context, id string, f func(*safepath.Root) error) error {
	run, br, err := s.running(ctx)
	if err != nil {
		return err
	}
	g, err := run.lookup(id)
	if err != nil {
		return status.Error(codes.NotFound, err.Error())
	}
	if g == nil {
		return status.Errorf(codes.NotFound, "no such ref: %q", id)
	}
	ref, ok := g.ref.(*build.Ref)
	if !ok {
		return errors.New("the ref has no files")
	}
	return run.failed(br, ref.WithRoot(ctx, f))
}

// ReadFile returns a file's content, or a range of it.
func (s *Service) ReadFile(ctx context.Context, r *gateway.ReadFileRequest) (*gateway.ReadFileResponse, error) {
	return answerFile(ctx, r, func(f func(*safepath.Root) error) error { return s.withRoot(ctx, r.Ref, f) })
}

// ReadDir lists a directory.
func (s *Service) ReadDir(ctx context.Context, r *gateway.ReadDirRequest) (*gateway.ReadDirResponse, error) {
	return answerDir(ctx, r, func(f func(*safepath.Root) error) error { return s.withRoot(ctx, r.Ref, f) })
}

// StatFile tells of a file, of what it leads to if it is a symlink.
func (s *Service) StatFile(ctx context.Context, r *gateway.StatFileRequest) (*gateway.StatFileResponse, error) {
	resp := &gateway.StatFileResponse{}
	err := s.withRoot(ctx, r.Ref, func(root *safepath.Root) error {
		at, err := root.Resolve(r.Path)
		if err != nil {
			return err
		}
		resp.Stat, err = stat(root, at)
		return renamed(err, r.Path)
	})
	return resp, err
}

// mostRead is how many bytes of a file one answer holds: it must fit a message.
const mostRead = session.MaxMessage - 1024

// entryHead is how many bytes a message has for an entry of a list at most, beside it.
const entryHead = 8

// answerFile answers with what a request wants of a file. It waits for room while
// the files are not in use.
func answerFile(ctx context.Context, r *gateway.ReadFileRequest, with func(func(*safepath.Root) error) error) (*gateway.ReadFileResponse, error) {
	for room := smallAnswer; ; {
		resp, size := &gateway.ReadFileResponse{}, 0
		err := with(func(root *safepath.Root) (err error) {
			resp.Data, size, err = readFile(root, r, room)
			return err
		})
		if err != nil || size <= room {
			return resp, err
		}
		if err := reserve(ctx, size); err != nil {
			return nil, err
		}
		room = size
	}
}

// answerDir answers with what a request wants of a directory, as answerFile does.
func answerDir(ctx context.Context, r *gateway.ReadDirRequest, with func(func(*safepath.Root) error) error) (*gateway.ReadDirResponse, error) {
	for room := smallAnswer; ; room = mostRead {
		resp := &gateway.ReadDirResponse{}
		err := with(func(root *safepath.Root) (err error) {
			resp.Entries, err = readDir(root, r, room)
			return err
		})
		if large := (tooLarge{}); room == mostRead || !errors.As(err, &large) {
			return resp, err
		}
		if err := reserve(ctx, mostRead); err != nil {
			return nil, err
		}
	}
}

// tooLarge says that a list does not fit an answer.
type tooLarge struct {
	dir  string
	most int
}

// Error asks for less.
func (e tooLarge) Error() string {
	return fmt.Sprintf("list of %s exceeds maximum allowed size of %d bytes: ask for a part of it by a pattern", e.dir, e.most)
}

// readFile reads what a request wants of a regular file, and opens nothing else. If
// that is more than there is room for, it reads nothing and returns how many bytes
// it is.
func readFile(root *safepath.Root, r *gateway.ReadFileRequest, room int) (data []byte, size int, err error) {
	if r.Range != nil && (r.Range.Offset < 0 || r.Range.Length < 0) {
		return nil, 0, status.Errorf(codes.InvalidArgument, "invalid range for %s: %d bytes from %d", r.FilePath, r.Range.Length, r.Range.Offset)
	}
	f, err := root.Open(r.FilePath)
	if errors.Is(err, safepath.ErrSpecial) {
		return nil, 0, fmt.Errorf("read %s: not a regular file", r.FilePath)
	} else if err != nil {
		return nil, 0, renamed(err, r.FilePath)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, renamed(err, r.FilePath)
	}
	if !fi.Mode().IsRegular() {
		return nil, 0, fmt.Errorf("read %s: not a regular file", r.FilePath)
	}
	offset, length := int64(0), fi.Size()
	if r.Range != nil {
		offset, length = r.Range.Offset, min(r.Range.Length, max(0, length-r.Range.Offset))
	}
	switch {
	case length > mostRead:
		return nil, 0, fmt.Errorf("%s exceeds maximum allowed size of %d bytes: ask for a range of it", r.FilePath, mostRead)
	case length > int64(room):
		return nil, int(length), nil
	}
	data = make([]byte, length) // what is written to it from now on is not of the answer
	n, err := f.ReadAt(data, offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, 0, renamed(err, r.FilePath)
	}
	return data[:n], n, nil
}

// readDir lists what a request wants of a directory, in an answer of at most so many bytes.
func readDir(root *safepath.Root, r *gateway.ReadDirRequest, most int) (out []*fsutil.Stat, err error) {
	matches := func(string) (bool, error) { return true, nil }
	if r.IncludePattern != "" {
		pattern, err := patternmatcher.New([]string{r.IncludePattern})
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "pattern %q: %v", r.IncludePattern, err)
		}
		matches = pattern.MatchesOrParentMatches
	}
	dir, err := root.Resolve(r.DirPath)
	if err != nil {
		return nil, renamed(err, r.DirPath)
	}
	entries, err := root.ReadDir(dir)
	if err != nil {
		return nil, renamed(err, r.DirPath)
	}
	size := 0
	for _, e := range entries {
		if ok, err := matches(e.Name()); err != nil {
			return nil, fmt.Errorf("pattern %q: %w", r.IncludePattern, err)
		} else if !ok {
			continue
		}
		st, err := stat(root, path.Join(dir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a process has removed it meanwhile
		}
		if err != nil {
			return nil, err
		}
		if size += proto.Size(st) + entryHead; size > most {
			return nil, tooLarge{r.DirPath, most}
		}
		out = append(out, st)
	}
	return out, nil
}

// stat describes what is at a name, as BuildKit does it: directories have no
// size, and sockets lose their type.
func stat(root *safepath.Root, name string) (*fsutil.Stat, error) {
	fi, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	st := &fsutil.Stat{
		Path: path.Base(path.Join("/", name)), Mode: uint32(fi.Mode() &^ fs.ModeSocket), Size: fi.Size(), ModTime: fi.ModTime().UnixNano(),
	}
	if fi.IsDir() {
		st.Size = 0
	}
	if sys, ok := fi.Sys().(*syscall.Stat_t); ok {
		st.Uid, st.Gid = sys.Uid, sys.Gid
		if fi.Mode()&fs.ModeDevice != 0 {
			st.Devmajor, st.Devminor = int64(unix.Major(sys.Rdev)), int64(unix.Minor(sys.Rdev))
		}
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		if st.Linkname, err = root.Readlink(name); err != nil {
			return nil, err
		}
		return st, nil
	}
	attrs, err := root.LXattrs(name)
	if err != nil && !errors.Is(err, syscall.ENOTSUP) {
		return nil, err
	}
	if len(attrs) > 0 {
		st.Xattrs = attrs
	}
	return st, nil
}

// renamed gives an error the name that the client asked for.
func renamed(err error, name string) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return &fs.PathError{Op: p.Op, Path: name, Err: p.Err}
	}
	return err
}

// leadsOut tells whether a symlink's target is of another mount, perhaps, so
// that only a process inside could follow it.
func leadsOut(name, target string) bool {
	return path.IsAbs(target) || strings.HasPrefix(path.Join(strings.TrimPrefix(path.Dir(path.Join("/", name)), "/"), target), "..")
}
