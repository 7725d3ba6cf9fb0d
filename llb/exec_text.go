package llb

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// execKeywords are the words that begin a part of an exec's body.
func execKeywords() []string {
	return []string{
		"args", "env", "cwd", "user", "hostname", "addhost", "ulimit", "cgroup", "exit", "proxy",
		"keepstubs", "network", "security", "mount", "secretenv", "device",
	}
}

// defaultOutput is the output of a mount that the text form leaves out; next
// is the number of the next output.
func (m *Mount) defaultOutput(next int) int {
	switch {
	case m.Kind == MountBind && !m.ReadOnly:
		return next
	case m.Kind == MountSecret || m.Kind == MountSSH:
		return 0
	default:
		return None
	}
}

// plainRoot reports whether m is the root mount that most execs have.
func (m *Mount) plainRoot() bool {
	return *m == Mount{Input: m.Input, Dest: rootMount}
}

func (o *ExecOp) print(r refs) form {
	var f form
	next := 0
	mounts := o.Mounts
	if len(mounts) > 0 && mounts[0].plainRoot() {
		f.head = append(f.head, r.ref(mounts[0].Input))
		mounts, next = mounts[1:], 1
	}
	add := func(format string, args ...any) { f.body = append(f.body, fmt.Sprintf(format, args...)) }
	add("args %s", quoteAll(o.Args))
	if len(o.Env) > 0 {
		add("env %s", quoteAll(o.Env))
	}
	for _, p := range []struct{ name, value string }{
		{"cwd", o.Cwd}, {"user", o.User}, {"hostname", o.Hostname}, {"cgroup", o.CgroupParent},
	} {
		if p.value != "" {
			add("%s %s", p.name, bodyWord(p.value))
		}
	}
	for _, h := range o.ExtraHosts {
		add("addhost %s %s", strconv.Quote(h.Host), strconv.Quote(h.IP))
	}
	for _, u := range o.Ulimits {
		add("ulimit %s %d %d", strconv.Quote(u.Name), u.Soft, u.Hard)
	}
	if len(o.ValidExitCodes) > 0 {
		add("exit %s", strings.Trim(fmt.Sprint(o.ValidExitCodes), "[]"))
	}
	if p := o.Proxy; p != nil {
		add("proxy http=%q https=%q ftp=%q no=%q all=%q", p.HTTPProxy, p.HTTPSProxy, p.FTPProxy, p.NoProxy, p.AllProxy)
	}
	if !o.RemoveStubs {
		add("keepstubs")
	}
	if o.Network != NetSandbox {
		add("network %s", enumText(int(o.Network), netNames()))
	}
	if o.Security != SecuritySandbox {
		add("security %s", enumText(int(o.Security), securityNames()))
	}
	for i := range mounts {
		m := &mounts[i]
		add("mount %s", m.text(r, next))
		if m.Output == m.defaultOutput(next) && m.hasOutput() {
			next++
		}
	}
	for _, s := range o.SecretEnv {
		add("secretenv %s %s%s", strconv.Quote(s.ID), strconv.Quote(s.Name), flagText(s.Optional, "optional"))
	}
	for _, d := range o.Devices {
		add("device %s%s", strconv.Quote(d.Name), flagText(d.Optional, "optional"))
	}
	return f
}

func netNames() []string      { return []string{"sandbox", "host", "none"} }
func securityNames() []string { return []string{"sandbox", "insecure"} }
func sharingNames() []string  { return []string{"shared", "private", "locked"} }
func contentNames() []string  { return []string{"default", "on", "off"} }

func enumText(value int, names []string) string {
	if value < 0 || value >= len(names) {
		return strconv.Itoa(value)
	}
	return names[value]
}

func parseEnum(s, what string, names []string) (int, error) {
	i := slices.Index(names, s)
	if i < 0 {
		return 0, fmt.Errorf("%s %q is unknown, expected one of %s", what, s, strings.Join(names, ", "))
	}
	return i, nil
}

func flagText(set bool, name string) string {
	if set {
		return " " + name
	}
	return ""
}

// bodyWord writes a word in a body so that it cannot be taken for a keyword,
// whatever the operation.
func bodyWord(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz") == "" {
		return strconv.Quote(s)
	}
	return word(s)
}

// text writes a mount: what, where, how.
func (m *Mount) text(r refs, next int) string {
	from := r.ref(m.Input)
	if m.Selector != "" {
		from += ":" + word(m.Selector)
	}
	var what string
	var options []string
	add := func(format string, args ...any) { options = append(options, fmt.Sprintf(format, args...)) }
	secret := m.Secret
	switch m.Kind {
	case MountBind:
		what = from
	case MountCache:
		what = "cache:" + word(m.CacheID)
	case MountTmpfs:
		what = "tmpfs"
	case MountSecret:
		what = "secret"
	case MountSSH:
		what = "ssh"
	default:
		what = fmt.Sprintf("kind%d", m.Kind)
	}
	if secret != nil && (m.Kind == MountSecret || m.Kind == MountSSH) {
		what += ":" + word(secret.ID)
		add("mode=%#o", secret.Mode)
		if secret.UID != 0 || secret.GID != 0 {
			add("uid=%d", secret.UID)
			add("gid=%d", secret.GID)
		}
		if secret.Optional {
			add("optional")
		}
	}
	if m.Kind != MountBind && from != "scratch" {
		add("from=%s", from)
	}
	if m.ReadOnly {
		add("ro")
	}
	if m.TmpfsSize != 0 {
		add("size=%d", m.TmpfsSize)
	}
	if m.Kind != MountCache && m.CacheID != "" {
		add("cacheid=%s", word(m.CacheID))
	}
	if m.CacheSharing != CacheShared {
		add("sharing=%s", enumText(int(m.CacheSharing), sharingNames()))
	}
	if m.ContentCache != ContentDefault {
		add("content=%s", enumText(int(m.ContentCache), contentNames()))
	}
	if m.ResultID != "" {
		add("result=%s", word(m.ResultID))
	}
	if m.Output != m.defaultOutput(next) {
		add("out=%s", outputText(m.Output))
	}
	return strings.Join(append([]string{what, bodyWord(m.Dest)}, options...), " ")
}

func outputText(n int) string {
	if n == None {
		return "none"
	}
	return strconv.Itoa(n)
}

func parseOutput(t token) (int, error) {
	if t.text == "none" {
		return None, nil
	}
	n, err := strconv.Atoi(t.text)
	if err != nil {
		return 0, fmt.Errorf("output %q is not a number", t.text)
	}
	return n, nil
}

func parseExec(s *statement) (Op, error) {
	op := &ExecOp{RemoveStubs: true}
	next := 0
	root, found, err := s.takeInput()
	if err != nil {
		return nil, err
	}
	if found {
		op.Mounts = []Mount{{Input: root, Dest: rootMount}}
		next = 1
	}
	clauses, err := s.clauses(execKeywords()...)
	if err != nil {
		return nil, err
	}
	for _, c := range clauses {
		if c.word == "mount" {
			err = op.parseMount(s, c, &next)
		} else {
			err = op.parseClause(c)
		}
		if err != nil {
			return nil, err
		}
	}
	return op, nil
}

func (o *ExecOp) parseClause(c clause) (err error) {
	switch c.word {
	case "args":
		o.Args = append(o.Args, c.strings()...)
	case "env":
		o.Env = append(o.Env, c.strings()...)
	case "cwd":
		o.Cwd, err = c.one()
	case "user":
		o.User, err = c.one()
	case "hostname":
		o.Hostname, err = c.one()
	case "cgroup":
		o.CgroupParent, err = c.one()
	case "exit":
		for _, t := range c.args {
			code, err := strconv.Atoi(t.text)
			if err != nil {
				return fmt.Errorf("exit code %q is not a number", t.text)
			}
			o.ValidExitCodes = append(o.ValidExitCodes, code)
		}
	case "keepstubs":
		o.RemoveStubs = false
	case "network":
		err = parseEnumClause(c, netNames(), &o.Network)
	case "security":
		err = parseEnumClause(c, securityNames(), &o.Security)
	default:
		return o.parseListClause(c)
	}
	return err
}

func parseEnumClause[E ~int](c clause, names []string, to *E) error {
	name, err := c.one()
	if err != nil {
		return err
	}
	n, err := parseEnum(name, c.word, names)
	*to = E(n)
	return err
}

// parseListClause reads the parts that may come several times.
func (o *ExecOp) parseListClause(c clause) error {
	arity := map[string]int{"addhost": 2, "ulimit": 3, "proxy": 0, "secretenv": 2, "device": 1}[c.word]
	args, opts, err := c.take(arity)
	if err != nil {
		return err
	}
	switch c.word {
	case "addhost":
		o.ExtraHosts = append(o.ExtraHosts, HostIP{Host: args[0].text, IP: args[1].text})
	case "ulimit":
		soft, err1 := strconv.ParseInt(args[1].text, 10, 64)
		hard, err2 := strconv.ParseInt(args[2].text, 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return fmt.Errorf("ulimit %s: %w", args[0].text, err)
		}
		o.Ulimits = append(o.Ulimits, Ulimit{Name: args[0].text, Soft: soft, Hard: hard})
	case "proxy":
		value := func(name string) string { t, _ := opts.get(name); return t.text }
		o.Proxy = &ProxyEnv{
			HTTPProxy: value("http"), HTTPSProxy: value("https"), FTPProxy: value("ftp"),
			NoProxy: value("no"), AllProxy: value("all"),
		}
	case "secretenv":
		o.SecretEnv = append(o.SecretEnv, SecretEnv{ID: args[0].text, Name: args[1].text, Optional: opts.flag("optional")})
	case "device":
		o.Devices = append(o.Devices, CDIDevice{Name: args[0].text, Optional: opts.flag("optional")})
	}
	return opts.done()
}

func (o *ExecOp) parseMount(s *statement, c clause, next *int) error {
	args, opts, err := c.take(2)
	if err != nil {
		return err
	}
	m := Mount{Input: None, Dest: args[1].text, ReadOnly: opts.flag("ro")}
	if err := m.parseSource(s, args[0], opts); err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	if m.Secret != nil {
		if err := m.Secret.parse(opts); err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
	}
	if err := m.parseOptions(opts); err != nil {
		return fmt.Errorf("mount %s: %w", m.Dest, err)
	}
	m.Output = m.defaultOutput(*next)
	if t, ok := opts.get("out"); ok {
		if m.Output, err = parseOutput(t); err != nil {
			return fmt.Errorf("mount %s: %w", m.Dest, err)
		}
	}
	if m.hasOutput() && m.Output == m.defaultOutput(*next) {
		*next++
	}
	o.Mounts = append(o.Mounts, m)
	return opts.done()
}

// parseSource reads what is mounted.
func (m *Mount) parseSource(s *statement, t token, opts options) (err error) {
	from := t
	if !isInputPrefix(t) {
		kind, id, hasID := t.cut(':')
		switch {
		case kind.bare("cache"):
			m.Kind, m.CacheID = MountCache, id.text
		case kind.bare("tmpfs"):
			m.Kind = MountTmpfs
		case kind.bare("secret"):
			m.Kind = MountSecret
		case kind.bare("ssh"):
			m.Kind = MountSSH
		default:
			return fmt.Errorf("%q is neither an input nor a kind of mount", t.text)
		}
		if hasID && (m.Kind == MountSecret || m.Kind == MountSSH) {
			m.Secret = &SecretMount{ID: id.text}
		}
		var given bool
		if from, given = opts.get("from"); !given {
			return nil
		}
	}
	edge, selector, _ := from.cut(':')
	m.Selector = selector.text
	m.Input, err = s.input(edge)
	return err
}

// isInputPrefix reports whether t names an input, perhaps with a path in it.
func isInputPrefix(t token) bool {
	edge, _, _ := t.cut(':')
	return isInput(edge)
}

func (s *SecretMount) parse(opts options) error {
	for _, f := range []struct {
		name string
		to   *uint32
	}{{"mode", &s.Mode}, {"uid", &s.UID}, {"gid", &s.GID}} {
		n, err := opts.int(f.name, 0)
		if err != nil {
			return err
		}
		if n < 0 || n > 0xffffffff {
			return fmt.Errorf("%s=%d is out of range", f.name, n)
		}
		*f.to = uint32(n)
	}
	s.Optional = opts.flag("optional")
	return nil
}

func (m *Mount) parseOptions(opts options) (err error) {
	if m.TmpfsSize, err = opts.int("size", 0); err != nil {
		return err
	}
	if t, ok := opts.get("cacheid"); ok {
		m.CacheID = t.text
	}
	if t, ok := opts.get("result"); ok {
		m.ResultID = t.text
	}
	if t, ok := opts.get("sharing"); ok {
		n, err := parseEnum(t.text, "sharing", sharingNames())
		if err != nil {
			return err
		}
		m.CacheSharing = CacheSharing(n)
	}
	if t, ok := opts.get("content"); ok {
		n, err := parseEnum(t.text, "content", contentNames())
		if err != nil {
			return err
		}
		m.ContentCache = MountContentCache(n)
	}
	return nil
}
