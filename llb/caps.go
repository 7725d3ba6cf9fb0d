package llb

// Capabilities that a definition may need (BuildKit's solver/pb/caps.go). A daemon
// that does not know one of them must reject the definition.
const (
	CapSourceImage                            = "source.image"
	CapSourceImageResolveMode                 = "source.image.resolvemode"
	CapSourceImageLayerLimit                  = "source.image.layerlimit"
	CapSourceImageChecksum                    = "source.image.checksum"
	CapSourceImageBlob                        = "source.imageblob"
	CapSourceOCILayout                        = "source.ocilayout"
	CapSourceLocal                            = "source.local"
	CapSourceLocalUnique                      = "source.local.unique"
	CapSourceLocalSessionID                   = "source.local.sessionid"
	CapSourceLocalIncludePatterns             = "source.local.includepatterns"
	CapSourceLocalFollowPaths                 = "source.local.followpaths"
	CapSourceLocalExcludePatterns             = "source.local.excludepatterns"
	CapSourceLocalSharedKeyHint               = "source.local.sharedkeyhint"
	CapSourceLocalDiffer                      = "source.local.differ"
	CapSourceLocalMetadataTransfer            = "source.local.metadatatransfer"
	CapSourceGit                              = "source.git"
	CapSourceGitKeepDir                       = "source.git.keepgitdir"
	CapSourceGitFullURL                       = "source.git.fullurl"
	CapSourceGitHTTPAuth                      = "source.git.httpauth"
	CapSourceGitKnownSSHHosts                 = "source.git.knownsshhosts"
	CapSourceGitMountSSHSock                  = "source.git.mountsshsock"
	CapSourceGitSubdir                        = "source.git.subdir"
	CapSourceGitChecksum                      = "source.git.checksum"
	CapSourceGitSkipSubmodules                = "source.git.skipsubmodules"
	CapSourceGitSignatureVerify               = "source.git.signatureverify"
	CapSourceGitMTime                         = "source.git.mtime"
	CapSourceGitFetchByCommit                 = "source.git.fetchbycommit"
	CapSourceGitBundle                        = "source.git.bundle"
	CapSourceGitCheckoutBundle                = "source.git.checkoutbundle"
	CapSourceHTTP                             = "source.http"
	CapSourceHTTPChecksum                     = "source.http.checksum"
	CapSourceHTTPPerm                         = "source.http.perm"
	CapSourceHTTPAuth                         = "source.http.auth"
	CapSourceHTTPUIDGID                       = "soruce.http.uidgid" // the misspelling is the real id
	CapSourceHTTPHeader                       = "source.http.header"
	CapSourceHTTPSignatureVerify              = "source.http.signatureverify"
	CapBuildOpLLBFileName                     = "source.buildop.llbfilename"
	CapExecMetaBase                           = "exec.meta.base"
	CapExecMetaCgroupParent                   = "exec.meta.cgroup.parent"
	CapExecMetaProxy                          = "exec.meta.proxyenv"
	CapExecMetaNetwork                        = "exec.meta.network"
	CapExecMetaNetworkProxy                   = "exec.meta.network.proxy"
	CapExecMetaSetsDefaultPath                = "exec.meta.setsdefaultpath"
	CapExecMetaSecurity                       = "exec.meta.security"
	CapExecMetaSecurityDevices                = "exec.meta.security.devices.v1"
	CapExecMetaUlimit                         = "exec.meta.ulimit"
	CapExecMetaCDI                            = "exec.meta.cdi"
	CapExecMetaLinuxResources                 = "exec.meta.linux.resources"
	CapExecMetaTimeout                        = "exec.meta.kiln.timeout" // Kiln's own, see [Metadata]
	CapExecMountBind                          = "exec.mount.bind"
	CapExecMountBindReadWriteNoOutput         = "exec.mount.bind.readwrite-nooutput"
	CapExecMountCache                         = "exec.mount.cache"
	CapExecMountCacheSharing                  = "exec.mount.cache.sharing"
	CapExecMountSelector                      = "exec.mount.selector"
	CapExecMountTmpfs                         = "exec.mount.tmpfs"
	CapExecMountTmpfsSize                     = "exec.mount.tmpfs.size"
	CapExecMountSecret                        = "exec.mount.secret"
	CapExecMountSSH                           = "exec.mount.ssh"
	CapExecMountContentCache                  = "exec.mount.cache.content"
	CapExecCgroupsMounted                     = "exec.cgroup"
	CapExecSecretEnv                          = "exec.secretenv"
	CapExecValidExitCode                      = "exec.validexitcode"
	CapFileBase                               = "file.base"
	CapFileRmWildcard                         = "file.rm.wildcard"
	CapFileRmNoFollowSymlink                  = "file.rm.nofollowsymlink"
	CapFileCopyIncludeExcludePatterns         = "file.copy.includeexcludepatterns"
	CapFileCopyRequiredPaths                  = "file.copy.requiredpaths"
	CapFileCopyAlwaysReplaceExistingDestPaths = "file.copy.alwaysreplaceexistingdestpaths"
	CapFileSymlinkCreate                      = "file.symlink.create"
	CapConstraints                            = "constraints"
	CapPlatform                               = "platform"
	CapMetaIgnoreCache                        = "meta.ignorecache"
	CapMetaDescription                        = "meta.description"
	CapMetaExportCache                        = "meta.exportcache"
	CapMergeOp                                = "mergeop"
	CapDiffOp                                 = "diffop"
	CapPassthroughOp                          = "passthroughop"
)

// Caps lists every capability of the language that this package can express.
// What a daemon advertises beyond it are features of its own, such as "cache.s3".
func Caps() []string {
	return []string{
		CapSourceImage,
		CapSourceImageResolveMode,
		CapSourceImageLayerLimit,
		CapSourceImageChecksum,
		CapSourceImageBlob,
		CapSourceOCILayout,
		CapSourceLocal,
		CapSourceLocalUnique,
		CapSourceLocalSessionID,
		CapSourceLocalIncludePatterns,
		CapSourceLocalFollowPaths,
		CapSourceLocalExcludePatterns,
		CapSourceLocalSharedKeyHint,
		CapSourceLocalDiffer,
		CapSourceLocalMetadataTransfer,
		CapSourceGit,
		CapSourceGitKeepDir,
		CapSourceGitFullURL,
		CapSourceGitHTTPAuth,
		CapSourceGitKnownSSHHosts,
		CapSourceGitMountSSHSock,
		CapSourceGitSubdir,
		CapSourceGitChecksum,
		CapSourceGitSkipSubmodules,
		CapSourceGitSignatureVerify,
		CapSourceGitMTime,
		CapSourceGitFetchByCommit,
		CapSourceGitBundle,
		CapSourceGitCheckoutBundle,
		CapSourceHTTP,
		CapSourceHTTPChecksum,
		CapSourceHTTPPerm,
		CapSourceHTTPAuth,
		CapSourceHTTPUIDGID,
		CapSourceHTTPHeader,
		CapSourceHTTPSignatureVerify,
		CapBuildOpLLBFileName,
		CapExecMetaBase,
		CapExecMetaCgroupParent,
		CapExecMetaProxy,
		CapExecMetaNetwork,
		CapExecMetaNetworkProxy,
		CapExecMetaSetsDefaultPath,
		CapExecMetaSecurity,
		CapExecMetaSecurityDevices,
		CapExecMetaUlimit,
		CapExecMetaCDI,
		CapExecMetaLinuxResources,
		CapExecMetaTimeout,
		CapExecMountBind,
		CapExecMountBindReadWriteNoOutput,
		CapExecMountCache,
		CapExecMountCacheSharing,
		CapExecMountSelector,
		CapExecMountTmpfs,
		CapExecMountTmpfsSize,
		CapExecMountSecret,
		CapExecMountSSH,
		CapExecMountContentCache,
		CapExecCgroupsMounted,
		CapExecSecretEnv,
		CapExecValidExitCode,
		CapFileBase,
		CapFileRmWildcard,
		CapFileRmNoFollowSymlink,
		CapFileCopyIncludeExcludePatterns,
		CapFileCopyRequiredPaths,
		CapFileCopyAlwaysReplaceExistingDestPaths,
		CapFileSymlinkCreate,
		CapConstraints,
		CapPlatform,
		CapMetaIgnoreCache,
		CapMetaDescription,
		CapMetaExportCache,
		CapMergeOp,
		CapDiffOp,
		CapPassthroughOp,
	}
}

// Caps are the capabilities that a daemon must have to run the vertex: those
// given in Meta, or else what its operation takes.
func (v *Vertex) Caps() map[string]bool {
	if v.Meta.Caps != nil {
		return v.Meta.Caps
	}
	return v.derivedCaps()
}

func (v *Vertex) derivedCaps() map[string]bool {
	caps := map[string]bool{}
	need := func(id string) { caps[id] = true }
	v.Op.caps(need)
	if _, isExec := v.Op.(*ExecOp); isExec && v.Meta.Resources != nil {
		need(CapExecMetaLinuxResources)
	}
	if v.Meta.Timeout > 0 {
		need(CapExecMetaTimeout)
	}
	return caps
}
