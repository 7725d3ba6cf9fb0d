package llb

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"
)

// ErrNoGitURL says that a text has no form of a git repository's address: it has
// neither a scheme nor the form user@host:path.
var ErrNoGitURL = errors.New("git url has no scheme")

// GitURL is the address of a git repository as people write it: a URL of scheme
// http, https, ssh or git, or the form user@host:path that ssh takes.
type GitURL struct {
	Scheme string // "http", "https", "ssh" or "git"
	User   *url.Userinfo
	Host   string // with the port, if there is one
	Path   string // on the host
	Query  url.Values
	// Ref and Subdir are what the fragment says: ref:subdir. Subdir has neither
	// ".." nor a slash at its ends.
	Ref, Subdir string
	// Remote is the address as git takes it: without query and fragment.
	Remote string
}

var (
	schemePattern = regexp.MustCompile(`^[a-zA-Z0-9]+://`)
	scpPattern    = regexp.MustCompile(`^([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):([^?#]*)(?:\?([^#]*))?(?:#(.*))?$`)
)

// ParseGitURL reads an address. The error is [ErrNoGitURL] if it has no form of
// one, and another one if it has but is wrong.
func ParseGitURL(s string) (*GitURL, error) {
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return nil, errors.New("git url has control characters")
	}
	var g *GitURL
	if scheme := schemePattern.FindString(s); scheme != "" {
		switch scheme = strings.ToLower(strings.TrimSuffix(scheme, "://")); scheme {
		case "http", "https", "ssh", "git":
		default:
			return nil, fmt.Errorf("git url scheme %q is not http, https, ssh or git", scheme)
		}
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("parse git url: %w", withoutURL(err))
		}
		g = gitURL(u)
	} else {
		m := scpPattern.FindStringSubmatch(s)
		if m == nil {
			return nil, ErrNoGitURL
		}
		query, err := url.ParseQuery(m[4])
		if err != nil {
			return nil, fmt.Errorf("parse query of git url: %w", err)
		}
		g = &GitURL{Scheme: "ssh", User: url.User(m[1]), Host: m[2], Path: m[3], Query: query, Remote: m[1] + "@" + m[2] + ":" + m[3]}
		g.fragment(m[5])
	}
	// Programs that git starts would take these for options.
	if strings.HasPrefix(g.Host, "-") || strings.HasPrefix(g.User.Username(), "-") || g.Scheme == "ssh" && strings.HasPrefix(g.Path, "-") {
		return nil, errors.New(`git url has a part that begins with "-"`)
	}
	return g, nil
}

func gitURL(u *url.URL) *GitURL {
	g := &GitURL{Scheme: u.Scheme, User: u.User, Host: u.Host, Path: u.Path, Query: u.Query()}
	g.fragment(u.Fragment)
	bare := *u
	bare.Fragment, bare.RawFragment, bare.RawQuery, bare.ForceQuery = "", "", "", false
	g.Remote = bare.String()
	return g
}

func (g *GitURL) fragment(s string) {
	ref, subdir, _ := strings.Cut(s, ":")
	g.Ref, g.Subdir = ref, CleanGitSubdir(subdir)
}

// CleanGitSubdir makes the path of a directory relative to the repository's top,
// whatever is before it; "" is the top itself.
func CleanGitSubdir(dir string) string { return strings.TrimPrefix(path.Join("/", dir), "/") }

// withoutURL takes the URL, which may have a password in it, out of an error.
func withoutURL(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
