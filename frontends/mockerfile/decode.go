package mockerfile

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"
	"go.yaml.in/yaml/v3"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

// version is the format's version, as files have it.
const version = "v1alpha1"

// maxSize is how long a file may be, in bytes.
const maxSize = 1 << 20

// decoder reads a file and collects its errors.
type decoder struct {
	file   *sdk.File
	errors frontend.SourceErrors
}

// fail reports an error at a line.
func (d *decoder) fail(line int, format string, args ...any) {
	var e *frontend.SourceError
	if errors.As(d.file.Errorf(sdk.Lines(line, line), format, args...), &e) {
		d.errors = append(d.errors, e)
	}
}

// parse reads a file, and reports all errors that it finds.
func parse(f *sdk.File) (*mockerfile, error) {
	if len(f.Data) > maxSize {
		return nil, fmt.Errorf("%s is %d bytes long, expected at most %d", f.Name, len(f.Data), maxSize)
	}
	d := &decoder{file: f}
	var doc yaml.Node
	if err := yaml.Unmarshal(f.Data, &doc); err != nil {
		return nil, d.broken(err)
	}
	m := &mockerfile{}
	if len(doc.Content) == 0 {
		d.fail(1, "file is empty: expected apiVersion: %s and images", version)
	} else {
		d.root(doc.Content[0], m)
	}
	if len(d.errors) == 0 {
		d.check(m)
	}
	switch len(d.errors) {
	case 0:
		return m, nil
	case 1:
		return nil, d.errors[0]
	}
	return nil, d.errors
}

// broken is an error of the YAML itself, which says its line in words.
func (d *decoder) broken(err error) error {
	message := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if m := regexp.MustCompile(`^line (\d+): `).FindStringSubmatch(message); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
		}
		message = strings.TrimPrefix(message, m[0])
	}
	return d.file.Errorf(sdk.Lines(line, line), "read YAML: %s", message)
}

func (d *decoder) root(n *yaml.Node, m *mockerfile) {
	var apiVersion text
	d.object(n, "file", map[string]func(*yaml.Node){
		"apiVersion": d.scalar(&apiVersion),
		"images": func(n *yaml.Node) {
			for _, item := range d.list(n) {
				m.images = append(m.images, d.image(item))
			}
		},
		"syntax": func(*yaml.Node) {}, // the first line, where JSON has no comments
	})
	switch {
	case len(d.errors) > 0:
	case apiVersion.string == "":
		d.fail(n.Line, "apiVersion is missing: expected apiVersion: %s", version)
	case apiVersion.string != version:
		d.fail(apiVersion.at, "apiVersion is %q, expected %s", apiVersion.string, version)
	case len(m.images) == 0:
		d.fail(n.Line, "file has no images: expected a list images with at least one")
	}
}

func (d *decoder) image(n *yaml.Node) *image {
	img := &image{at: n.Line}
	d.object(n, "image", map[string]func(*yaml.Node){
		"name": d.scalar(&img.name), "from": d.scalar(&img.from), "workdir": d.scalar(&img.workdir), "user": d.scalar(&img.user),
		"package":    func(n *yaml.Node) { img.pkg = d.packages(n) },
		"external":   func(n *yaml.Node) { img.external = each(d, n, d.external) },
		"copy":       func(n *yaml.Node) { img.copies = each(d, n, d.copying) },
		"env":        d.pairs(&img.env),
		"labels":     d.pairs(&img.labels),
		"run":        d.texts(&img.run),
		"steps":      d.texts(&img.run), // the name that early files have
		"entrypoint": d.command(&img.entrypoint),
		"cmd":        d.command(&img.cmd),
	})
	if img.from.string == "" && len(d.errors) == 0 {
		d.fail(img.at, "image has no from: expected from and a base image, or scratch")
	}
	return img
}

func (d *decoder) packages(n *yaml.Node) *packages {
	p := &packages{at: n.Line}
	d.object(n, "package", map[string]func(*yaml.Node){
		"repo": d.texts(&p.repo), "gpg": d.texts(&p.gpg), "install": d.texts(&p.install),
	})
	if len(d.errors) == 0 && len(p.repo)+len(p.gpg)+len(p.install) == 0 {
		d.fail(n.Line, "package says nothing: expected install, repo or gpg")
	}
	return p
}

func (d *decoder) external(n *yaml.Node) external {
	e := external{at: n.Line}
	d.object(n, "external", map[string]func(*yaml.Node){
		"src": d.scalar(&e.src), "dst": d.scalar(&e.dst), "sha256": d.scalar(&e.sha256), "install": d.texts(&e.install),
	})
	switch {
	case len(d.errors) > 0:
	case !isURL(e.src.string):
		d.fail(max(e.at, e.src.at), "external file has src %q, expected a URL: https://…", e.src.string)
	case !path.IsAbs(e.dst.string):
		d.fail(max(e.at, e.dst.at), "external file has dst %q, expected an absolute path", e.dst.string)
	case e.sha256.string != "" && digest.NewDigestFromEncoded(digest.SHA256, e.sha256.string).Validate() != nil:
		d.fail(e.sha256.at, "sha256 is %q, expected 64 hexadecimal digits", e.sha256.string)
	}
	return e
}

func isURL(s string) bool { return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://") }

// copying is a mapping, or "SRC DST" in short.
func (d *decoder) copying(n *yaml.Node) copying {
	c := copying{at: n.Line}
	if n.Kind == yaml.ScalarNode {
		words := strings.Fields(n.Value)
		if len(words) != 2 {
			d.fail(n.Line, "copy has %q, expected SRC DST", n.Value)
			return c
		}
		c.src, c.dst = text{words[0], n.Line}, text{words[1], n.Line}
		return c
	}
	d.object(n, "copy", map[string]func(*yaml.Node){
		"src": d.scalar(&c.src), "dst": d.scalar(&c.dst), "from": d.scalar(&c.from), "chown": d.scalar(&c.chown), "chmod": d.scalar(&c.chmod),
	})
	switch {
	case len(d.errors) > 0:
	case c.src.string == "" || c.dst.string == "":
		d.fail(c.at, "copy needs src and dst")
	case c.chmod.string != "":
		if _, err := strconv.ParseUint(c.chmod.string, 8, 12); err != nil {
			d.fail(c.chmod.at, "chmod is %q, expected an octal number such as 0755", c.chmod.string)
		}
	}
	return c
}

// object reads a mapping's fields. A field that is not known, or stands twice, is
// an error.
func (d *decoder) object(n *yaml.Node, what string, fields map[string]func(*yaml.Node)) {
	n = resolve(n)
	if n.Kind != yaml.MappingNode {
		d.fail(n.Line, "%s is %s, expected fields such as %s: …", what, kind(n), slices.Sorted(maps.Keys(fields))[0])
		return
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		read, known := fields[key.Value]
		switch {
		case !known:
			hint := "expected one of " + strings.Join(slices.Sorted(maps.Keys(fields)), ", ")
			if near := syntax.Suggest(key.Value, slices.Collect(maps.Keys(fields))); near != "" {
				hint = "did you mean " + near + "?"
			}
			d.fail(key.Line, "%s has the unknown field %q: %s", what, key.Value, hint)
		case seen[key.Value]:
			d.fail(key.Line, "%s has the field %s twice", what, key.Value)
		case value.Tag == "!!null": // as if it were not there
		default:
			read(resolve(value))
		}
		seen[key.Value] = true
	}
}

// resolve follows an alias to what it stands for. The format is of bounded depth,
// so aliases cannot make a small file a big one.
func resolve(n *yaml.Node) *yaml.Node {
	for range 8 {
		if n.Kind != yaml.AliasNode {
			break
		}
		n = n.Alias
	}
	return n
}

// kind is what a node is, for messages.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		return strconv.Quote(n.Value)
	}
	return "something else"
}

// list returns a list's items.
func (d *decoder) list(n *yaml.Node) []*yaml.Node {
	if n.Kind != yaml.SequenceNode {
		d.fail(n.Line, "here is %s, expected a list", kind(n))
		return nil
	}
	out := make([]*yaml.Node, len(n.Content))
	for i, item := range n.Content {
		out[i] = resolve(item)
	}
	return out
}

// each reads a list item by item.
func each[T any](d *decoder, n *yaml.Node, read func(*yaml.Node) T) (out []T) {
	for _, item := range d.list(n) {
		out = append(out, read(item))
	}
	return out
}

// scalar reads a text.
func (d *decoder) scalar(into *text) func(*yaml.Node) {
	return func(n *yaml.Node) { *into = d.text(n) }
}

func (d *decoder) text(n *yaml.Node) text {
	if n.Kind != yaml.ScalarNode {
		d.fail(n.Line, "here is %s, expected a text", kind(n))
	}
	return text{n.Value, n.Line}
}

// texts reads a list of texts.
func (d *decoder) texts(into *[]text) func(*yaml.Node) {
	return func(n *yaml.Node) {
		*into = append(*into, each(d, n, d.text)...)
	}
}

// pairs reads a mapping of any keys, in the order of the file.
func (d *decoder) pairs(into *[]pair) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind != yaml.MappingNode {
			d.fail(n.Line, "here is %s, expected NAME: VALUE", kind(n))
			return
		}
		for i := 0; i+1 < len(n.Content); i += 2 {
			*into = append(*into, pair{d.text(resolve(n.Content[i])), d.text(resolve(n.Content[i+1]))})
		}
	}
}

// command reads a list of arguments, or a line for the shell.
func (d *decoder) command(into *[]string) func(*yaml.Node) {
	return func(n *yaml.Node) {
		if n.Kind == yaml.ScalarNode {
			*into = []string{"/bin/sh", "-c", n.Value}
			return
		}
		for _, arg := range d.list(n) {
			*into = append(*into, d.text(arg).string)
		}
	}
}

// check finds what is wrong between images.
func (d *decoder) check(m *mockerfile) {
	for i, img := range m.images {
		if name := img.name.string; name != "" && m.find(name) != img {
			d.fail(img.name.at, "image %s stands here twice", name)
		}
		if len(m.images) > 1 && img.name.string == "" {
			d.fail(img.at, "image has no name: expected one, since the file has several images")
		}
		d.checkOrder(m, i, img.from)
		for _, c := range img.copies {
			d.checkOrder(m, i, c.from)
		}
	}
}

// checkOrder refuses references to images further down.
func (d *decoder) checkOrder(m *mockerfile, i int, from text) {
	if other := m.find(from.string); other != nil && slices.Index(m.images, other) >= i {
		d.fail(from.at, "image %s is made from line %d on: expected an image further up", from.string, other.at)
	}
}
