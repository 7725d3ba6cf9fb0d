// Package mirror makes the images that BuildKit's own integration tests start
// from, without pulling anything: each holds this machine's static busybox under
// the names of its applets. BuildKit's harness serves a folder of a registry to
// the daemons it tests in place of docker.io, and leaves what is in it alone, so
// a folder written by Write is all of docker.io that those tests see.
package mirror

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// created is when all files and images are said to have been made.
func created() time.Time { return time.Date(2023, 5, 18, 22, 34, 17, 0, time.UTC) }

// Write serves dir with the registry program, which must be on PATH, and pushes
// all images into it. Dir is then fit for BUILDKIT_REGISTRY_MIRROR_DIR.
func Write(ctx context.Context, dir string) error {
	images, err := build(ctx)
	if err != nil {
		return fmt.Errorf("make the images of the mirror: %w", err)
	}
	r, err := serve(ctx, dir)
	if err != nil {
		return err
	}
	defer r.stop()
	for repository, image := range images {
		ref, err := name.NewTag(r.host+"/"+repository, name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(ref, image, remote.WithContext(ctx)); err != nil {
			return fmt.Errorf("push %s: %w", ref, err)
		}
	}
	return nil
}

// build makes the images by the names the tests use.
func build(ctx context.Context) (map[string]v1.Image, error) {
	files, err := rootFS(ctx)
	if err != nil {
		return nil, err
	}
	busybox, err := image("sh", files)
	if err != nil {
		return nil, err
	}
	alpine, err := image("/bin/sh", append(files, []file{
		{name: "proc/", mode: 0o555},
		{name: "sys/", mode: 0o555},
		{name: "etc/alpine-release", text: "3.18.0\n", mode: 0o644},
		{name: "etc/os-release", text: "NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.18.0\n", mode: 0o644},
		{name: "sbin/apk", text: noNetwork, mode: 0o755},
		{name: "etc/ssl/", mode: 0o755},
		{name: "etc/ssl/certs/", mode: 0o755},
		{name: "etc/ssl/certs/ca-certificates.crt", text: "# nobody is trusted\n", mode: 0o644},
	}...))
	if err != nil {
		return nil, err
	}
	foreign, err := foreignImage(files)
	if err != nil {
		return nil, err
	}
	none, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Created: v1.Time{Time: created()},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
	})
	if err != nil {
		return nil, err
	}
	return map[string]v1.Image{
		// These two let tests beside those that read them start.
		"amd64/debian:bullseye-20230109-slim": busybox,
		"tonistiigi/hellofs:latest":           busybox,

		"library/busybox:latest":           busybox,
		"library/busybox:stable-musl":      busybox,
		"library/alpine:latest":            alpine,
		"tonistiigi/test:nolayers":         none,
		"cpuguy83/buildkit-foreign:latest": foreign,
	}, nil
}

// image is one layer of files with the configuration of the public busybox image.
func image(shell string, files []file) (v1.Image, error) {
	layer, err := layerOf(files)
	if err != nil {
		return nil, err
	}
	base, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.DockerManifestSchema2), &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Created: v1.Time{Time: created()},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
		Config: v1.Config{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{shell},
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.Append(base, mutate.Addendum{Layer: layer, History: v1.History{
		Created: v1.Time{Time: created()}, CreatedBy: "/bin/sh -c #(nop) ADD file:busybox in / ",
	}})
}

// foreignImage has a first layer that registries need not hold. The address in
// its descriptor answers nothing: the mirror has the blob, too.
func foreignImage(files []file) (v1.Image, error) {
	first, err := layerOf(files)
	if err != nil {
		return nil, err
	}
	second, err := layerOf([]file{{name: "second", text: "of a layer that is not foreign\n", mode: 0o644}})
	if err != nil {
		return nil, err
	}
	base, err := mutate.ConfigFile(mutate.MediaType(empty.Image, types.DockerManifestSchema2), &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", Created: v1.Time{Time: created()},
		RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{}},
	})
	if err != nil {
		return nil, err
	}
	digest, err := first.Digest()
	if err != nil {
		return nil, err
	}
	return mutate.Append(base,
		mutate.Addendum{Layer: first, MediaType: types.DockerForeignLayer, URLs: []string{"http://127.0.0.1:9/" + digest.Hex}},
		mutate.Addendum{Layer: second})
}

type file struct {
	name string // a folder's ends in a slash
	text string // what is in a file, or "-> " and a link's target
	mode int64
}

// noNetwork stands for a program that needs the network, so that a test that
// calls it fails for a reason that can be read.
const noNetwork = "#!/bin/sh\necho \"$0: there is no network to fetch packages from\" >&2\nexit 99\n"

// addUser does what the tests want of adduser -D NAME, which busybox has not in
// every distribution.
const addUser = `#!/bin/sh
set -e
for name; do :; done
id=1000
while grep -q "^[^:]*:[^:]*:$id:" /etc/passwd; do id=$((id + 1)); done
echo "$name:x:$id:$id::/home/$name:/bin/sh" >>/etc/passwd
echo "$name:x:$id:" >>/etc/group
mkdir -p "/home/$name"
chown "$id:$id" "/home/$name"
`

// ttySize is busybox's ttysize, which Debian's has not: columns, then rows.
const ttySize = "#!/bin/sh\nset -- $(stty size)\necho \"$2 $1\"\n"

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n" +
		"bin:x:2:2:bin:/bin:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
	group = "root:x:0:\ndaemon:x:1:\nbin:x:2:\nwheel:x:10:root\nusers:x:100:games\nnobody:x:65534:\n"
)

// rootFS is what the public busybox image has: the applets in /bin, the usual
// folders, and a few users.
func rootFS(ctx context.Context) ([]file, error) {
	program, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("find busybox, which all images are made of: %w", err)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	list, err := exec.CommandContext(ctx, program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's applets: %w", err)
	}
	var files []file
	for _, dir := range []string{
		"bin/", "dev/", "etc/", "home/", "lib/", "sbin/", "usr/", "usr/bin/", "usr/sbin/", "var/", "var/spool/",
	} {
		files = append(files, file{name: dir, mode: 0o755})
	}
	files = append(files, []file{
		{name: "root/", mode: 0o700},
		{name: "tmp/", mode: 0o1777},
		{name: "etc/passwd", text: passwd, mode: 0o644},
		{name: "etc/group", text: group, mode: 0o644},
		{name: "bin/busybox", text: string(binary), mode: 0o755},
		{name: "usr/sbin/adduser", text: addUser, mode: 0o755},
		{name: "usr/bin/ttysize", text: ttySize, mode: 0o755},
	}...)
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" && applet != "adduser" && applet != "ttysize" {
			files = append(files, file{name: "bin/" + filepath.Base(applet), text: "-> busybox", mode: 0o777})
		}
	}
	return append(files, file{name: "usr/bin/env", text: "-> ../../bin/busybox", mode: 0o777}), nil
}

func layerOf(files []file) (v1.Layer, error) {
	var plain bytes.Buffer
	w := tar.NewWriter(&plain)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Mode: f.mode, ModTime: created(), Typeflag: tar.TypeReg, Size: int64(len(f.text))}
		target, isLink := strings.CutPrefix(f.text, "-> ")
		switch {
		case strings.HasSuffix(f.name, "/"):
			h.Typeflag, h.Size = tar.TypeDir, 0
		case isLink:
			h.Typeflag, h.Size, h.Linkname = tar.TypeSymlink, 0, target
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, f.text); err != nil {
				return nil, err
			}
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(plain.Bytes())), nil
	})
}
