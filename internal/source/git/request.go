package git

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// request is a SourceOp, decoded.
type request struct {
	remote string // the address without credentials
	scheme string // "http", "https", "ssh" or "git"
	host   string // with the port
	// login is what the address had of credentials; nil if it had none.
	login *url.Userinfo

	ref, subdir    string
	keepGitDir     bool
	skipSubmodules bool
	advice         bool
	mtime          string
	writable       bool // by all, as long ago

	checksum      string // hexadecimal, of a commit or its beginning
	fetchByCommit bool

	headerSecret, tokenSecret string // ids
	knownHosts                string
	agent                     string // id of an ssh agent

	bundle                     string // where to get a bundle
	bundleSession, bundleStore string
	checkoutBundle             bool
	sign                       *signature
}

// mtimeCheckout and mtimeCommit are what files' times may be.
const (
	mtimeCheckout = "checkout"
	mtimeCommit   = "commit"
)

var hexPattern = regexp.MustCompile(`^[a-fA-F0-9]+$`)

// isCommit tells whether s names an object in full.
func isCommit(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

func decode(op *llb.SourceOp) (*request, error) {
	id, ok := strings.CutPrefix(op.Identifier, "git://")
	if !ok {
		return nil, fmt.Errorf("malformed identifier %q: expected git://host/path#ref:subdir", source.WithoutLogins(op.Identifier))
	}
	u, err := parseRemote(id)
	if err != nil {
		return nil, fmt.Errorf("malformed identifier %q: %w", source.WithoutLogins(op.Identifier), err)
	}
	r := &request{ref: u.Ref, subdir: u.Subdir}
	for k, v := range op.Attrs {
		if err := r.attr(k, v); err != nil {
			return nil, fmt.Errorf("source %s: %w", source.WithoutLogins(op.Identifier), err)
		}
	}
	if full := op.Attrs[llb.AttrGitFullURL]; full != "" {
		if u, err = fullURL(u, full); err != nil {
			return nil, fmt.Errorf("source %s: %w", source.WithoutLogins(op.Identifier), err)
		}
	}
	r.setRemote(u)
	if err := r.validate(); err != nil {
		return nil, fmt.Errorf("source %s: %w", source.WithoutLogins(op.Identifier), err)
	}
	return r, nil
}

// parseRemote reads an address, which may lack a scheme.
func parseRemote(s string) (*llb.GitURL, error) {
	u, err := llb.ParseGitURL(s)
	if errors.Is(err, llb.ErrNoGitURL) {
		u, err = llb.ParseGitURL("https://" + s)
	}
	if err == nil && (u.Host == "" || strings.Trim(u.Path, "/") == "" && u.Scheme != "http" && u.Scheme != "https") {
		err = errors.New("it has no host or no path")
	}
	return u, err
}

// fullURL is the address that the identifier leaves parts out of. It must be of
// the same repository, or a policy on identifiers would be worth nothing.
func fullURL(id *llb.GitURL, full string) (*llb.GitURL, error) {
	u, err := parseRemote(full)
	if err != nil {
		return nil, fmt.Errorf("malformed %s: %w", llb.AttrGitFullURL, err)
	}
	if !strings.EqualFold(id.Host, u.Host) || repositoryPath(id.Path) != repositoryPath(u.Path) {
		return nil, fmt.Errorf("%s does not match source identifier", llb.AttrGitFullURL)
	}
	return u, nil
}

func repositoryPath(p string) string { return strings.TrimSuffix(path.Join("/", p), ".git") }

// setRemote takes an address without its credentials: as part of it, they would
// get into arguments, logs and the repositories' configuration.
func (r *request) setRemote(u *llb.GitURL) {
	r.scheme, r.host, r.remote = u.Scheme, u.Host, u.Remote
	parsed, err := url.Parse(u.Remote)
	if err != nil || parsed.User == nil || !strings.Contains(u.Remote, "://") {
		return // of the form user@host:path, which has no password
	}
	if u.Scheme == "ssh" {
		parsed.User = url.User(parsed.User.Username())
	} else {
		r.login, parsed.User = parsed.User, nil
	}
	r.remote = parsed.String()
}

func (r *request) attr(key, value string) (err error) {
	flag := func() bool {
		if value != "true" && value != "false" && value != "" {
			err = fmt.Errorf("attribute %s=%q: expected true or false", key, value)
		}
		return value == "true"
	}
	switch key {
	case llb.AttrGitFullURL: // read when the others are
	case llb.AttrGitKeepDir:
		r.keepGitDir = flag()
	case llb.AttrGitAuthHeaderSecret:
		r.headerSecret = value
	case llb.AttrGitAuthTokenSecret:
		r.tokenSecret = value
	case llb.AttrGitKnownSSHHosts:
		r.knownHosts = value
	case llb.AttrGitMountSSHSock:
		r.agent = value
	case llb.AttrGitChecksum:
		r.checksum = value
	case llb.AttrGitSkipSubmodules:
		r.skipSubmodules = flag()
	case llb.AttrGitAdvice:
		r.advice = flag()
	case llb.AttrGitFetchByCommit:
		r.fetchByCommit = flag()
	case llb.AttrGitBundle:
		r.bundle = value
	case llb.AttrGitCheckoutBundle:
		r.checkoutBundle = flag()
	case llb.AttrOCISession:
		r.bundleSession = value
	case llb.AttrOCIStore:
		r.bundleStore = value
	case llb.AttrGitMTime:
		if r.mtime = value; value != "" && value != mtimeCheckout && value != mtimeCommit {
			err = fmt.Errorf("attribute %s=%q: expected %s or %s", key, value, mtimeCheckout, mtimeCommit)
		}
	case llb.AttrGitSigPubKey, llb.AttrGitSigRejectExpired, llb.AttrGitSigRequireSignedTag, llb.AttrGitSigIgnoreSignedTag:
		r.signatureAttr(key, value, flag)
	default:
		return source.UnknownAttr(key)
	}
	return err
}

func (r *request) signatureAttr(key, value string, flag func() bool) {
	if r.sign == nil {
		r.sign = &signature{}
	}
	switch key {
	case llb.AttrGitSigPubKey:
		r.sign.keys = []byte(value)
	case llb.AttrGitSigRejectExpired:
		r.sign.rejectExpired = flag()
	case llb.AttrGitSigRequireSignedTag:
		r.sign.requireSignedTag = flag()
	case llb.AttrGitSigIgnoreSignedTag:
		r.sign.ignoreSignedTag = flag()
	}
}

func (r *request) validate() error {
	if r.ref != "" {
		if err := checkRef(r.ref); err != nil {
			return err
		}
	}
	if r.checksum != "" && !hexPattern.MatchString(r.checksum) {
		return fmt.Errorf("invalid checksum %s for Git URL, expected hex commit hash", r.checksum)
	}
	if isCommit(r.ref) && r.checksum != "" && !strings.HasPrefix(r.ref, r.checksum) {
		return fmt.Errorf("expected checksum to match %s, got %s", r.checksum, r.ref)
	}
	if r.bundle != "" {
		if _, err := bundleDigest(r.bundle); err != nil {
			return err
		}
		if r.checksum == "" {
			return fmt.Errorf("%s requires %s to be set", llb.AttrGitBundle, llb.AttrGitChecksum)
		}
	}
	switch {
	case r.checkoutBundle && r.keepGitDir:
		return fmt.Errorf("%s is incompatible with %s", llb.AttrGitCheckoutBundle, llb.AttrGitKeepDir)
	case r.checkoutBundle && r.subdir != "":
		return fmt.Errorf("%s is incompatible with git.subdir", llb.AttrGitCheckoutBundle)
	case r.fetchByCommit && !isCommit(r.ref) && r.checksum == "":
		return errors.New("fetch-by-commit requires a checksum or a commit SHA ref")
	case r.fetchByCommit && !isCommit(r.ref) && !isCommit(r.checksum):
		return fmt.Errorf("fetch-by-commit requires a full commit SHA checksum, got %q", r.checksum)
	}
	return nil
}

// checkRef accepts the name of a branch, a tag or a commit. It is git's own rule
// (git-check-ref-format), so nothing is lost.
func checkRef(ref string) error {
	bad := strings.HasPrefix(ref, "-") || strings.HasPrefix(ref, "/") || strings.HasSuffix(ref, "/") || strings.HasSuffix(ref, ".") ||
		strings.Contains(ref, "..") || strings.Contains(ref, "//") || strings.Contains(ref, "@{") || ref == "@" ||
		strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune(`~^:?*[\`, r) })
	for part := range strings.SplitSeq(ref, "/") {
		bad = bad || strings.HasPrefix(part, ".") || strings.HasSuffix(part, ".lock")
	}
	if bad || len(ref) > 1024 {
		return fmt.Errorf("invalid git ref %q", ref)
	}
	return nil
}

// bundleDigest is the digest in a bundle's locator.
func bundleDigest(locator string) (digest.Digest, error) {
	scheme, body, ok := strings.Cut(locator, "://")
	if !ok {
		return "", fmt.Errorf("failed to parse git.bundle locator %q: missing scheme", locator)
	}
	if scheme != "docker-image+blob" && scheme != "oci-layout+blob" {
		return "", fmt.Errorf("git.bundle locator scheme %q is not supported; expected %q or %q", scheme, "docker-image+blob", "oci-layout+blob")
	}
	_, after, _ := strings.Cut(body, "@")
	d := digest.Digest(after)
	if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
		return "", fmt.Errorf("git.bundle locator %q: expected it to end with @sha256:<64 hex digits>", locator)
	}
	return d, nil
}
