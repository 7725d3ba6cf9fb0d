package mockerfile

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// lowering makes one platform's images.
type lowering struct {
	*sdk.Build
	file     *mockerfile
	platform ocispecs.Platform
	made     map[string]*sdk.Image // of the file, by name
}

// image makes an image of the file.
func (l *lowering) image(ctx context.Context, img *image) (*sdk.Image, error) {
	out, err := l.find(ctx, img.from)
	if err != nil {
		return nil, err
	}
	made := *out // the base stays as it is
	for _, e := range img.env {
		made.State = made.State.AddEnv(e.key.string, e.value.string)
		made.Config.Env = setEnv(made.Config.Env, e.key.string, e.value.string)
	}
	if img.workdir.string != "" {
		dir := img.workdir.string
		if !path.IsAbs(dir) {
			dir = path.Join("/", made.Config.WorkingDir, dir)
		}
		made.State = made.State.Dir(dir).File(llb.Mkdir(dir, 0o755, llb.WithParents(true)), l.Step(line(img.workdir), "workdir: %s", dir))
		made.Config.WorkingDir = dir
	}
	// Only the image's own program runs as its user.
	user := made.Config.User
	made.State = made.State.User("0")
	if img.pkg != nil {
		made.State = l.install(made.State, img.pkg)
	}
	for _, e := range img.external {
		made.State = l.external(made.State, e)
	}
	for _, c := range img.copies {
		if made.State, err = l.copy(ctx, made.State, c); err != nil {
			return nil, err
		}
	}
	for _, command := range img.run {
		made.State = made.State.Run(llb.Args(shell(command.string)), l.Step(line(command), "run: %s", command.string)).Root()
	}
	if img.user.string != "" {
		user = img.user.string
	}
	made.State, made.Config.User = made.State.User(user), user
	configure(&made.Config, img)
	return &made, nil
}

// find finds a base: another image of the file, or one of a registry.
func (l *lowering) find(ctx context.Context, from text) (*sdk.Image, error) {
	if made := l.made[from.string]; made != nil {
		return made, nil
	}
	var out *sdk.Image
	var err error
	if other := l.file.find(from.string); other != nil {
		out, err = l.image(ctx, other)
	} else if out, err = l.Image(ctx, from.string, l.platform); err != nil {
		err = l.File.Errorf(line(from), "find image %s: %w", from.string, err)
	}
	if err != nil {
		return nil, err
	}
	l.made[from.string] = out
	return out, nil
}

// configure says how to run the image.
func configure(c *sdk.Config, img *image) {
	if len(img.labels) > 0 {
		labels := map[string]string{}
		maps.Copy(labels, c.Labels)
		for _, p := range img.labels {
			labels[p.key.string] = p.value.string
		}
		c.Labels = labels
	}
	if img.entrypoint != nil {
		c.Entrypoint, c.Cmd = img.entrypoint, nil // the base's arguments are for its own
	}
	if img.cmd != nil {
		c.Cmd = img.cmd
	}
}

// line is the place of a value.
func line(t text) llb.Range { return sdk.Lines(t.at, t.at) }

// shell runs a command line.
func shell(command string) []string { return []string{"/bin/sh", "-c", command} }

// setEnv sets a variable in a list that others may share.
func setEnv(env []string, key, value string) []string {
	out := make([]string, 0, len(env)+1)
	for _, kv := range env {
		if name, _, _ := strings.Cut(kv, "="); name != key {
			out = append(out, kv)
		}
	}
	return append(out, key+"="+value)
}

// external puts a download into the files, unpacked if it is an archive, and runs
// what is to be run with it.
func (l *lowering) external(st llb.State, e external) llb.State {
	at := sdk.Lines(e.at, max(e.src.at, e.dst.at, e.sha256.at))
	name := path.Base(strings.SplitN(e.src.string, "?", 2)[0])
	opts := []llb.HTTPOption{llb.Filename("download"), l.Step(at, "external: download %s", e.src.string)}
	if e.sha256.string != "" {
		opts = append(opts, llb.Checksum(digest.NewDigestFromEncoded(digest.SHA256, e.sha256.string)))
	}
	download := llb.HTTP(e.src.string, opts...)
	dst := e.dst.string
	info := &llb.CopyInfo{CreateDestPath: true}
	if isArchive(name) {
		info.AttemptUnpack = true
		dst = strings.TrimSuffix(dst, "/") + "/"
	} else {
		info.Mode = &llb.ChmodOpt{Mode: 0o755}
		if strings.HasSuffix(dst, "/") {
			dst += name
		}
	}
	st = st.File(llb.Copy(download, "/download", dst, info), l.Step(at, "external: %s to %s", name, e.dst.string))
	for _, command := range e.install {
		st = st.Run(llb.Args(shell(command.string)), l.Step(line(command), "external: %s", command.string)).Root()
	}
	return st
}

// isArchive tells by its name whether a file is unpacked.
func isArchive(name string) bool {
	for _, ext := range []string{".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst"} {
		if strings.HasSuffix(strings.ToLower(name), ext) {
			return true
		}
	}
	return false
}

// copy puts files of the context, or of another image, into the files.
func (l *lowering) copy(ctx context.Context, st llb.State, c copying) (llb.State, error) {
	at := sdk.Lines(c.at, max(c.at, c.src.at, c.dst.at))
	var from llb.State
	if c.from.string != "" {
		img, err := l.find(ctx, c.from)
		if err != nil {
			return st, err
		}
		from = img.State
	} else {
		var err error
		if from, err = l.Context(ctx, llb.FollowPaths([]string{path.Clean(strings.TrimPrefix(c.src.string, "/"))})); err != nil {
			return st, err
		}
	}
	info := &llb.CopyInfo{FollowSymlinks: true, CopyDirContentsOnly: true, CreateDestPath: true, AllowWildcard: true}
	if c.chmod.string != "" {
		mode, err := strconv.ParseUint(c.chmod.string, 8, 12)
		if err != nil {
			return st, l.File.Errorf(line(c.chmod), "chmod is %q, expected an octal number such as 0755", c.chmod.string)
		}
		info.Mode = &llb.ChmodOpt{Mode: os.FileMode(mode)}
	}
	opts := []llb.CopyOption{info}
	if c.chown.string != "" {
		opts = append(opts, llb.WithUser(c.chown.string))
	}
	return st.File(llb.Copy(from, c.src.string, c.dst.string, opts...), l.Step(at, "copy: %s to %s", source(c), c.dst.string)), nil
}

// source is where files are copied from, for the step's name.
func source(c copying) string {
	if c.from.string == "" {
		return c.src.string
	}
	return fmt.Sprintf("%s of %s", c.src.string, c.from.string)
}
