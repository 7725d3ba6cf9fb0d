package dockerfile

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// epochArg is the argument that sets the time of all that is made.
const epochArg = "SOURCE_DATE_EPOCH"

// timeQuery asks for the time of a source: of a commit, or of a file.
type timeQuery struct {
	op  llb.SourceOp
	log string
}

func (q timeQuery) key() string { return sourceKey(q.op) }

// readEpoch reads SOURCE_DATE_EPOCH, a build argument or a global ARG: seconds,
// or what has a time, which is "context", a named context or a stage.
func (l *lowering) readEpoch() error {
	v, given := l.in.opts.buildArgs[epochArg]
	if !given {
		v, _ = l.args.Get(epochArg)
	}
	if v == "" {
		return nil
	}
	if seconds, err := strconv.ParseInt(v, 10, 64); err == nil {
		l.setEpoch(time.Unix(seconds, 0))
		return nil
	}
	q, err := l.epochSource(v)
	if err != nil {
		return err
	}
	var t *time.Time
	if q != nil {
		known := false
		if t, known = l.facts.times[q.key()]; !known {
			l.need.times = append(l.need.times, *q)
		}
	}
	if t == nil {
		// What has no time of its own is as if nothing had been said.
		l.args.remove(epochArg)
		return nil
	}
	l.setEpoch(*t)
	l.args.set(epochArg, l.epochText)
	return nil
}

func (l *lowering) setEpoch(t time.Time) {
	t = time.Unix(t.Unix(), 0).UTC()
	l.epoch, l.epochText = &t, strconv.FormatInt(t.Unix(), 10)
}

// epochSource is the source that a name stands for, nil if it has no time.
func (l *lowering) epochSource(name string) (*timeQuery, error) {
	if name == "context" {
		if l.in.contextOp == nil {
			return nil, nil
		}
		return &timeQuery{*l.in.contextOp, "[internal] resolve main build context metadata"}, nil
	}
	if c, err := l.namedContext(name, l.in.target); err == nil && c != nil {
		op, isGit, err := l.in.opts.gitContext(c.value, false)
		switch {
		case isGit && err != nil:
			return nil, fmt.Errorf("use context %s=%s: %w", c.name, withoutPassword(c.value), err)
		case !isGit && !isHTTP(c.value):
			return nil, nil
		case !isGit:
			op = llb.SourceOp{Identifier: c.value, Attrs: map[string]string{"http.filename": "context"}}
		}
		return &timeQuery{op, "[internal] resolve SOURCE_DATE_EPOCH named context " + name}, nil
	}
	for _, s := range l.in.file.Stages {
		if s.From.Name.Value == "" || !strings.EqualFold(s.From.Name.Value, name) {
			continue
		}
		op, err := l.epochStage(s)
		if err != nil {
			return nil, err
		}
		return &timeQuery{*op, "[internal] resolve SOURCE_DATE_EPOCH source stage " + s.From.Name.Value}, nil
	}
	return nil, fmt.Errorf("invalid SOURCE_DATE_EPOCH: %s: expected seconds since 1970, \"context\", or the name of a context or a stage", name)
}

// epochStage is the one source of a stage that has nothing but that.
func (l *lowering) epochStage(s *syntax.Stage) (op *llb.SourceOp, err error) {
	env := l.args.clone()
	env.remove(epochArg)
	from, add := l.word(syntax.VerbFrom), l.word(syntax.VerbAdd)
	refuse := func(at syntax.Span, why string) (*llb.SourceOp, error) {
		return nil, l.errorAt(at, "SOURCE_DATE_EPOCH stage "+why, from+" scratch and one "+add+" of a URL or git repository", "")
	}
	base, err := l.expander().Expand(s.From.Image.Value, &env)
	if err != nil {
		return nil, l.errorAt(s.From.Image.Span, err.Error(), "", "")
	}
	if base.Text != scratch {
		return refuse(s.From.Image.Span, "must use "+from+" scratch")
	}
	for _, i := range s.Instructions {
		head := syntax.HeadOf(i)
		switch i := i.(type) {
		case *syntax.Arg:
			if err := l.epochArgs(i, &env); err != nil {
				return nil, err
			}
			continue
		case *syntax.Copy:
			if i.Verb != syntax.VerbAdd {
				break
			}
			if op != nil || len(i.Sources) != 1 || len(i.Heredocs) > 0 {
				return refuse(head.Span, "must contain exactly one remote "+add)
			}
			if op, err = l.epochAdd(i, &env); err != nil {
				return nil, err
			}
			if op == nil {
				return refuse(i.Sources[0].Span, "source must be a single HTTP(S) or Git "+add)
			}
			continue
		}
		return refuse(head.Span, "does not meet source-only requirements: unsupported "+l.word(head.Verb)+" instruction")
	}
	if op == nil {
		return refuse(s.From.Span, "must contain exactly one remote "+add)
	}
	return op, nil
}

func (l *lowering) epochArgs(i *syntax.Arg, env *environment) error {
	for _, a := range i.Args {
		if v, ok := l.in.opts.buildArgs[a.Key.Value]; ok {
			env.set(a.Key.Value, v)
		} else if a.Default != nil {
			x, err := l.expander().Expand(a.Default.Value, env)
			if err != nil {
				return l.errorAt(a.Default.Span, err.Error(), "", "")
			}
			env.set(a.Key.Value, x.Text)
		}
	}
	return nil
}

// epochAdd is the source of an ADD, nil if it is not remote.
func (l *lowering) epochAdd(i *syntax.Copy, env *environment) (*llb.SourceOp, error) {
	at := i.Sources[0].Span
	x, err := l.expander().Expand(i.Sources[0].Value, env)
	if err != nil {
		return nil, l.errorAt(at, err.Error(), "", "")
	}
	step := &copyStep{Copy: i, add: true, sources: []string{x.Text}}
	if i.Checksum != nil {
		sum, err := l.expander().Expand(i.Checksum.Value, env)
		if err != nil {
			return nil, l.errorAt(i.Checksum.Span, err.Error(), "", "")
		}
		step.checksum = sum.Text
	}
	var op llb.SourceOp
	switch {
	case isGitURL(x.Text):
		op, err = l.gitOp(step, 0)
	case isHTTP(x.Text):
		op, err = l.httpOp(step, x.Text)
	default:
		return nil, nil
	}
	return &op, err
}

// fetchTime finds out a source's time: of the commit, else of the file, else of
// the newest file in an archive.
func (d *driver) fetchTime(ctx context.Context, q timeQuery) (*time.Time, error) {
	op, platform := q.op, d.worker()
	meta, err := d.gw.ResolveSource(ctx, &op, frontend.ResolveOpt{Platform: &platform, LogName: q.log, GitObjects: strings.HasPrefix(op.Identifier, "git://")})
	if err != nil {
		return nil, fmt.Errorf("resolve SOURCE_DATE_EPOCH: %w", err)
	}
	switch name := op.Attrs["http.filename"]; {
	case meta.Git != nil:
		return commitTime(meta.Git.CommitObject)
	case meta.HTTP != nil && meta.HTTP.LastModified != nil:
		return meta.HTTP.LastModified, nil
	case meta.HTTP != nil && name != "":
		ref, err := d.gw.Solve(ctx, &llb.Graph{Root: llb.Edge{Vertex: &llb.Vertex{Op: &q.op}}})
		if err != nil {
			return nil, fmt.Errorf("resolve SOURCE_DATE_EPOCH: %w", err)
		}
		return newestFile(frontend.Open(ctx, ref, name))
	}
	return nil, nil
}

// commitTime reads when a commit was made.
func commitTime(object []byte) (*time.Time, error) {
	head, _, _ := bytes.Cut(object, []byte("\n\n"))
	for line := range bytes.SplitSeq(head, []byte("\n")) {
		who, ok := bytes.CutPrefix(line, []byte("committer "))
		if !ok {
			continue
		}
		fields := strings.Fields(string(who[bytes.LastIndexByte(who, '>')+1:]))
		if len(fields) == 0 {
			break
		}
		seconds, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read time of commit: %w", err)
		}
		t := time.Unix(seconds, 0).UTC()
		return &t, nil
	}
	return nil, errors.New("read time of commit: it has no committer with a time")
}

// newestFile is the time of the newest file in an archive, nil if it is none.
func newestFile(file io.Reader) (newest *time.Time, err error) {
	r, closeReader, err := decompress(bufio.NewReader(file))
	if err != nil {
		return nil, err
	}
	defer closeReader()
	archive := tar.NewReader(r)
	for first := true; ; first = false {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) || errors.Is(err, tar.ErrHeader) || first && errors.Is(err, io.ErrUnexpectedEOF) {
			return newest, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read times of archive: %w", err)
		}
		if t := h.ModTime.UTC(); h.FileInfo().Mode().IsRegular() && (newest == nil || t.After(*newest)) {
			newest = &t
		}
	}
}

// maxWindow bounds what a decompressor may keep in memory, in bytes.
const maxWindow = 128 << 20

func decompress(r *bufio.Reader) (io.Reader, func(), error) {
	head, err := r.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	nothing := func() {}
	switch {
	case bytes.HasPrefix(head, []byte("\x1f\x8b\x08")):
		z, err := gzip.NewReader(r)
		return z, nothing, err
	case bytes.HasPrefix(head, []byte("BZh")):
		return bzip2.NewReader(r), nothing, nil
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		z, err := xz.ReaderConfig{DictCap: maxWindow}.NewReader(r)
		return z, nothing, err
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return r, nothing, nil
}
