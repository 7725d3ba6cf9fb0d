package dockerfile

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/patternmatcher"
	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// copyStep is a COPY or ADD with its variables replaced.
type copyStep struct {
	*syntax.Copy
	command  command
	add      bool
	sources  []string
	paths    []string // of the sources that are paths
	names    []string // of the heredocs
	dest     string
	written  string // the destination as the history has it
	chown    string
	chmod    string
	checksum string
	contents []string // of the heredocs
	exclude  []string
	from     llb.Edge // where plain sources are
	title    string
}

func (l *lowering) lowerCopy(s *stage, c command, i *syntax.Copy) error {
	step, err := l.expandCopy(s, c, i)
	if err != nil {
		return err
	}
	if err := l.checkCopy(step); err != nil {
		return err
	}
	step.from = l.context
	if len(c.sources) > 0 {
		src := c.sources[0]
		if !src.done {
			return l.errorAt(i.From.Span, fmt.Sprintf("cannot copy from stage %q, it needs to be defined before current stage", i.From.Value), "a stage above this one", "")
		}
		step.from = src.state.edge
	}
	step.title = l.title(s, i.Code, l.expander(), &s.state.env)
	name := l.stepName(s, triggerTitle(c, step.title), s.platform, &s.state.env)
	onto := s.state.edge
	if i.Link && step.chmod == "" {
		onto = llb.Edge{}
	}
	var copies []llb.FileStepFrom
	for n := range step.sources {
		one, err := l.copyOne(step, n, name)
		if err != nil {
			return err
		}
		copies = append(copies, one)
	}
	for n := range i.Heredocs {
		do, err := step.copyDo(path.Clean("/" + step.names[n]))
		if err != nil {
			return l.errorAt(i.Chmod.Span, err.Error(), "", "")
		}
		copies = append(copies, llb.FileStepFrom{Do: do, From: l.inlineFile(step.names[n], []byte(step.contents[n]), 0o644)})
	}
	v := l.place(s, &i.Head, c, llb.BuildFile(onto, copies...), name)
	v.Meta.IgnoreCache = s.ignoreCache
	if i.Link && step.chmod == "" {
		v = l.link(s, c, i, v, step.title, name)
	}
	s.state.edge = llb.Edge{Vertex: v}
	l.notePaths(c, step)
	s.config.commit(step.history(), true, l.epoch)
	return nil
}

// link lays copied files over the stage without looking at it, so that a new
// base does not mean a new copy.
func (l *lowering) link(s *stage, c command, i *syntax.Copy, files *llb.Vertex, title, name string) *llb.Vertex {
	if s.state.edge.Vertex == nil {
		return files
	}
	group := fmt.Sprintf("link-%s-%d", s.label, s.step)
	files.Meta.Group = &llb.Group{ID: group, Name: name, Weak: true}
	merge := l.place(s, &i.Head, c, &llb.Vertex{Op: &llb.MergeOp{Inputs: []int{0, 1}}, Inputs: []llb.Edge{s.state.edge, {Vertex: files}}},
		l.numbered(s, "LINK "+title, s.platform, &s.state.env))
	merge.Meta.Group = &llb.Group{ID: group, Name: name}
	merge.Meta.IgnoreCache = s.ignoreCache
	return merge
}

// expandCopy replaces the variables of a COPY or ADD.
func (l *lowering) expandCopy(s *stage, c command, i *syntax.Copy) (step *copyStep, err error) {
	h := &i.Head
	step = &copyStep{Copy: i, command: c, add: i.Verb == syntax.VerbAdd, exclude: syntax.Values(i.Exclude)}
	for _, t := range []struct {
		from *syntax.Text
		into *string
	}{{i.Chown, &step.chown}, {i.Chmod, &step.chmod}, {i.Checksum, &step.checksum}, {&i.Dest, &step.written}} {
		if *t.into, err = l.expandOptional(s, h, t.from); err != nil {
			return nil, err
		}
	}
	if step.sources, err = l.expandList(s, h, i.Sources); err != nil {
		return nil, err
	}
	for _, doc := range i.Heredocs {
		content := doc.Content
		if doc.Chomp {
			content = syntax.ChompTabs(content)
		}
		if doc.Expand {
			x, err := syntax.Expander{Escape: '\\', PlainQuote: true}.Expand(content, &s.state.env)
			if err != nil {
				return nil, l.errorAt(doc.Word, fmt.Sprintf("heredoc %s: %v", doc.Name.Value, err), "", "")
			}
			l.lintUnset(s, h, x.Unset)
			content = x.Text
		}
		step.contents = append(step.contents, content)
	}
	return step, l.placePaths(s, step)
}

// placePaths finds where in the images the sources and the destination are.
func (l *lowering) placePaths(s *stage, step *copyStep) error {
	system := s.platform.OS
	dest, err := imagePath(system, step.written)
	if err != nil {
		return l.errorAt(step.Dest.Span, err.Error(), "", "")
	}
	step.dest = destination(s.state.dir, dest)
	step.paths = make([]string, len(step.sources))
	for n, src := range step.sources {
		if isHTTP(src) || isGitURL(src) {
			continue
		}
		if step.paths[n], err = sourcePath(system, src, step.Parents); err != nil {
			return l.errorAt(step.Copy.Sources[n].Span, err.Error(), "", "")
		}
	}
	for _, doc := range step.Heredocs {
		name, err := imagePath(system, doc.Name.Value)
		if err != nil {
			return l.errorAt(doc.Word, err.Error(), "", "")
		}
		step.names = append(step.names, name)
	}
	return nil
}

// destination is where a copy goes. A slash at the end means "into".
func destination(dir, dest string) string {
	if dest == "" || dest == "." {
		dest = "./"
	}
	out := path.Clean(joinPath(dir, dest))
	switch {
	case strings.HasSuffix(dest, "/") && out != "/":
		out += "/"
	case strings.HasSuffix(dest, "/."):
		out = strings.TrimSuffix(out, "/") + "/."
	}
	return out
}

// checkCopy refuses flags that do not go together.
func (l *lowering) checkCopy(step *copyStep) error {
	if step.checksum != "" {
		at := step.Checksum.Span
		if len(step.sources) != 1 || len(step.Heredocs) > 0 {
			return l.errorAt(at, "--checksum stands with several sources", "one source", "")
		}
		if !isHTTP(step.sources[0]) && !isGitURL(step.sources[0]) {
			return l.errorAt(at, fmt.Sprintf("--checksum stands with the source %q", step.sources[0]), "an http, https or git URL", "")
		}
	}
	for n, src := range step.sources {
		switch {
		case !step.add && (isHTTP(src) || isGitURL(src) && strings.Contains(src, "://")):
			return l.errorAt(step.Copy.Sources[n].Span, fmt.Sprintf("%s has the URL %q as a source", l.word(syntax.VerbCopy), src), "a path; "+l.word(syntax.VerbAdd)+" takes URLs", "")
		case isHTTP(src) && !hasHost(src):
			return l.errorAt(step.Copy.Sources[n].Span, fmt.Sprintf("source %q is no URL with a host", src), "a URL such as https://example.com/file", "")
		}
	}
	return nil
}

func isHTTP(src string) bool {
	return (strings.HasPrefix(src, "http://") || strings.HasPrefix(src, "https://")) && !isGitURL(src)
}

func hasHost(src string) bool {
	u, err := url.Parse(src)
	return err == nil && u.Host != ""
}

// copyOne is the copy of one source.
func (l *lowering) copyOne(step *copyStep, n int, name string) (out llb.FileStepFrom, err error) {
	src := step.sources[n]
	var do *llb.DoCopy
	from := step.from
	switch {
	case step.add && isGitURL(src):
		if from, err = l.gitSource(step, n, name); err != nil {
			return out, err
		}
		do, err = step.copyDo("/")
	case isHTTP(src):
		if from, err = l.httpSource(step, src, name); err != nil {
			return out, err
		}
		if do, err = step.copyDo("/" + urlFile(src)); err == nil {
			do.Unpack = step.Unpack != nil && *step.Unpack
		}
	default:
		l.lintIgnored(step, n)
		do, err = step.localDo(step.paths[n])
	}
	if err != nil {
		return out, l.errorAt(step.Chmod.Span, err.Error(), "", "")
	}
	return llb.FileStepFrom{Do: do, From: from}, nil
}

// gitSource is a repository that is checked out.
func (l *lowering) gitSource(step *copyStep, n int, name string) (llb.Edge, error) {
	op, err := l.gitOp(step, n)
	if err != nil {
		return llb.Edge{}, err
	}
	return l.source(op, nil, name, &step.Head), nil
}

func (l *lowering) gitOp(step *copyStep, n int) (op llb.SourceOp, err error) {
	at, src := step.Copy.Sources[n].Span, step.sources[n]
	g, _, err := parseGitRef(src)
	if err != nil {
		return op, l.errorAt(at, fmt.Sprintf("git repository %q: %v", withoutPassword(src), err), "https://HOST/PATH.git?KEY=VALUE#REF:FOLDER, with keys such as branch, tag, checksum and subdir", "")
	}
	keep := step.KeepGitDir
	if keep != nil && g.keepGitDir != nil && *keep != *g.keepGitDir {
		return op, l.errorAt(at, "inconsistent keep-git-dir configuration: the flag and the URL contradict each other", "one of them, or both the same", "")
	}
	if step.checksum != "" && g.checksum != "" && step.checksum != g.checksum {
		return op, l.errorAt(at, fmt.Sprintf("checksum mismatch %q != %q: the flag and the URL contradict each other", step.checksum, g.checksum), "one of them, or both the same", "")
	}
	if g.checksum == "" {
		g.checksum = step.checksum
	}
	return g.op(isSet(keep) || isSet(g.keepGitDir), l.in.opts.gitAdvice, ""), nil
}

// httpSource is a file that is downloaded.
func (l *lowering) httpSource(step *copyStep, src, name string) (llb.Edge, error) {
	op, err := l.httpOp(step, src)
	if err != nil {
		return llb.Edge{}, err
	}
	return l.source(op, nil, name, &step.Head), nil
}

func (l *lowering) httpOp(step *copyStep, src string) (op llb.SourceOp, err error) {
	attrs := map[string]string{"http.filename": urlFile(src)}
	if step.checksum != "" {
		d, err := digest.Parse(step.checksum)
		if err != nil {
			return op, l.errorAt(step.Checksum.Span, fmt.Sprintf("checksum %q: %v", step.checksum, err), "sha256: and 64 hexadecimal digits", "")
		}
		attrs["http.checksum"] = d.String()
	}
	return llb.SourceOp{Identifier: src, Attrs: attrs}, nil
}

// urlFile is the name that a URL's file gets.
func urlFile(src string) string {
	if u, err := url.Parse(src); err == nil {
		if base := path.Base(u.Path); base != "." && base != "/" {
			return base
		}
	}
	return "__unnamed__"
}

var symbolicMode = regexp.MustCompile(`^([ugoa]*([-+=]([rwxXst]*|[ugo]))+)(,[ugoa]*([-+=]([rwxXst]*|[ugo]))+)*$`)

// copyDo is the copy of one path as it is.
func (step *copyStep) copyDo(src string) (*llb.DoCopy, error) {
	do := &llb.DoCopy{
		Src: src, Dest: step.dest, Owner: parseOwner(step.chown), Mode: -1, CreateDest: true,
		Exclude: step.exclude, Timestamp: llb.KeepTime,
	}
	if step.chmod == "" {
		return do, nil
	}
	mode, err := strconv.ParseUint(step.chmod, 8, 32)
	switch {
	case err == nil && mode <= 0o7777:
		do.Mode = int(mode)
	case err != nil && symbolicMode.MatchString(step.chmod):
		do.Mode, do.ModeStr = 0, step.chmod
	default:
		return nil, fmt.Errorf("invalid chmod parameter: '%s'. it should be octal string and between 0 and 07777, or a symbolic mode such as u+x,go-w", step.chmod)
	}
	return do, nil
}

// localDo is the copy of a path, pattern or directory of the context or a stage.
func (step *copyStep) localDo(src string) (*llb.DoCopy, error) {
	var include, required []string
	if step.Parents {
		parent, pattern, pivot := strings.Cut(src, "/./")
		if !pivot {
			parent, pattern = "/", src
		}
		inside := strings.TrimPrefix(joinPath("/", pattern), "/")
		include = []string{inside}
		if !hasWildcards(parent) && !hasWildcards(pattern) {
			required = []string{joinPath("/", path.Join(parent, "/"+inside))}
		}
		src = parent
	}
	do, err := step.copyDo(path.Clean(joinPath("/", src)))
	if err != nil {
		return nil, err
	}
	do.FollowSymlink, do.DirContents, do.Wildcard, do.AllowEmptyWildcard = true, true, true, true
	do.Include, do.Required = include, required
	do.Unpack = step.add
	if step.Unpack != nil {
		do.Unpack = *step.Unpack
	}
	return do, nil
}

func hasWildcards(p string) bool {
	for i := 0; i < len(p); i++ {
		switch p[i] {
		case '*', '?', '[':
			return true
		case '\\':
			i++
		}
	}
	return false
}

// inlineFile is a file whose content stands in the Dockerfile.
func (l *lowering) inlineFile(name string, content []byte, mode int) llb.Edge {
	key := fmt.Sprintf("inline %o %s %s", mode, name, content)
	if e, ok := l.sources[key]; ok {
		return e
	}
	do := &llb.DoMkfile{Path: path.Clean("/" + name), Mode: mode, Data: content, Timestamp: llb.KeepTime}
	e := describe(llb.BuildFile(llb.Edge{}, llb.FileStepFrom{Do: do}), "[internal] preparing inline document")
	l.sources[key] = e
	return e
}

// notePaths notes which paths of the context or stage are read.
func (l *lowering) notePaths(c command, step *copyStep) {
	for n, src := range step.sources {
		switch p := path.Join("/", step.paths[n]); {
		case isHTTP(src) || step.add && isGitURL(src):
		case len(c.sources) > 0:
			c.sources[0].paths[p] = true
		default:
			l.useContext(p)
		}
	}
}

// history is how the image's history tells of the copy.
func (step *copyStep) history() string {
	var b strings.Builder
	b.WriteString(step.Verb.String())
	if step.Parents {
		b.WriteString(" --parents")
	}
	if step.chown != "" {
		b.WriteString(" --chown=" + step.chown)
	}
	if step.chmod != "" {
		b.WriteString(" --chmod=" + step.chmod)
	}
	for _, src := range step.sources {
		b.WriteString(" " + src)
	}
	for _, doc := range step.Heredocs {
		b.WriteString(" <<" + doc.Name.Value)
	}
	return b.String() + " " + step.written + " # buildkit"
}

// lintIgnored remarks on a source that .dockerignore takes out of the context.
func (l *lowering) lintIgnored(step *copyStep, n int) {
	if len(step.command.sources) > 0 || l.mainUse == nil || len(l.mainUse.patterns) == 0 {
		return
	}
	if l.mainUse.matcher == nil {
		m, err := patternmatcher.New(l.mainUse.patterns)
		if err != nil {
			return // which the transfer of the context reports
		}
		l.mainUse.matcher = m
	}
	m := l.mainUse.matcher
	if m.Exclusions() || !l.mayCompare(len(l.mainUse.patterns)) {
		return // with exceptions, a file of an excluded directory may be there
	}
	src := strings.TrimPrefix(path.Clean(joinPath("/", step.paths[n])), "/")
	if src == "" && !slices.ContainsFunc(l.mainUse.patterns, func(p string) bool { return p == "*" || p == "**" || p == "**/*" }) {
		return // the root is never excluded itself
	}
	if src == "" {
		src = "."
	}
	if ignored, err := m.MatchesOrParentMatches(src); err == nil && ignored {
		l.lint.remark(ruleCopyIgnored, &step.Head, step.Line, "%q is excluded by .dockerignore", src)
	}
}
