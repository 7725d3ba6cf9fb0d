// Package mockerfile is the frontend of Mockerfiles: images described in YAML, by
// what is in them rather than by how it got there. See README.md for the format.
//
// It reads a file ([parse], decode.go), checks it whole, and then makes steps of
// it (lower.go); what is to be installed is done by the package manager that the
// base turns out to have (install.go).
package mockerfile

import (
	"context"
	"fmt"
	"strings"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

// Image is the repository that the first line of a Mockerfile names.
const Image = "r2d4/mocker"

// New returns the frontend.
func New() frontend.Frontend { return sdk.Answering(build, targets) }

func build(ctx context.Context, req frontend.Request, gw frontend.Gateway) (*frontend.Result, error) {
	b, err := sdk.Open(ctx, req, gw)
	if err != nil {
		return nil, err
	}
	file, err := parse(b.File)
	if err != nil {
		return nil, err
	}
	target, err := file.target(b.File, b.Target)
	if err != nil {
		return nil, err
	}
	return b.Images(ctx, func(ctx context.Context, p ocispecs.Platform) (*sdk.Image, error) {
		l := &lowering{Build: b, file: file, platform: p, made: map[string]*sdk.Image{}}
		return l.image(ctx, target)
	})
}

// targets are the images of a file.
func targets(_ context.Context, b *sdk.Build) ([]sdk.Target, error) {
	file, err := parse(b.File)
	if err != nil {
		return nil, err
	}
	chosen, err := file.target(b.File, b.Target)
	if err != nil {
		return nil, err
	}
	var all []sdk.Target
	for _, img := range file.images {
		all = append(all, sdk.Target{Name: img.name.string, Default: img == chosen, Base: img.from.string, Line: img.at})
	}
	return all, nil
}

// mockerfile is a file, read.
type mockerfile struct {
	images []*image
}

// image is one image of a file.
type image struct {
	at         int // line
	name, from text
	pkg        *packages
	external   []external
	copies     []copying
	env        []pair
	labels     []pair
	run        []text
	workdir    text
	user       text
	entrypoint []string
	cmd        []string
}

// text is a value and its line.
type text struct {
	string
	at int
}

// pair is an entry of a map.
type pair struct{ key, value text }

// packages are what a package manager is to install, and where it comes from.
type packages struct {
	at                 int
	repo, gpg, install []text
}

// external is a file from a URL.
type external struct {
	at               int
	src, dst, sha256 text
	install          []text
}

// copying is files from the context, or from another image.
type copying struct {
	at                           int
	src, dst, from, chown, chmod text
}

// target is the image to be built: the last one if none is named.
func (f *mockerfile) target(file *sdk.File, name string) (*image, error) {
	if name == "" {
		return f.images[len(f.images)-1], nil
	}
	if img := f.find(name); img != nil {
		return img, nil
	}
	var names []string
	for _, img := range f.images {
		names = append(names, img.name.string)
	}
	hint := ""
	if near := syntax.Suggest(name, names); near != "" {
		hint = fmt.Sprintf(" (did you mean %s?)", near)
	}
	return nil, fmt.Errorf("target %q is none of the images of %s: expected one of %s%s", name, file.Name, strings.Join(names, ", "), hint)
}

// find returns the image of a name, nil if there is none.
func (f *mockerfile) find(name string) *image {
	for _, img := range f.images {
		if img.name.string == name && name != "" {
			return img
		}
	}
	return nil
}
