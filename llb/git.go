package llb

import (
	"errors"
	"path"
	"strings"
)

// Names of the secrets that authenticate git fetches unless told otherwise.
const (
	GitAuthHeaderKey = "GIT_AUTH_HEADER"
	GitAuthTokenKey  = "GIT_AUTH_TOKEN"
)

// GitInfo is what to get from a repository.
type GitInfo struct {
	Constraints
	KeepGitDir         bool
	AuthTokenSecret    string
	AuthHeaderSecret   string
	KnownSSHHosts      string
	MountSSHSock       string
	Checksum           string
	Ref                string
	SubDir             string
	SkipSubmodules     bool
	MTime              string
	Advice             bool
	Bundle             string
	BundleOCISessionID string
	BundleOCIStoreID   string
	CheckoutBundle     bool
	FetchByCommit      bool

	ownAuth bool // a secret was named: the daemon must know about them
}

// GitOption is an option of [Git].
type GitOption interface{ SetGitOption(*GitInfo) }

type gitOptionFunc func(*GitInfo)

func (f gitOptionFunc) SetGitOption(i *GitInfo) { f(i) }

// GitRef sets the branch, tag or commit.
func GitRef(v string) GitOption { return gitOptionFunc(func(i *GitInfo) { i.Ref = v }) }

// GitSubDir takes only a directory of the repository.
func GitSubDir(v string) GitOption { return gitOptionFunc(func(i *GitInfo) { i.SubDir = v }) }

// GitSkipSubmodules leaves submodules out.
func GitSkipSubmodules() GitOption {
	return gitOptionFunc(func(i *GitInfo) { i.SkipSubmodules = true })
}

// GitMTime sets which time files have, "checkout" or "commit".
func GitMTime(v string) GitOption { return gitOptionFunc(func(i *GitInfo) { i.MTime = v }) }

// GitMTimeCommit gives files the time of the commit.
func GitMTimeCommit() GitOption { return GitMTime("commit") }

// GitAdvice lets git print advice.
func GitAdvice(enabled bool) GitOption { return gitOptionFunc(func(i *GitInfo) { i.Advice = enabled }) }

// KeepGitDir keeps the .git directory.
func KeepGitDir() GitOption { return gitOptionFunc(func(i *GitInfo) { i.KeepGitDir = true }) }

// AuthTokenSecret names the secret whose value is a token.
func AuthTokenSecret(v string) GitOption {
	return gitOptionFunc(func(i *GitInfo) { i.AuthTokenSecret, i.ownAuth = v, true })
}

// AuthOption is an option of [Git] and [HTTP].
type AuthOption interface {
	GitOption
	HTTPOption
}

type authHeader string

func (a authHeader) SetGitOption(i *GitInfo)   { i.AuthHeaderSecret, i.ownAuth = string(a), true }
func (a authHeader) SetHTTPOption(i *HTTPInfo) { i.AuthHeaderSecret = string(a) }

// AuthHeaderSecret names the secret whose value is an Authorization header.
func AuthHeaderSecret(name string) AuthOption { return authHeader(name) }

// KnownSSHHosts adds a line for ssh's known_hosts.
func KnownSSHHosts(key string) GitOption {
	return gitOptionFunc(func(i *GitInfo) { i.KnownSSHHosts += strings.TrimSuffix(key, "\n") + "\n" })
}

// MountSSHSock sets the id of the ssh agent to use.
func MountSSHSock(id string) GitOption {
	return gitOptionFunc(func(i *GitInfo) { i.MountSSHSock = id })
}

// GitChecksum fails the build unless the commit is this one.
func GitChecksum(v string) GitOption { return gitOptionFunc(func(i *GitInfo) { i.Checksum = v }) }

// GitFetchByCommit fetches the commit of [GitChecksum] itself, not the ref.
func GitFetchByCommit() GitOption { return gitOptionFunc(func(i *GitInfo) { i.FetchByCommit = true }) }

// GitBundleInfo is where a bundle is.
type GitBundleInfo struct {
	OCISessionID string
	OCIStoreID   string
}

// GitBundleOption is an option of [GitBundleURL].
type GitBundleOption interface{ SetGitBundleOption(*GitBundleInfo) }

type gitBundleOptionFunc func(*GitBundleInfo)

func (f gitBundleOptionFunc) SetGitBundleOption(i *GitBundleInfo) { f(i) }

// GitBundleOCIStore says which store of which session has the bundle.
func GitBundleOCIStore(sessionID, storeID string) GitBundleOption {
	return gitBundleOptionFunc(func(i *GitBundleInfo) { i.OCISessionID, i.OCIStoreID = sessionID, storeID })
}

// GitBundleURL reads the repository from a bundle in a blob.
func GitBundleURL(locator string, opts ...GitBundleOption) GitOption {
	b := &GitBundleInfo{}
	for _, o := range opts {
		o.SetGitBundleOption(b)
	}
	return gitOptionFunc(func(i *GitInfo) {
		i.Bundle, i.BundleOCISessionID, i.BundleOCIStoreID = locator, b.OCISessionID, b.OCIStoreID
	})
}

// GitCheckoutBundle yields a bundle file instead of a checkout.
func GitCheckoutBundle() GitOption {
	return gitOptionFunc(func(i *GitInfo) { i.CheckoutBundle = true })
}

// Git returns a checkout of a repository. The url may be http, https, ssh, git,
// the scp form user@host:path, or lack a scheme, which then is https. The
// fragment may say ref:subdir; [GitRef] and [GitSubDir] are better for that.
//
// BuildKit's library asks ssh servers for their keys if [KnownSSHHosts] gives
// none. This one does no I/O: give them.
func Git(url, fragment string, opts ...GitOption) State {
	op, info := gitOp(url, fragment, opts)
	return source(op.Identifier, op.Attrs, &info.Constraints, nil)
}

// GitOp is the operation of [Git], for those who make graphs by hand.
func GitOp(url, fragment string, opts ...GitOption) *SourceOp {
	op, _ := gitOp(url, fragment, opts)
	return op
}

func gitOp(url, fragment string, opts []GitOption) (*SourceOp, *GitInfo) {
	remote, problem := ParseGitURL(url)
	if errors.Is(problem, ErrNoGitURL) {
		url = "https://" + url
		remote, problem = ParseGitURL(url)
	}
	info := &GitInfo{AuthHeaderSecret: GitAuthHeaderKey, AuthTokenSecret: GitAuthTokenKey}
	ref, subdir, _ := strings.Cut(fragment, ":")
	info.Ref = ref
	info.SubDir = CleanGitSubdir(subdir)
	for _, o := range opts {
		o.SetGitOption(info)
	}
	id := url
	if problem == nil {
		url = remote.Remote
		// The same repository has the same id, whichever protocol it comes by.
		id = remote.Host + path.Join("/", remote.Path)
		if info.Ref != "" || info.SubDir != "" {
			id += "#" + info.Ref
		}
		if info.SubDir != "" {
			id += ":" + info.SubDir
		}
	}
	if info.ownAuth {
		info.addCap(CapSourceGitHTTPAuth)
	}
	return &SourceOp{Identifier: "git://" + id, Attrs: info.attrs(url, problem == nil && remote.Scheme == "ssh")}, info
}

func (i *GitInfo) attrs(url string, ssh bool) map[string]string {
	attrs := attributes{}
	attrs.set(AttrGitFullURL, url)
	attrs.set(AttrGitAuthTokenSecret, i.AuthTokenSecret)
	attrs.set(AttrGitAuthHeaderSecret, i.AuthHeaderSecret)
	if ssh {
		attrs.set(AttrGitKnownSSHHosts, i.KnownSSHHosts)
		i.addCap(CapSourceGitKnownSSHHosts)
		attrs[AttrGitMountSSHSock] = "default"
		attrs.set(AttrGitMountSSHSock, i.MountSSHSock)
	}
	attrs.set(AttrGitChecksum, i.Checksum)
	attrs.set(AttrGitMTime, i.MTime)
	attrs.set(AttrGitBundle, i.Bundle)
	attrs.set(AttrOCISession, i.BundleOCISessionID)
	attrs.set(AttrOCIStore, i.BundleOCIStoreID)
	attrs.setFlag(AttrGitKeepDir, i.KeepGitDir)
	attrs.setFlag(AttrGitSkipSubmodules, i.SkipSubmodules)
	attrs.setFlag(AttrGitAdvice, i.Advice)
	attrs.setFlag(AttrGitFetchByCommit, i.FetchByCommit)
	attrs.setFlag(AttrGitCheckoutBundle, i.CheckoutBundle)
	return attrs
}
