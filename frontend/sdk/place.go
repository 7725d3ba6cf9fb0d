package sdk

import (
	"bytes"
	"context"
	"fmt"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// Lines are the file's lines without their ends.
func (f *File) Lines() []string {
	var lines []string
	for line := range bytes.Lines(f.Data) {
		lines = append(lines, string(bytes.TrimRight(line, "\r\n")))
	}
	return lines
}

// source is the file for errors and warnings.
func (f *File) source() llb.SourceFile {
	return llb.SourceFile{Name: f.Name, Data: f.Data, From: f.from}
}

// Lines are the range of whole lines, from first to last, that count from 1.
func Lines(first, last int) llb.Range {
	return llb.Range{Start: llb.Position{Line: first}, End: llb.Position{Line: last}}
}

// Errorf is an error at a place of the file. The message starts with the place.
func (f *File) Errorf(at llb.Range, format string, args ...any) error {
	return &frontend.SourceError{
		File: f.source(), Ranges: []llb.Range{at}, Err: fmt.Errorf("%s:%d: %w", f.Name, at.Start.Line, fmt.Errorf(format, args...)),
	}
}

// Warning is a remark about a place of the file.
func (f *File) Warning(at llb.Range, short string, detail ...string) frontend.Warning {
	file := f.source()
	return frontend.Warning{Level: 1, Short: short, Detail: detail, File: &file, Ranges: []llb.Range{at}}
}

// Warn shows the user a warning about a place in the build file. It stops nothing.
func (b *Build) Warn(ctx context.Context, at llb.Range, short string, detail ...string) {
	b.gw.Warn(ctx, b.File.from.Root.Vertex.Digest(), b.File.Warning(at, short, detail...)) // at the step that loads the file
}

// Step is what a step is called and where in the build file it is written, so
// that an error of it shows the place. It is run anew if the user wants that. It
// is an option of whatever makes a step.
func (b *Build) Step(at llb.Range, format string, args ...any) Step {
	s := Step{llb.WithCustomNamef(format, args...), b.File.places.Location([]*pb.Range{wireRange(at)})}
	if b.NoCache {
		s = append(s, llb.IgnoreCache)
	}
	return s
}

// Step is several constraints as one.
type Step []llb.ConstraintsOpt

// SetConstraintsOption is for all operations, as are the next for one kind each.
func (s Step) SetConstraintsOption(c *llb.Constraints) {
	for _, o := range s {
		o.SetConstraintsOption(c)
	}
}

// SetRunOption is for processes.
func (s Step) SetRunOption(i *llb.ExecInfo) { s.SetConstraintsOption(&i.Constraints) }

// SetLocalOption is for directories of the client.
func (s Step) SetLocalOption(i *llb.LocalInfo) { s.SetConstraintsOption(&i.Constraints) }

// SetHTTPOption is for downloads.
func (s Step) SetHTTPOption(i *llb.HTTPInfo) { s.SetConstraintsOption(&i.Constraints) }

// SetImageBlobOption is for blobs of registries.
func (s Step) SetImageBlobOption(i *llb.ImageBlobInfo) { s.SetConstraintsOption(&i.Constraints) }

// SetImageOption is for images.
func (s Step) SetImageOption(i *llb.ImageInfo) { s.SetConstraintsOption(&i.Constraints) }

// SetGitOption is for git repositories.
func (s Step) SetGitOption(i *llb.GitInfo) { s.SetConstraintsOption(&i.Constraints) }

// SetOCILayoutOption is for layouts of the client.
func (s Step) SetOCILayoutOption(i *llb.OCILayoutInfo) { s.SetConstraintsOption(&i.Constraints) }
