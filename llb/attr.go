package llb

import "strconv"

// Names of source attributes (BuildKit's solver/pb/attr.go) and of the build
// operation's one. Booleans are the string "true", lists are JSON arrays.
const (
	AttrImageResolveMode             = "image.resolvemode"
	AttrImageRecordType              = "image.recordtype"
	AttrImageLayerLimit              = "image.layerlimit"
	AttrImageChecksum                = "image.checksum"
	AttrOCISession                   = "oci.session"
	AttrOCIStore                     = "oci.store"
	AttrOCILayerLimit                = "oci.layerlimit"
	AttrGitKeepDir                   = "git.keepgitdir"
	AttrGitFullURL                   = "git.fullurl"
	AttrGitAuthHeaderSecret          = "git.authheadersecret"
	AttrGitAuthTokenSecret           = "git.authtokensecret"
	AttrGitKnownSSHHosts             = "git.knownsshhosts"
	AttrGitMountSSHSock              = "git.mountsshsock"
	AttrGitChecksum                  = "git.checksum"
	AttrGitSkipSubmodules            = "git.skipsubmodules"
	AttrGitMTime                     = "git.mtime"
	AttrGitFetchByCommit             = "git.fetchbycommit"
	AttrGitBundle                    = "git.bundle"
	AttrGitCheckoutBundle            = "git.checkoutbundle"
	AttrGitAdvice                    = "git.advice"
	AttrGitSigPubKey                 = "git.sig.pubkey"
	AttrGitSigRejectExpired          = "git.sig.rejectexpired"
	AttrGitSigRequireSignedTag       = "git.sig.requiresignedtag"
	AttrGitSigIgnoreSignedTag        = "git.sig.ignoresignedtag"
	AttrHTTPChecksum                 = "http.checksum"
	AttrHTTPFilename                 = "http.filename"
	AttrHTTPPerm                     = "http.perm"
	AttrHTTPUID                      = "http.uid"
	AttrHTTPGID                      = "http.gid"
	AttrHTTPAuthHeaderSecret         = "http.authheadersecret"
	AttrHTTPHeaderAccept             = "http.header.accept"
	AttrHTTPHeaderUserAgent          = "http.header.user-agent"
	AttrHTTPSigPubKey                = "http.sig.pubkey"
	AttrHTTPSignature                = "http.sig.signature"
	AttrLocalSession                 = "local.session"
	AttrLocalUnique                  = "local.unique"
	AttrLocalInclude                 = "local.includepattern"
	AttrLocalExclude                 = "local.excludepatterns"
	AttrLocalFollow                  = "local.followpaths"
	AttrLocalSharedKey               = "local.sharedkeyhint"
	AttrLocalDiffer                  = "local.differ"
	AttrLocalMetadataTransfer        = "local.metadatatransfer"
	AttrLocalMetadataTransferExclude = "local.metadatatransferexclude"
	AttrBuildFilename                = "llbbuild.filename"
)

// Values of AttrImageResolveMode.
const (
	ResolveDefault = "default"
	ResolvePull    = "pull"
	ResolveLocal   = "local"
)

// attributes are those of a source that is being described. Settings that were
// left out have none.
type attributes map[string]string

func (a attributes) set(name, value string) {
	if value != "" {
		a[name] = value
	}
}

func (a attributes) setFlag(name string, on bool) {
	if on {
		a[name] = "true"
	}
}

// setLimit sets a number that may be 0, unlike one that was left out.
func (a attributes) setLimit(name string, n *int) {
	if n != nil {
		a[name] = strconv.Itoa(*n)
	}
}
