package earthfile

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"path"
	"strings"

	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// gitClone puts a repository's files, with its history, into the container.
func (f *frame) gitClone(ctx context.Context, c *command) error {
	texts, err := f.expandAll(ctx, c, c.words)
	if err != nil {
		return err
	}
	if len(texts) != 2 {
		return fmt.Errorf("GIT CLONE is %s: expected GIT CLONE [--branch REF] URL DIR", c.raw)
	}
	branch, err := f.text(ctx, c, "branch")
	if err != nil {
		return err
	}
	repository := llb.Git(texts[0], branch, llb.KeepGitDir(), f.step(c))
	f.out.image.State = f.out.image.State.File(llb.Copy(repository, "/", f.absolute(texts[1]), copyInfo(true)), f.step(c))
	return nil
}

// cacheFolder mounts a folder for all commands behind it.
func (f *frame) cacheFolder(ctx context.Context, c *command) error {
	dir, err := f.one(ctx, c)
	if err != nil {
		return err
	}
	id, err := f.text(ctx, c, "id")
	if err != nil {
		return err
	}
	sharing, err := f.text(ctx, c, "sharing")
	if err != nil {
		return err
	}
	o, err := f.cache(path.Clean(f.absolute(dir)), id, sharing)
	f.out.runs = append(f.out.runs, o)
	return err
}

// host gives a name an address, for all commands behind it.
func (f *frame) host(ctx context.Context, c *command) error {
	texts, err := f.expandAll(ctx, c, c.words)
	if err != nil {
		return err
	}
	if len(texts) != 2 || net.ParseIP(texts[1]) == nil {
		return fmt.Errorf("HOST is %s: expected HOST NAME ADDRESS, as in HOST db.example.com 10.0.0.1", c.raw)
	}
	f.out.runs = append(f.out.runs, llb.AddExtraHost(texts[0], net.ParseIP(texts[1])))
	return nil
}

// fromDockerfile begins with the image of a Dockerfile.
func (f *frame) fromDockerfile(ctx context.Context, c *command) error {
	if len(c.words) != 1 {
		return fmt.Errorf("FROM DOCKERFILE is %s: expected FROM DOCKERFILE [-f FILE] FOLDER", c.raw)
	}
	name, err := f.expand(ctx, c, c.words[0])
	if err != nil {
		return err
	}
	d := sdk.Dockerfile{}
	if d.Platform, err = f.platformOf(ctx, c); err != nil {
		return err
	}
	if d.Args, err = f.arguments(ctx, c, nil); err != nil {
		return err
	}
	if d.Target, err = f.text(ctx, c, "target"); err != nil {
		return err
	}
	file, err := f.text(ctx, c, "f")
	if err != nil {
		return err
	}
	place, err := f.place(ctx, c, name)
	if err != nil {
		return err
	}
	d.Context = place.from
	if place.path != "/" {
		d.Context = llb.Scratch().File(llb.Copy(place.from, place.path, "/", copyInfo(true)), f.step(c))
	}
	at, err := f.place(ctx, c, cmp.Or(file, strings.TrimSuffix(name, "/")+"/Dockerfile"))
	if err != nil {
		return err
	}
	d.Dir, d.File = at.from, strings.TrimPrefix(at.path, "/")
	img, err := f.Dockerfile(ctx, d)
	if err != nil {
		return err
	}
	f.out.image, f.out.begun = img, true
	return nil
}

// place is a path of the context, or an artifact.
func (f *frame) place(ctx context.Context, c *command, name string) (source, error) {
	if strings.Contains(name, "+") {
		return f.artifact(ctx, c, c.words[0], name, nil)
	}
	st, err := f.Context(ctx)
	return source{from: st, path: path.Clean("/" + name)}, err
}

// wait carries out what is between WAIT and END before what stands behind it.
func (f *frame) wait(ctx context.Context, c *command) error {
	before := len(f.out.builds)
	if err := f.all(ctx, c.body); err != nil {
		return err
	}
	all := (&made{image: f.out.image, builds: f.out.builds[before:]}).withBuilds()
	return f.carryOut(ctx, all, f.platform)
}
