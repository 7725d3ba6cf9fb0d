package earthfile

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// files are files for the user.
type files struct {
	from      llb.State
	src, dest string
	info      *llb.CopyInfo
	step      sdk.Step
}

func (s files) onto(st llb.State) llb.State {
	return st.File(llb.Copy(s.from, s.src, s.dest, s.info), s.step)
}

// saveArtifact keeps files for other targets, and for the user.
func (f *frame) saveArtifact(ctx context.Context, c *command) error {
	words, local := c.words, ""
	if n := slices.IndexFunc(words, func(w word) bool { return w.text == "AS" }); n >= 0 {
		if len(words) != n+3 || words[n+1].text != "LOCAL" {
			return f.File.Errorf(words[n].at, "SAVE ARTIFACT is %s: expected AS LOCAL PATH at its end", c.raw)
		}
		var err error
		if local, err = f.expand(ctx, c, words[n+2]); err != nil {
			return err
		}
		if clean := path.Clean(local); path.IsAbs(local) || clean == ".." || strings.HasPrefix(clean, "../") {
			return f.File.Errorf(words[n+2].at, "local path %s leaves the folder that the build writes to: expected a path below it", local)
		}
		words = words[:n]
	}
	texts, err := f.expandAll(ctx, c, words)
	if err != nil {
		return err
	}
	if len(texts) == 0 || len(texts) > 2 {
		return fmt.Errorf("SAVE ARTIFACT is %s: expected SAVE ARTIFACT PATH [NAME] [AS LOCAL PATH]", c.raw)
	}
	src, dest := f.absolute(texts[0]), "/"
	if len(texts) == 2 {
		dest = path.Join("/", texts[1])
		if strings.HasSuffix(texts[1], "/") {
			dest = strings.TrimSuffix(dest, "/") + "/"
		}
	}
	st := f.out.image.State
	f.out.artifacts = f.out.artifacts.File(llb.Copy(st, f.saved(c, src), dest, f.saveInfo(c, texts[0], dest)), f.step(c))
	f.out.saved = true
	if local != "" {
		to := path.Join("/", local)
		if strings.HasSuffix(local, "/") && to != "/" {
			to += "/"
		}
		f.out.locals = append(f.out.locals, files{st, f.saved(c, src), to, f.saveInfo(c, texts[0], to), f.Step(c.at, "[+%s] output %s", f.at, local)})
	}
	return nil
}

// saved is the path to save, as a pattern if it may be missing.
func (f *frame) saved(c *command, src string) string {
	if src = strings.TrimSuffix(src, "/"); src == "" {
		src = "/"
	}
	if c.has("if-exists") {
		return optional(src)
	}
	return src
}

// saveInfo is how files are saved: into a folder by their names, or as dest.
func (f *frame) saveInfo(c *command, src, dest string) *llb.CopyInfo {
	whole := src == "." || src == "/" || src == "./"
	info := copyInfo(whole || !strings.HasSuffix(dest, "/"))
	info.FollowSymlinks = !c.has("symlink-no-follow")
	info.AllowEmptyWildcard = c.has("if-exists")
	if !c.has("keep-own") {
		llb.WithUIDGID(0, 0).SetCopyOption(info)
	}
	return info
}

// saveImage makes the files an image for the user.
func (f *frame) saveImage(ctx context.Context, c *command) error {
	names, err := f.expandAll(ctx, c, c.words)
	if err != nil {
		return err
	}
	f.out.isImage = true
	f.out.names = append(f.out.names, slices.DeleteFunc(names, func(s string) bool { return s == "" })...)
	return nil
}
