package dockerfile

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// mount is a RUN --mount (Docker's Dockerfile reference).
type mount struct {
	kind     string
	from     string
	source   string
	target   string
	id       string
	sharing  string
	env      *string
	size     int64
	readOnly *bool
	required bool
	mode     *uint64
	uid, gid *uint64
}

// mountKeys are the keys of a mount by their aliases.
func mountKeys() map[string]string {
	return map[string]string{
		"type": "type", "from": "from", "source": "source", "src": "source", "target": "target", "dst": "target",
		"destination": "target", "readonly": "readonly", "ro": "readonly", "readwrite": "readwrite", "rw": "readwrite",
		"id": "id", "sharing": "sharing", "required": "required", "size": "size", "mode": "mode", "uid": "uid",
		"gid": "gid", "env": "env",
	}
}

// mountKeyNames are the keys of a mount without their aliases.
func mountKeyNames() []string {
	return slices.Compact(slices.Sorted(maps.Values(mountKeys())))
}

// mountFrom returns the source stage of a mount before variables are known.
func (l *lowering) mountFrom(m syntax.Text) (string, error) {
	fields, err := l.mountFields(m)
	if err != nil {
		return "", err
	}
	from := scratch
	for _, f := range fields {
		key, value, ok := strings.Cut(f.Value, "=")
		if !ok || !strings.EqualFold(key, "from") {
			continue
		}
		if i := strings.IndexByte(value, '$'); i >= 0 && i != len(value)-1 {
			return "", l.errorAt(f.Span, fmt.Sprintf("'from' doesn't support variable expansion, define alias stage instead of %q", value),
				"a stage or an image", "")
		}
		if value != "" {
			from = value
		}
	}
	return from, nil
}

// mountFields splits a mount at its commas. Each field has its own place, but
// where quotes or escapes stand in between: then it is that of the whole.
func (l *lowering) mountFields(t syntax.Text) ([]syntax.Text, error) {
	fields, err := csvFields(t.Value)
	if err != nil {
		return nil, l.errorAt(t.Span, fmt.Sprintf("mount %q: %v", t.Value, err), "key=value,...", "")
	}
	plain := t.Span.End-t.Span.Start == len(t.Value) && !strings.Contains(t.Value, `"`)
	out, at := make([]syntax.Text, len(fields)), t.Span.Start
	for i, f := range fields {
		out[i] = syntax.Text{Value: f, Span: t.Span}
		if plain {
			out[i].Span = syntax.Span{Start: at, End: at + len(f)}
			at += len(f) + len(",")
		}
	}
	return out, nil
}

// parseMount reads a mount, replacing variables in the values.
func (l *lowering) parseMount(s *stage, h *syntax.Head, t syntax.Text) (*mount, error) {
	fields, err := l.mountFields(t)
	if err != nil {
		return nil, err
	}
	m := &mount{kind: "bind"}
	for _, f := range fields {
		key, value, hasValue := strings.Cut(f.Value, "=")
		name, known := mountKeys()[strings.ToLower(key)]
		if !known {
			suggest, expected := syntax.Suggest(key, slices.Collect(maps.Keys(mountKeys()))), ""
			if suggest == "" {
				expected = "one of " + strings.Join(mountKeyNames(), ", ")
			}
			return nil, l.errorAt(f.Span, fmt.Sprintf("unexpected key '%s' in a mount", key), expected, suggest)
		}
		if hasValue {
			if value, err = l.expand(s, h, syntax.Text{Value: value, Span: f.Span}); err != nil {
				return nil, err
			}
		}
		if problem, expected, suggest := m.set(name, value, hasValue); problem != "" {
			return nil, l.errorAt(f.Span, fmt.Sprintf("mount key %s %s", key, problem), expected, suggest)
		}
	}
	if problem, expected := m.check(); problem != "" {
		return nil, l.errorAt(t.Span, "mount of type "+m.kind+" "+problem, expected, "")
	}
	return m, nil
}

// set sets one key of a mount. It returns what is wrong with it, if anything.
func (m *mount) set(key, value string, hasValue bool) (problem, expected, suggest string) {
	if !hasValue {
		switch key {
		case "readonly", "readwrite", "required":
			value = "true"
		default:
			return "has no value", key + "=VALUE", ""
		}
	}
	bad := fmt.Sprintf("has the value %q", value)
	number := func(base int, into **uint64) (string, string, string) {
		n, err := strconv.ParseUint(value, base, 32)
		if err != nil {
			return bad, fmt.Sprintf("a number in base %d", base), ""
		}
		*into = &n
		return "", "", ""
	}
	switch key {
	case "type":
		kinds := []string{"bind", "cache", "tmpfs", "secret", "ssh"}
		problem, expected, suggest = oneOf(&m.kind, strings.ToLower(value), kinds)
		if problem != "" {
			problem = fmt.Sprintf("has an unsupported mount type %q", value)
		}
		return problem, expected, suggest
	case "sharing":
		return oneOf(&m.sharing, strings.ToLower(value), []string{"shared", "private", "locked"})
	case "from":
		m.from = value
	case "source":
		m.source = value
	case "target":
		m.target = value
	case "id":
		m.id = value
	case "env":
		m.env = &value
	case "mode":
		return number(8, &m.mode)
	case "uid":
		return number(10, &m.uid)
	case "gid":
		return number(10, &m.gid)
	case "size":
		n, err := parseBytes(value)
		if err != nil {
			return bad, "a size such as 64m", ""
		}
		m.size = n
	default: // readonly, readwrite, required
		b, err := strconv.ParseBool(value)
		if err != nil {
			return bad, "true or false", ""
		}
		switch key {
		case "required":
			m.required = b
		case "readwrite":
			b = !b
			fallthrough
		default:
			m.readOnly = &b
		}
	}
	return "", "", ""
}

func oneOf(into *string, value string, allowed []string) (problem, expected, suggest string) {
	if slices.Contains(allowed, value) {
		*into = value
		return "", "", ""
	}
	return fmt.Sprintf("has the value %q", value), "one of " + strings.Join(allowed, ", "), syntax.Suggest(value, allowed)
}

// check tells what does not fit the mount's type.
func (m *mount) check() (problem, expected string) {
	secret, ssh, cache := m.kind == "secret", m.kind == "ssh", m.kind == "cache"
	switch {
	case m.required && !secret && !ssh:
		return "has the key required", "it with secret and ssh only"
	case m.size != 0 && m.kind != "tmpfs":
		return "has the key size", "it with tmpfs only"
	case m.sharing != "" && !cache:
		return "has the key sharing", "it with cache only"
	case (m.mode != nil || m.uid != nil || m.gid != nil) && !secret && !ssh && !cache:
		return "has the keys mode, uid or gid", "them with cache, secret and ssh only"
	case secret && m.from != "":
		return "has the key from", "it with bind and cache only"
	case secret && m.source == "" && m.target == "" && m.id == "":
		return "has no id", "id, source or target"
	case secret && m.source != "" && m.id != "":
		return "has both id and source", "one of them"
	case ssh && m.source != "":
		return "has the key source", "id"
	}
	return "", ""
}

// writable reports whether the run may write to the mount.
func (m *mount) writable() bool {
	if m.readOnly != nil {
		return !*m.readOnly
	}
	return m.kind == "cache" || m.kind == "tmpfs"
}

var byteSize = regexp.MustCompile(`^([0-9]+(?:\.[0-9]+)?) ?(?:([kmgtp])?i?b?)$`)

// parseBytes reads a size in bytes or in multiples of 1024.
func parseBytes(v string) (int64, error) {
	m := byteSize.FindStringSubmatch(strings.ToLower(v))
	if m == nil {
		return 0, fmt.Errorf("size %q: expected a number and maybe k, m, g or t", v)
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		return 0, fmt.Errorf("size %q: %w", v, err)
	}
	if m[2] != "" {
		for range strings.Index("kmgtp", m[2]) + 1 {
			n *= 1024
		}
	}
	if n >= 1<<62 {
		return 0, fmt.Errorf("size %q is too large", v)
	}
	return int64(n), nil
}

// files makes a bind, cache or tmpfs mount.
func (l *lowering) files(s *stage, m *mount, src *stage, at syntax.Span) (llb.MountFrom, error) {
	out := llb.MountFrom{Mount: llb.Mount{Dest: m.target, ReadOnly: !m.writable()}, KeepInput: true}
	switch {
	case m.kind == "tmpfs":
		out.Kind, out.TmpfsSize = llb.MountTmpfs, m.size
	case m.kind == "cache" && m.from == "":
	case m.from == "":
		out.From = l.context
		l.useContext(path.Join("/", m.source))
	case !src.done:
		return out, l.errorAt(at, fmt.Sprintf("cannot mount from stage %q, which is not built yet here", m.from), "a stage above this one", "")
	default:
		out.From = src.state.edge
		src.paths[path.Join("/", m.source)] = true
	}
	if m.kind == "cache" {
		out.Kind = llb.MountCache
		id := m.id
		if id == "" {
			id = path.Clean(m.target)
		}
		out.CacheID = l.in.opts.cacheNamespace + "/" + id
		out.CacheSharing = map[string]llb.CacheSharing{"private": llb.CachePrivate, "locked": llb.CacheLocked}[m.sharing]
	}
	if !path.IsAbs(path.Clean(m.target)) {
		out.Dest = path.Join("/", s.state.dir, m.target)
	}
	if path.Clean(out.Dest) == "/" {
		return out, l.errorAt(at, fmt.Sprintf("mount has the target %q", m.target), "a path below /", "")
	}
	if source := path.Join("/", m.source); source != "/" {
		out.Selector = source
	} else if m.kind == "cache" && (m.uid != nil || m.gid != nil || m.mode != nil) {
		out.From, out.Selector = l.cacheSeed(m, out.From), "/cache"
	}
	return out, nil
}

// cacheSeed is what a new cache starts as where its directory is to have an
// owner or mode of its own.
func (l *lowering) cacheSeed(m *mount, base llb.Edge) llb.Edge {
	value := func(v *uint64, otherwise uint64) uint64 {
		if v == nil {
			return otherwise
		}
		return *v
	}
	do := &llb.DoMkdir{
		Path: "/cache", Mode: int(value(m.mode, 0o755) & 0o777), Timestamp: llb.KeepTime,
		Owner: &llb.Ownership{
			User: &llb.Owner{ID: uint32(value(m.uid, 0))}, Group: &llb.Owner{ID: uint32(value(m.gid, 0))},
		},
	}
	return describe(llb.BuildFile(base, llb.FileStepFrom{Do: do}), "[internal] setting cache mount permissions")
}

// secretInto adds a secret mount to a run.
func (m *mount) secretInto(r *run) {
	id := m.secretID()
	if m.env != nil {
		r.op.SecretEnv = append(r.op.SecretEnv, llb.SecretEnv{ID: id, Name: *m.env, Optional: !m.required})
		r.masked = append(r.masked, *m.env)
	}
	dest := m.target
	if m.env == nil && dest == "" {
		dest = "/run/secrets/" + path.Base(id)
	}
	if dest != "" {
		r.mounts = append(r.mounts, llb.MountFrom{Mount: llb.Mount{
			Kind: llb.MountSecret, Dest: dest, Secret: m.secretMount(id, 0o400),
		}})
	}
}

// secretID is what the client knows a secret by.
func (m *mount) secretID() string {
	switch {
	case m.source != "":
		return m.source
	case m.id != "":
		return m.id
	}
	return path.Base(m.target)
}

// sshInto adds an ssh agent mount to a run.
func (m *mount) sshInto(r *run) {
	r.mounts = append(r.mounts, llb.MountFrom{Mount: llb.Mount{
		Kind: llb.MountSSH, Dest: m.target, Secret: m.secretMount(m.id, 0o600),
	}})
}

func (m *mount) secretMount(id string, mode uint32) *llb.SecretMount {
	out := &llb.SecretMount{ID: id, Mode: mode, Optional: !m.required}
	if m.mode != nil {
		out.Mode = uint32(*m.mode)
	}
	if m.uid != nil {
		out.UID = uint32(*m.uid)
	}
	if m.gid != nil {
		out.GID = uint32(*m.gid)
	}
	return out
}
