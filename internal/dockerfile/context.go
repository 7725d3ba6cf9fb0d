package dockerfile

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/patternmatcher"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// contextSchemes are the schemes of named contexts, for messages.
const contextSchemes = "docker-image, oci-layout, git, http, https, local and input"

// namedContext is an option "context:NAME=VALUE".
type namedContext struct {
	name  string // with the platform if the option has one
	value string
}

// namedContext returns the context that the user put in place of an image or
// stage, nil if there is none. One for the platform wins over one for all.
func (l *lowering) namedContext(name string, p ocispecs.Platform) (*namedContext, error) {
	if len(l.in.opts.contexts) == 0 || strings.EqualFold(name, scratch) || strings.EqualFold(name, "context") {
		return nil, nil
	}
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, fmt.Errorf("find named context: %q is no name: %w", name, err)
	}
	short := strings.TrimSuffix(reference.FamiliarString(named), ":latest")
	for _, full := range []string{short + "::" + platforms.FormatAll(platforms.Normalize(p)), short} {
		if v, ok := l.in.opts.contexts[full]; ok {
			return &namedContext{name: full, value: v}, nil
		}
	}
	return nil, nil
}

// resolveContext makes a named context the base of a stage.
func (l *lowering) resolveContext(s *stage, c *namedContext, platform ocispecs.Platform) error {
	scheme, rest, ok := strings.Cut(c.value, ":")
	rest = strings.TrimPrefix(rest, "//")
	op, isGit, err := l.in.opts.gitContext(c.value, false)
	if !isGit {
		err = nil // or it would be an error of every other context
	}
	switch {
	case isGit && err != nil:
	case isGit:
		s.state.edge = l.source(op, nil, gitTitle(c.value), nil)
		s.resolved = true
	case !ok:
		err = fmt.Errorf("it has no scheme: expected one of %s", contextSchemes)
	case scheme == "docker-image":
		err = l.imageContext(s, c, rest, platform)
	case scheme == "oci-layout":
		err = l.layoutContext(s, c, rest, platform)
	case scheme == "http" || scheme == "https":
		op := llb.SourceOp{Identifier: c.value, Attrs: map[string]string{"http.filename": "context"}}
		s.state.edge = l.source(op, nil, "[context "+c.name+"] "+withoutPassword(c.value), nil)
		s.resolved = true
	case scheme == "local":
		l.localContext(s, c, rest)
	case scheme == "input":
		err = l.inputContext(s, rest)
	default:
		err = fmt.Errorf("scheme %q is not known: expected one of %s", scheme, contextSchemes)
	}
	if err != nil {
		return l.errorAt(s.nameSpan, fmt.Sprintf("use context %s=%s: %v", c.name, withoutPassword(c.value), err), "", "")
	}
	if !s.resolved {
		return nil
	}
	if s.config == nil {
		s.config = emptyConfig(platform)
		if s.context != nil { // the whole stage: it has no config of its own
			s.config = &imageConfig{}
		}
	} else {
		s.baseConfig = s.config.clone()
		s.config.Created = nil
		if s.context != nil && s.config.OS != "" && s.config.Architecture != "" {
			platform = s.config.Platform
		}
	}
	s.platform = &platform
	s.done = s.decl == nil || s.context != nil
	return nil
}

// imageContext is "docker-image://REF".
func (l *lowering) imageContext(s *stage, c *namedContext, ref string, platform ocispecs.Platform) error {
	if ref == scratch {
		s.resolved = true
		return nil
	}
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return fmt.Errorf("read image reference %q: %w", ref, err)
	}
	named = reference.TagNameOnly(named)
	return l.contextFact(s, imageQuery{
		op:       llb.SourceOp{Identifier: "docker-image://" + named.String(), Attrs: map[string]string{}},
		platform: platform, mode: l.in.opts.resolveMode, name: ref, at: s.nameSpan,
		log: "[context " + c.name + "] load metadata for " + ref,
	}, "[context "+c.name+"] "+ref)
}

// layoutContext is "oci-layout://STORE@DIGEST": a layout directory of the client.
func (l *lowering) layoutContext(s *stage, c *namedContext, spec string, platform ocispecs.Platform) error {
	ref, err := reference.Parse(spec)
	if err != nil {
		return fmt.Errorf("read layout reference %q: %w", spec, err)
	}
	named, isNamed := ref.(reference.Named)
	digested, isDigested := ref.(reference.Digested)
	if !isNamed || !isDigested {
		return fmt.Errorf("read layout reference %q: expected STORE@sha256:DIGEST", spec)
	}
	shortName, _, _ := strings.Cut(c.name, "::")
	shown, err := reference.ParseNormalizedNamed(shortName)
	if err != nil {
		return fmt.Errorf("name layout %q: %w", shortName, err)
	}
	shown, err = reference.WithDigest(shown, digested.Digest())
	if err != nil {
		return fmt.Errorf("name layout %q: %w", shortName, err)
	}
	return l.contextFact(s, imageQuery{
		op:       llb.SourceOp{Identifier: "oci-layout://" + shown.String(), Attrs: map[string]string{"oci.store": named.Name()}},
		platform: platform, mode: l.in.opts.resolveMode, name: c.name, at: s.nameSpan,
		log: "[context " + c.name + "] load metadata for " + shown.String(),
	}, "[context "+c.name+"] OCI load from client")
}

// contextFact makes an image the base of a stage, with the image's environment.
func (l *lowering) contextFact(s *stage, q imageQuery, title string) error {
	fact := l.image(q)
	if fact == nil {
		return nil
	}
	config, err := parseConfig(fact.config)
	if err != nil {
		return err
	}
	s.config, s.resolved = config, true
	s.state.edge = l.source(fact.op, &q.platform, title, nil)
	return nil
}

// localContext is "local:NAME": another directory of the client. Only what is
// used of it is transferred, which is known when all stages are lowered.
func (l *lowering) localContext(s *stage, c *namedContext, name string) {
	patterns, known := l.ignore(ignoreQuery{
		local: name, hint: "context:" + c.name + "-.dockerignore",
		title: "[context " + c.name + "] load .dockerignore", at: s.nameSpan,
	})
	if !known {
		return
	}
	v := l.in.opts.localVertex(name, "[context "+c.name+"] load from client", map[string]string{
		"local.sharedkeyhint": "context:" + c.name + "-" + l.in.opts.sharedKeys[c.name],
	})
	l.locals = append(l.locals, localUse{vertex: v, patterns: patterns, paths: s.paths})
	l.places = append(l.places, place{v, s.nameSpan}) // the client may not send it
	s.state.edge = llb.Edge{Vertex: v}
	s.resolved = true
}

// inputContext is "input:NAME": a graph that came with the request.
func (l *lowering) inputContext(s *stage, name string) error {
	g := l.in.inputs[name]
	if g == nil {
		return fmt.Errorf("request has no input %q", name)
	}
	s.state.edge, s.resolved = g.Root, true
	metadata, ok := l.in.opts.metadata[name]
	if !ok {
		return nil
	}
	var fields map[string][]byte
	if err := json.Unmarshal([]byte(metadata), &fields); err != nil {
		return fmt.Errorf("read metadata of input %s: %w", name, err)
	}
	if data, ok := fields["containerimage.config"]; ok {
		config, err := parseConfig(data)
		if err != nil {
			return fmt.Errorf("input %s: %w", name, err)
		}
		s.config = config
	}
	return nil
}

// localUse is a client's directory, and what is used of it.
type localUse struct {
	vertex   *llb.Vertex
	patterns []string                       // from .dockerignore
	matcher  *patternmatcher.PatternMatcher // of them; nil if it was not needed yet
	paths    map[string]bool
}

// finish puts what is to be transferred into the vertex.
func (u localUse) finish() error {
	for _, p := range u.patterns {
		if _, err := patternmatcher.New([]string{p}); err != nil {
			return fmt.Errorf("read pattern %q of .dockerignore: %w", p, err)
		}
	}
	attrs := u.vertex.Op.(*llb.SourceOp).Attrs
	if err := setList(attrs, "local.excludepatterns", u.patterns); err != nil {
		return err
	}
	return setList(attrs, "local.followpaths", followPaths(u.paths))
}

// setList sets an attribute that is a JSON list, if it has elements.
func setList(attrs map[string]string, key string, list []string) error {
	if len(list) == 0 {
		return nil
	}
	data, err := json.Marshal(list)
	if err != nil {
		return fmt.Errorf("write attribute %s: %w", key, err)
	}
	attrs[key] = string(data)
	return nil
}

// followPaths are the paths to transfer, nil for all.
func followPaths(used map[string]bool) []string {
	if used["/"] {
		return nil
	}
	var out []string
	for p := range used {
		out = append(out, path.Join(".", p))
	}
	slices.Sort(out)
	return out
}

// localVertex is a directory of the client, or of the one that the request says.
func (o *options) localVertex(name, title string, attrs map[string]string) *llb.Vertex {
	if id := o.sessions[name]; id != "" {
		attrs["local.session"] = id
	}
	return &llb.Vertex{
		Op:   &llb.SourceOp{Identifier: "local://" + name, Attrs: attrs},
		Meta: llb.Metadata{Description: map[string]string{"llb.customname": title}},
	}
}
