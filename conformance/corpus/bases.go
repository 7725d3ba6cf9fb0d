package corpus

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Bases are the images that the corpus starts from, in an OCI layout. Cases may
// use them by their names.
type Bases struct {
	Dir     string            // of the layout
	Digests map[string]string // by name
	images  map[string]mutate.Appendable
}

// applets are the programs in base images.
var applets = []string{
	"sh", "true", "false", "sleep", "echo", "cat", "mkdir", "rm", "ln", "mv", "cp", "chmod", "chown", "touch", "id", "env",
	"pwd", "ls", "test", "stat", "find", "sort", "mount", "grep", "hostname", "wc", "head", "readlink", "sha256sum", "ulimit",
	"ash", "printf", "umask", "nproc", "df", "sed", "cut", "tr", "dd", "awk", "uname",
}

// MakeBases writes the base images, made of this machine's static busybox:
// nothing needs to be pulled.
func MakeBases(dir string) (*Bases, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, fmt.Errorf("find busybox, which the base images are made of: %w", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	b := &Bases{Dir: dir, Digests: map[string]string{}, images: map[string]mutate.Appendable{}}
	layers := map[string]v1.Layer{}
	for name, entries := range map[string][]entry{"busybox": busybox(program), "users": users(), "odd": odd(), "scan": {file("scan.sh", 0o755, ScanScript())}, "over": over(), "windows": onWindows(), "windows-over": overWindows()} {
		if layers[name], err = layerOf(entries); err != nil {
			return nil, fmt.Errorf("make layer %s: %w", name, err)
		}
	}
	configs := configs()
	for name, config := range configs {
		img, err := imageOf(config, layers)
		if err != nil {
			return nil, fmt.Errorf("make image %s: %w", name, err)
		}
		b.images[name] = img
	}
	for name, parts := range map[string][]string{"multi": {"multi-amd64", "multi-arm64", "multi-armv7"}, "windows": {"windows-one"}, "both": {"multi-amd64", "windows-one"}} {
		if b.images[name], err = b.index(parts); err != nil {
			return nil, fmt.Errorf("make image %s: %w", name, err)
		}
	}
	return b, b.write()
}

func (b *Bases) write() error {
	l, err := layout.Write(b.Dir, empty.Index)
	if err != nil {
		return err
	}
	for name, img := range b.images {
		switch img := img.(type) {
		case v1.Image:
			err = l.AppendImage(img)
		case v1.ImageIndex:
			err = l.AppendIndex(img)
		}
		if err != nil {
			return fmt.Errorf("write image %s: %w", name, err)
		}
		d, err := img.Digest()
		if err != nil {
			return err
		}
		b.Digests[name] = d.String()
	}
	return nil
}

// entry is a file of a layer.
type entry struct {
	tar.Header
	data []byte
}

func dir(name string, mode int64) entry {
	return entry{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode}}
}

func file(name string, mode int64, data string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}, []byte(data)}
}

func link(name, to string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Mode: 0o777, Linkname: to}}
}

func busybox(program []byte) []entry {
	entries := []entry{dir("bin", 0o755), file("bin/busybox", 0o755, string(program))}
	for _, a := range applets {
		entries = append(entries, link("bin/"+a, "busybox"))
	}
	return append(entries, dir("tmp", 0o1777), dir("etc", 0o755))
}

func users() []entry {
	return []entry{
		file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nbuilder:x:1000:1001:Builder:/home/builder:/bin/sh\nbin:x:2:2:bin:/bin:/bin/sh\n"),
		file("etc/group", 0o644, "root:x:0:\nbuilders:x:1001:\nstaff:x:50:builder\nbin:x:2:\n"),
		dir("home", 0o755), dir("root", 0o700),
	}
}

// odd are files of kinds that few images have.
func odd() []entry {
	owned := dir("odd", 0o2775)
	owned.Uid, owned.Gid = 1000, 1001
	hard := entry{Header: tar.Header{Name: "odd/hard", Typeflag: tar.TypeLink, Linkname: "odd/plain", Mode: 0o640}}
	attrs := file("odd/attrs", 0o644, "attrs\n")
	attrs.PAXRecords = map[string]string{"SCHILY.xattr.user.colour": "blue", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"}
	return []entry{
		owned, file("odd/plain", 0o640, "plain\n"), hard, file("odd/setuid", 0o4755, "setuid\n"), attrs,
		link("odd/up", "../etc"), link("odd/absolute", "/odd/plain"), link("odd/dangling", "nowhere"), link("odd/loop", "loop"),
		{Header: tar.Header{Name: "odd/pipe", Typeflag: tar.TypeFifo, Mode: 0o600}},
		{Header: tar.Header{Name: "odd/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
		dir("odd/sticky", 0o1777), file("odd/sticky/ünicode name", 0o600, "u\n"), file("odd/-dash", 0o644, "dash\n"), file("odd/[x]", 0o644, "brackets\n"),
		dir("odd/deep", 0o755), dir("odd/deep/er", 0o750), file("odd/deep/er/file", 0o444, "deep\n"),
		dir("work", 0o755), link("linkdir", "work"), link("run", "/var/run"), dir("var", 0o755), dir("var/run", 0o755),
	}
}

// over deletes and replaces what odd has.
func over() []entry {
	return []entry{dir("odd", 0o2775), dir("odd/deep", 0o755), file("odd/.wh.setuid", 0, ""), file("odd/deep/.wh..wh..opq", 0, ""), file("odd/plain", 0o600, "again\n")}
}

// onWindows is laid out as layers of Windows are: the files of a container are
// in a folder, beside others for the machine.
func onWindows() []entry {
	hard := entry{Header: tar.Header{Name: "Files/tree/hard.txt", Typeflag: tar.TypeLink, Linkname: "Files/a.txt"}}
	return []entry{
		dir("Files", 0o755), dir("Hives", 0o755), file("Hives/System_Delta", 0o644, "hive\n"), dir("UtilityVM", 0o755), dir("UtilityVM/Files", 0o755),
		file("Files/a.txt", 0o644, "a\n"), dir("Files/tree", 0o755), file("Files/tree/b.txt", 0o600, "b\n"), hard,
		link("Files/link", "Files/tree"), dir("Files/Windows", 0o755), dir("Files/Windows/System32", 0o755),
	}
}

// overWindows deletes and replaces what onWindows has.
func overWindows() []entry {
	return []entry{dir("Files", 0o755), dir("Files/tree", 0o755), file("Files/tree/.wh.b.txt", 0, ""), file("Files/a.txt", 0o644, "again\n"), dir("Hives", 0o755)}
}

func layerOf(entries []entry) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.ModTime = time.Unix(1_400_000_000, 0)
		if err := w.WriteHeader(&e.Header); err != nil {
			return nil, err
		}
		if _, err := w.Write(e.data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil },
		tarball.WithMediaType(types.OCILayer))
}

// imageConfig is what an image is made of.
type imageConfig struct {
	layers   []string
	platform v1.Platform // the zero value is this machine's
	config   v1.Config
}

// configs are the images by name.
func configs() map[string]imageConfig {
	path := v1.Config{Env: []string{"PATH=/bin"}}
	on := func(triggers ...string) imageConfig {
		return imageConfig{layers: []string{"busybox"}, config: v1.Config{Env: path.Env, OnBuild: triggers}}
	}
	for1 := func(os, arch, variant string) imageConfig {
		c := v1.Config{Env: []string{"PATH=/bin", "MADE_FOR=" + arch + variant}}
		return imageConfig{layers: []string{"users"}, platform: v1.Platform{OS: os, Architecture: arch, Variant: variant}, config: c}
	}
	// A layer of Windows stays one for BuildKit in whatever image it is.
	windows := for1("windows", "amd64", "")
	windows.layers = []string{"windows", "windows-over"}
	full := v1.Config{
		Env: []string{"PATH=/bin:/usr/bin", "FROM_BASE=yes", "EMPTY=", "QUOTED=a b"}, User: "builder", WorkingDir: "/home/builder",
		Labels: map[string]string{"from": "base", "version": "1"}, ExposedPorts: map[string]struct{}{"80/tcp": {}, "53/udp": {}},
		Volumes: map[string]struct{}{"/data": {}}, Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"echo", "base"},
		StopSignal: "SIGQUIT", Shell: []string{"/bin/ash", "-c"},
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Minute, Timeout: time.Second, Retries: 4},
	}
	return map[string]imageConfig{
		"base":            {layers: []string{"busybox"}, config: path},
		"users":           {layers: []string{"busybox", "users"}, config: path},
		"full":            {layers: []string{"busybox", "users"}, config: full},
		"odd":             {layers: []string{"busybox", "users", "odd"}, config: path},
		"over":            {layers: []string{"busybox", "odd", "over"}, config: path},
		"bare":            {layers: []string{"busybox"}},
		"nothing":         {},
		"scanner":         {layers: []string{"busybox", "scan"}, config: v1.Config{Env: path.Env, Entrypoint: []string{"/bin/sh", "/scan.sh"}}},
		"entry":           {layers: []string{"busybox"}, config: v1.Config{Env: path.Env, Entrypoint: []string{"/bin/echo", "entry"}, Cmd: []string{"of base"}}},
		"onbuild":         on("ENV TRIGGERED=yes", "WORKDIR /triggered", "COPY file .", "LABEL trigger=1"),
		"onbuild-run":     on("RUN echo from trigger > /trigger", "USER 1:1", `CMD ["a", "b"]`),
		"onbuild-arg":     on("ARG GREETING=hello", "ENV GREETING=$GREETING", "ADD --chown=5:6 file /added"),
		"onbuild-from":    on("COPY --from=helper /made /from-helper"),
		"onbuild-heredoc": on("COPY <<EOF /hd\nx\nEOF"),
		"onbuild-bad":     on("FROM base"),
		"onbuild-broken":  on("COPY"),
		"multi-amd64":     for1("linux", "amd64", ""),
		"multi-arm64":     for1("linux", "arm64", "v8"),
		"multi-armv7":     for1("linux", "arm", "v7"),
		"riscv":           for1("linux", "riscv64", ""),
		"windows-one":     windows,
	}
}

func imageOf(c imageConfig, layers map[string]v1.Layer) (v1.Image, error) {
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for _, name := range c.layers {
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{
			Layer: layers[name], MediaType: types.OCILayer,
			History: v1.History{Created: v1.Time{Time: time.Unix(1_400_000_000, 0).UTC()}, CreatedBy: name},
		}); err != nil {
			return nil, err
		}
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	config = config.DeepCopy()
	config.Config, config.Created = c.config, v1.Time{Time: time.Unix(1_400_000_000, 0).UTC()}
	config.OS, config.Architecture, config.Variant = c.platform.OS, c.platform.Architecture, c.platform.Variant
	if c.platform.OS == "" {
		config.OS, config.Architecture = "linux", runtime.GOARCH
	}
	return mutate.ConfigFile(img, config)
}

func (b *Bases) index(names []string) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, name := range names {
		img, ok := b.images[name].(v1.Image)
		if !ok {
			return nil, fmt.Errorf("%s is no image", name)
		}
		config, err := img.ConfigFile()
		if err != nil {
			return nil, err
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{
			Platform: &v1.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant},
		}})
	}
	return index, nil
}
