package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/filesync"
	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session"
)

// Source opens the files of one of a client's directories that a filter wants.
// If the tree is an [io.Closer], it is closed after use.
type Source func(Filter) (Tree, error)

// FromDir is the source of a directory on disk.
func FromDir(name string) Source {
	return func(f Filter) (Tree, error) { return OpenDir(name, f, OwnerRoot) }
}

// FromMemory is the source of files, by name, without directories.
func FromMemory(files map[string][]byte) Source {
	return func(f Filter) (Tree, error) { return NewMemory(files, f) }
}

// Provider lets the daemon read directories of this client, and no others. It
// is a [session.Attachable].
type Provider struct {
	filesync.UnimplementedFileSyncServer
	dirs map[string]Source
}

// NewProvider returns the provider of directories by name, such as "context".
func NewProvider(dirs map[string]Source) *Provider { return &Provider{dirs: dirs} }

// Register attaches the provider to a session.
func (p *Provider) Register(s *grpc.Server) { filesync.RegisterFileSyncServer(s, p) }

// DiffCopy sends a directory.
func (p *Provider) DiffCopy(stream grpc.BidiStreamingServer[fsutil.Packet, fsutil.Packet]) (err error) {
	md, _ := metadata.FromIncomingContext(stream.Context())
	name, filter, chunk, err := parseRequest(md)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	source, ok := p.dirs[name]
	if !ok {
		return status.Errorf(codes.NotFound, "no access allowed to dir %q: the client shares no directory of that name", name)
	}
	tree, err := source(filter)
	if err != nil {
		return status.Errorf(codes.Unknown, "read %s: %v", name, err)
	}
	if c, ok := tree.(io.Closer); ok {
		defer func() { err = errors.Join(err, c.Close()) }()
	}
	if err := send(stream.Context(), stream, tree, chunk, nil); err != nil {
		if errors.Is(err, context.Canceled) {
			return status.Error(codes.Canceled, "the daemon ended the transfer")
		}
		return status.Errorf(codes.Unknown, "read %s: %v", name, err)
	}
	return nil
}

// parseRequest reads what a DiffCopy asks for.
func parseRequest(md metadata.MD) (name string, f Filter, chunk int, err error) {
	var names []string
	for _, v := range []struct {
		key string
		to  *[]string
	}{{keyDirName, &names}, {keyInclude, &f.Include}, {keyExclude, &f.Exclude}, {keyFollow, &f.FollowPaths}} {
		if *v.to, err = session.GetMetadata(md, v.key); err != nil {
			return "", f, 0, err
		}
	}
	if len(names) != 1 || names[0] == "" {
		return "", f, 0, fmt.Errorf("want one directory name in the metadata %s, not %q", keyDirName, names)
	}
	chunk = smallChunk
	if v := md.Get(keyChunk); len(v) > 0 {
		n, err := strconv.ParseUint(v[0], 10, 31)
		if err != nil {
			return "", f, 0, fmt.Errorf("metadata %s: want a number, not %q", keyChunk, v[0])
		}
		chunk = max(chunk, min(int(n), session.LargeChunk))
	}
	return names[0], f, chunk, nil
}
