package build

import (
	"context"
	"fmt"
	"maps"
	"time"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/exporter"
	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session"
)

// attrEpoch is the exporters' attribute for SOURCE_DATE_EPOCH, argEpoch the
// build argument that stands for it, metaEpoch what a frontend says of it.
const (
	attrEpoch = "source-date-epoch"
	argEpoch  = "build-arg:SOURCE_DATE_EPOCH"
	metaEpoch = "source.date.epoch"
)

// withEpoch has the exporters heed a SOURCE_DATE_EPOCH that is given as a build
// argument. One that is no number is for the frontend to understand.
func withEpoch(exports []Export, opts map[string]string) []Export {
	v, ok := opts[argEpoch]
	if _, err := exporter.ParseEpoch(v); !ok || err != nil {
		return exports
	}
	out := make([]Export, len(exports))
	for i, e := range exports {
		out[i] = e
		if _, told := e.Attrs[attrEpoch]; told {
			continue
		}
		out[i].Attrs = maps.Clone(e.Attrs)
		if out[i].Attrs == nil {
			out[i].Attrs = map[string]string{}
		}
		out[i].Attrs[attrEpoch] = v
	}
	return out
}

// evaluate makes the files of every platform.
func (br *Bridge) evaluate(ctx context.Context, res *frontend.Result) (in exporter.Input, err error) {
	in = exporter.Input{
		Meta: res.Meta, Platforms: make([]exporter.Platform, len(res.Platforms)), CompatibilityVersion: br.req.CompatibilityVersion,
	}
	if in.Epoch, err = metaTime(res.Meta, metaEpoch); err != nil {
		return in, err
	}
	for i, p := range res.Platforms {
		id := platformID(p)
		one := exporter.Platform{ID: p.ID, Platform: p.Platform, Config: p.Config, Base: res.Meta["containerimage.base.config/"+id]}
		if one.Base == nil {
			one.Base = res.Meta["containerimage.base.config"]
		}
		if one.Epoch, err = metaTime(res.Meta, metaEpoch+"/"+id); err != nil {
			return in, err
		}
		in.Platforms[i] = one
	}
	eg, ctx := errgroup.WithContext(ctx)
	for i, p := range res.Platforms {
		eg.Go(func() error {
			edge, err := br.edge(ctx, p.Graph)
			if err != nil {
				return err
			}
			br.evaluated.Store(p.Graph, edge)
			in.Platforms[i].Ref, err = br.build(ctx, edge)
			return err
		})
		for _, a := range p.Attestations {
			eg.Go(func() error {
				_, err := br.solve(ctx, a.Graph)
				return err
			})
		}
	}
	return in, eg.Wait()
}

// remake makes results anew whose files turned out to be lost, such as by a
// cache of others that had promised them. It is false if err is of another kind.
func (br *Bridge) remake(ctx context.Context, res *frontend.Result, in *exporter.Input, why error) bool {
	some := false
	for i, p := range res.Platforms {
		edge, err := br.edge(ctx, p.Graph)
		if err != nil || edge.Vertex == nil {
			continue
		}
		r, err := br.job.Remake(ctx, edge, why)
		if err != nil {
			continue
		}
		some = true
		in.Platforms[i].Ref, _ = r.(*layer.Ref)
	}
	return some
}

// metaTime reads an epoch that a frontend gave.
func metaTime(meta map[string][]byte, key string) (*time.Time, error) {
	t, err := exporter.ParseEpoch(string(meta[key]))
	if err != nil {
		return nil, fmt.Errorf("%s of the frontend: %w", key, err)
	}
	return t, nil
}

// stepName is how an export is shown.
func (e Export) stepName() string {
	return "exporting to " + map[string]string{
		"image": "image", "oci": "oci image format", "docker": "docker image format", "local": "client directory", "tar": "client tarball",
	}[e.Type]
}

// exporting shows what an exporter does, in one go or in two, as a step.
func (br *Bridge) exporting(ctx context.Context, e Export, step digest.Digest, f func(context.Context) error) error {
	if err := progress.RunAs(session.WithGroup(ctx, br), br.req.Sink, step, e.stepName(), f); err != nil {
		return fmt.Errorf("export to %s: %w", e.Type, err)
	}
	return nil
}

// export carries the result out. What the exporter has to do when all others
// have succeeded goes to later.
func (br *Bridge) export(ctx context.Context, ex exporter.Exporter, e Export, i int, in exporter.Input,
	step digest.Digest, later func(func(context.Context) error),
) (out map[string]string, err error) {
	err = br.exporting(ctx, e, step, func(ctx context.Context) error {
		out, err = ex.Export(ctx, in, exporter.Target{Attrs: e.Attrs, ID: i, Session: br.req.Session, Later: later, Keep: br.req.Keep})
		return err
	})
	if err == nil && br.req.Exported != nil {
		br.req.Exported(i, out)
	}
	return out, err
}
