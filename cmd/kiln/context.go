package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

// maxDockerfile is the size of the largest Dockerfile that is read, bytes. What
// is too large for the daemon, it says itself.
const maxDockerfile = 64 << 20

// remote is a context that the daemon fetches: a URL, or what git takes for one.
var remote = regexp.MustCompile(`^(https?://|git://|ssh://|[A-Za-z0-9_-]+@[A-Za-z0-9.-]+:|github\.com/)`)

// setContext sets the main context and the Dockerfile.
func setContext(e *env, cmd *cli.Command, o *client.SolveOpt) error {
	arg, file := cmd.Args().First(), cmd.String("file")
	o.Attach.Dirs, o.Attach.Files = map[string]string{}, map[string]map[string][]byte{}
	switch {
	case arg == "-":
		return stdinContext(e, cmd, o, file)
	case remote.MatchString(arg) && !isDir(arg):
		o.FrontendAttrs["context"] = arg
		if file == "-" {
			o.FrontendAttrs["dockerfilekey"] = "dockerfile"
			return stdinDockerfile(e, cmd, o)
		}
		if file != "" {
			o.FrontendAttrs["filename"] = file
		}
		return nil
	}
	info, err := os.Stat(arg)
	switch {
	case err != nil:
		return usagef(cmd, "build context: %v", err)
	case !info.IsDir():
		return usagef(cmd, "build context %s is a file: want a directory; for a Dockerfile of that name: kiln build -f %s .", arg, arg)
	}
	key, err := sharedKey(arg)
	if err != nil {
		return err
	}
	o.Attach.Dirs["context"], o.Attach.SharedKey = arg, key
	if file == "-" {
		return stdinDockerfile(e, cmd, o)
	}
	return diskDockerfile(cmd, o, arg, file)
}

func isDir(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.IsDir()
}

// sharedKey names a directory: builds of the same one share what was sent.
func sharedKey(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(host + "\x00" + abs))
	return filepath.Base(abs) + ":" + hex.EncodeToString(sum[:16]), nil
}

// diskDockerfile reads the Dockerfile and its own ignore file, so that nothing
// else of its directory is shared. It may lie outside the context.
func diskDockerfile(cmd *cli.Command, o *client.SolveOpt, dir, file string) error {
	path := filepath.Join(dir, "Dockerfile")
	if lower := filepath.Join(dir, "dockerfile"); file == "" && !exists(path) && isFile(lower) {
		path = lower // as docker build does
	}
	if file != "" {
		path = file
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) && !filepath.IsAbs(file) {
			if inside := filepath.Join(dir, file); isFile(inside) {
				path = inside
			}
		}
	}
	data, err := readCapped(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return usagef(cmd, "there is no Dockerfile %s%s", path, otherDockerfile(path))
		}
		return usagef(cmd, "read Dockerfile: %v", err)
	}
	name := filepath.Base(path)
	files := map[string][]byte{name: data}
	ignore, err := readCapped(path + ".dockerignore")
	if err == nil {
		files[name+".dockerignore"] = ignore
	} else if !errors.Is(err, fs.ErrNotExist) {
		return usagef(cmd, "read ignore file: %v", err)
	}
	o.Attach.Files["dockerfile"] = files
	o.FrontendAttrs["filename"] = name
	return nil
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && !info.IsDir()
}

// otherDockerfile is a hint at a file that could be meant.
func otherDockerfile(path string) string {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return ": there is no such directory"
	}
	want := strings.ToLower(filepath.Base(path))
	best, bestDistance := "", 4
	for _, e := range entries {
		name := strings.ToLower(e.Name())
		d := distance(name, want)
		if name == "containerfile" {
			d = min(d, 3)
		}
		if !e.IsDir() && d < bestDistance {
			best, bestDistance = e.Name(), d
		}
	}
	if best == "" {
		return ": name one with -f"
	}
	return fmt.Sprintf(". Did you mean -f %s?", filepath.Join(filepath.Dir(path), best))
}

// readCapped reads a file, also a pipe such as a shell's <(...).
func readCapped(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxDockerfile+1))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if len(data) > maxDockerfile {
		return nil, fmt.Errorf("%s is larger than %d bytes", name, maxDockerfile)
	}
	return data, nil
}

// stdinDockerfile reads the Dockerfile from standard input.
func stdinDockerfile(e *env, cmd *cli.Command, o *client.SolveOpt) error {
	data, err := io.ReadAll(io.LimitReader(e.stdin, maxDockerfile+1))
	switch {
	case err != nil:
		return fmt.Errorf("read Dockerfile from standard input: %w", err)
	case len(data) > maxDockerfile:
		return fmt.Errorf("the Dockerfile on standard input is larger than %d bytes", maxDockerfile)
	case len(bytes.TrimSpace(data)) == 0:
		return usagef(cmd, "the Dockerfile on standard input is empty")
	}
	o.Attach.Files["dockerfile"] = map[string][]byte{"Dockerfile": data}
	o.FrontendAttrs["filename"] = "Dockerfile"
	return nil
}

// stdinContext is the PATH "-": a tar, or a Dockerfile without a context.
func stdinContext(e *env, cmd *cli.Command, o *client.SolveOpt, file string) error {
	if file == "-" {
		return usagef(cmd, "-f - and PATH - exclude each other: standard input is one of them")
	}
	in := bufio.NewReaderSize(e.stdin, 4<<10)
	head, err := in.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read standard input: %w", err)
	}
	if isArchive(head) {
		o.Attach.Uploads = map[string]io.Reader{"context": in}
		o.FrontendAttrs["context"] = "http://buildkit-session/context"
		if file != "" {
			o.FrontendAttrs["filename"] = file
		}
		return nil
	}
	o.Attach.Files["context"] = map[string][]byte{}
	piped := *e
	piped.stdin = in
	if file == "" {
		return stdinDockerfile(&piped, cmd, o)
	}
	return usagef(cmd, "-f %s: standard input is no tar that it could be in", file)
}

// isArchive tells whether data begins as a tar does, or a compressed one.
func isArchive(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if bytes.HasPrefix(head, []byte(magic)) {
			return true
		}
	}
	return len(head) >= 262 && string(head[257:262]) == "ustar"
}

// setNamedContexts sets the contexts besides the main one.
func setNamedContexts(_ *env, cmd *cli.Command, o *client.SolveOpt) error {
	for _, s := range cmd.StringSlice("build-context") {
		name, value, ok := strings.Cut(s, "=")
		if name = strings.ToLower(name); !ok || name == "" || value == "" {
			return usagef(cmd, "--build-context %q: want NAME=VALUE", s)
		}
		if layout, ok := strings.CutPrefix(value, "oci-layout://"); ok {
			ref, err := layoutContext(o, name, layout)
			if err != nil {
				return usagef(cmd, "--build-context %s: %v", s, err)
			}
			o.FrontendAttrs["context:"+name] = ref
			continue
		}
		if remote.MatchString(value) || strings.HasPrefix(value, "docker-image://") {
			o.FrontendAttrs["context:"+name] = value
			continue
		}
		if !isDir(value) {
			return usagef(cmd, "--build-context %s: %s is no directory, and no docker-image://, oci-layout:// or URL", s, value)
		}
		local := name
		for o.Attach.Dirs[local] != "" || local == "context" || local == "dockerfile" {
			local = "named-" + local
		}
		key, err := sharedKey(value)
		if err != nil {
			return err
		}
		o.Attach.Dirs[local] = value
		o.FrontendAttrs["context:"+name] = "local:" + local
		o.FrontendAttrs["sharedkey:localdir:"+local] = key
	}
	if cmd.IsSet("build-context") {
		o.FrontendAttrs["frontend.caps"] = "moby.buildkit.frontend.contexts+forward"
	}
	return nil
}

// layoutContext attaches an OCI layout "DIR[:TAG][@DIGEST]" and returns how the
// daemon calls it.
func layoutContext(o *client.SolveOpt, name, spec string) (string, error) {
	dir, digest, _ := strings.Cut(spec, "@")
	tag := ""
	if i := strings.LastIndexByte(dir, ':'); i > strings.LastIndexByte(dir, '/') && !isDir(dir) {
		dir, tag = dir[:i], dir[i+1:]
	}
	if digest == "" {
		var err error
		if digest, err = client.LayoutDigest(dir, tag); err != nil {
			return "", err
		}
	}
	sum := sha256.Sum256([]byte(name + "\x00" + dir))
	store := "layout-" + hex.EncodeToString(sum[:8])
	if o.Attach.Layouts == nil {
		o.Attach.Layouts = map[string]string{}
	}
	o.Attach.Layouts[store] = dir
	return "oci-layout://" + store + "@" + digest, nil
}
