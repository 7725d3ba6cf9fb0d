package dockerfile

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/llb"
)

// gitRef is a git repository as a user names it (as BuildKit's util/gitutil reads it):
// <url>?<query>#<ref>:<subdir>.
type gitRef struct {
	remote        string // without query and fragment
	ref, subdir   string
	checksum      string // of a commit, or its beginning
	mtime         string // "", "checkout" or "commit"
	keepGitDir    *bool
	submodules    *bool
	fetchByCommit bool
	// likePath says that it could be a path as well, so that only where no path
	// is expected it is a repository.
	likePath bool
}

var errNoGit = errors.New("it is not the address of a git repository")

// parseGitRef reads a repository's address. isGit tells whether it has the form
// of one, even if something is wrong with it.
func parseGitRef(s string) (ref *gitRef, isGit bool, err error) {
	if strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../") {
		return nil, false, errNoGit
	}
	likePath := strings.HasPrefix(s, "github.com/")
	if likePath {
		s = "https://" + s
	}
	u, err := llb.ParseGitURL(s)
	if err != nil {
		return nil, false, err
	}
	if (u.Scheme == "http" || u.Scheme == "https") && !likePath && !strings.HasSuffix(u.Path, ".git") {
		return nil, false, errNoGit
	}
	g := &gitRef{remote: u.Remote, ref: u.Ref, subdir: u.Subdir, likePath: likePath}
	if likePath {
		g.remote = strings.TrimPrefix(g.remote, "https://")
	}
	return g, true, g.query(u.Query)
}

// query reads what the query says. It may repeat what the fragment says, but not
// contradict it.
func (g *gitRef) query(q url.Values) error {
	var tag, branch string
	for key, values := range q {
		if len(values) > 1 {
			return fmt.Errorf("query %q has multiple values", key)
		}
		value := strings.Join(values, "")
		if value == "" && !slices.Contains([]string{"submodules", "keep-git-dir", "fetch-by-commit"}, key) {
			return fmt.Errorf("query %q has no value", key)
		}
		var err error
		switch key {
		case "ref":
			err = g.setRef(value)
		case "tag":
			tag = value
		case "branch":
			branch = value
		case "subdir":
			if g.subdir != "" && g.subdir != value {
				err = fmt.Errorf("subdir conflicts: %q vs %q", g.subdir, value)
			}
			g.subdir = value
		case "checksum", "commit":
			g.checksum = value
		case "mtime":
			if g.mtime = value; value != "checkout" && value != "commit" {
				err = fmt.Errorf("invalid mtime value: %q (must be \"checkout\" or \"commit\")", value)
			}
		case "keep-git-dir":
			g.keepGitDir, err = gitFlag(key, value)
		case "submodules":
			g.submodules, err = gitFlag(key, value)
		case "fetch-by-commit":
			var on *bool
			if on, err = gitFlag(key, value); err == nil {
				g.fetchByCommit = *on
			}
		default:
			err = fmt.Errorf("unexpected query %q", key)
		}
		if err != nil {
			return err
		}
	}
	if tag != "" && branch != "" {
		return errors.New("branch conflicts with tag")
	}
	for _, name := range []struct{ prefix, value string }{{"refs/tags/", tag}, {"refs/heads/", branch}} {
		if name.value == "" {
			continue
		}
		if err := g.setRef(name.prefix + strings.TrimPrefix(name.value, name.prefix)); err != nil {
			return err
		}
	}
	return nil
}

func (g *gitRef) setRef(value string) error {
	if g.ref != "" && g.ref != value {
		return fmt.Errorf("ref conflicts: %q vs %q", g.ref, value)
	}
	g.ref = value
	return nil
}

// gitFlag reads a bool. A key without a value is one that is set.
func gitFlag(key, value string) (*bool, error) {
	if value == "" {
		value = "true"
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		return nil, fmt.Errorf("invalid %s value: %q", key, value)
	}
	return &on, nil
}

func isSet(b *bool) bool { return b != nil && *b }

// op is the source that brings the repository in.
func (g *gitRef) op(keepGitDir, advice bool, mtime string) llb.SourceOp {
	opts := []llb.GitOption{llb.GitRef(g.ref)}
	if advice {
		opts = append(opts, llb.GitAdvice(true))
	}
	if keepGitDir {
		opts = append(opts, llb.KeepGitDir())
	}
	if g.checksum != "" {
		opts = append(opts, llb.GitChecksum(g.checksum))
	}
	if g.subdir != "" {
		opts = append(opts, llb.GitSubDir(g.subdir))
	}
	if g.submodules != nil && !*g.submodules {
		opts = append(opts, llb.GitSkipSubmodules())
	}
	if mtime != "" {
		opts = append(opts, llb.GitMTime(mtime))
	}
	if g.fetchByCommit {
		opts = append(opts, llb.GitFetchByCommit())
	}
	return *llb.GitOp(g.remote, "", opts...)
}

// isGitURL reports whether a source is a git repository and nothing else.
func isGitURL(s string) bool {
	g, isGit, _ := parseGitRef(s)
	return isGit && (g == nil || !g.likePath)
}

// gitContext is the source of a context that is a repository; isGit is false for
// other contexts.
func (o *options) gitContext(value string, main bool) (op llb.SourceOp, isGit bool, err error) {
	g, isGit, err := parseGitRef(value)
	if !isGit || err != nil {
		return op, isGit, err
	}
	mtime := g.mtime
	if main && mtime == "" && o.buildArgs["SOURCE_DATE_EPOCH"] != "" {
		mtime = "commit"
	}
	return g.op(isSet(g.keepGitDir) || main && o.keepGitDir, o.gitAdvice, mtime), true, nil
}

// gitTitle is what the step is called that brings a repository in.
func gitTitle(value string) string { return "[internal] load git source " + withoutPassword(value) }

// withoutPassword keeps what stands before a URL's host out of titles and errors.
func withoutPassword(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return s
	}
	host, path, found := strings.Cut(rest, "/")
	at := strings.LastIndexByte(host, '@')
	if at < 0 || scheme == "ssh" && !strings.Contains(host[:at], ":") {
		return s
	}
	s = scheme + "://xxxxx" + host[at:]
	if found {
		s += "/" + path
	}
	return s
}
