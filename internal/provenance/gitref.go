package provenance

import (
	"net/url"
	"path"
	"regexp"
	"strings"
)

// gitContext is a git repository as a build context names it.
type gitContext struct{ remote, ref, subdir string }

// scpRemote is a repository in the form user@host:path.
var scpRemote = regexp.MustCompile(`^[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:[^#?]+`)

// parseGitContext tells whether a build context is a git repository, and which.
func parseGitContext(s string) (gitContext, bool) {
	rest, fragment, _ := strings.Cut(s, "#")
	rest, query, _ := strings.Cut(rest, "?")
	scheme, _, hasScheme := strings.Cut(rest, "://")
	switch {
	case hasScheme && (scheme == "git" || scheme == "ssh"):
	case hasScheme && (scheme == "http" || scheme == "https") && strings.HasSuffix(rest, ".git"):
	case !hasScheme && (strings.HasPrefix(rest, "github.com/") || scpRemote.MatchString(rest)):
	default:
		return gitContext{}, false
	}
	g := gitContext{remote: rest}
	g.ref, g.subdir, _ = strings.Cut(fragment, ":")
	values, err := url.ParseQuery(query)
	if err != nil {
		return gitContext{}, false
	}
	for key, prefix := range map[string]string{"ref": "", "tag": "refs/tags/", "branch": "refs/heads/"} {
		if v := values.Get(key); v != "" {
			g.ref = prefix + strings.TrimPrefix(v, prefix)
		}
	}
	if v := values.Get("subdir"); v != "" {
		g.subdir = v
	}
	return g, true
}

// repository is the URL by which a git source is recorded.
func (g gitContext) repository() string {
	if g.ref == "" {
		return g.remote
	}
	return g.remote + "#" + g.ref
}

// full is the repository with the folder in it.
func (g gitContext) full() string {
	subdir := strings.TrimPrefix(path.Join("/", g.subdir), "/")
	if subdir == "" {
		return g.repository()
	}
	return g.remote + "#" + g.ref + ":" + subdir
}

// redact hides what a URL says of the user.
func redact(s string) string {
	u, err := url.Parse(s)
	if err != nil || u.User == nil {
		return s
	}
	const mask = "xxxxx"
	_, hasPassword := u.User.Password()
	switch {
	case u.User.Username() != "" && hasPassword:
		u.User = url.UserPassword(mask, mask)
	case u.User.Username() != "":
		u.User = url.User(mask)
	case hasPassword:
		u.User = url.UserPassword("", mask)
	}
	return u.String()
}
