package llb

import (
	"encoding/json"
	"maps"
	"slices"

	digest "github.com/opencontainers/go-digest"
)

// LocalInfo is what to get from a directory of the client. Lists are JSON.
type LocalInfo struct {
	Constraints
	SessionID              string
	IncludePatterns        string
	ExcludePatterns        string
	FollowPaths            string
	SharedKeyHint          string
	Differ                 DifferInfo
	MetadataOnlyCollector  bool
	MetadataOnlyExceptions string
}

// DifferInfo is how changes of a directory are found.
type DifferInfo struct {
	Type     DiffType
	Required bool // the daemon must know how
}

// DiffType is a way to find changes.
type DiffType string

// Ways to find changes: take all as changed, or compare metadata.
const (
	DiffNone     DiffType = "none"
	DiffMetadata DiffType = "metadata"
)

// LocalOption is an option of [Local].
type LocalOption interface{ SetLocalOption(*LocalInfo) }

type localOptionFunc func(*LocalInfo)

func (f localOptionFunc) SetLocalOption(i *LocalInfo) { f(i) }

// SessionID says which session has the directory.
func SessionID(id string) LocalOption {
	return localOptionFunc(func(i *LocalInfo) { i.SessionID = id })
}

// IncludePatterns takes only paths that match one of the patterns.
func IncludePatterns(p []string) LocalOption {
	return localOptionFunc(func(i *LocalInfo) { i.IncludePatterns = jsonList(p) })
}

// ExcludePatterns leaves out paths that match, as in .dockerignore.
func ExcludePatterns(p []string) LocalOption {
	return localOptionFunc(func(i *LocalInfo) { i.ExcludePatterns = jsonList(p) })
}

// FollowPaths takes only these paths and what symlinks in them lead to.
func FollowPaths(p []string) LocalOption {
	return localOptionFunc(func(i *LocalInfo) { i.FollowPaths = jsonList(p) })
}

// SharedKeyHint tells directories apart whose transfers should not build on
// each other.
func SharedKeyHint(h string) LocalOption {
	return localOptionFunc(func(i *LocalInfo) { i.SharedKeyHint = h })
}

// Differ sets how changes are found.
func Differ(t DiffType, required bool) LocalOption {
	return localOptionFunc(func(i *LocalInfo) { i.Differ = DifferInfo{t, required} })
}

// MetadataOnlyTransfer transfers no content but of the exceptions.
func MetadataOnlyTransfer(exceptions []string) LocalOption {
	return localOptionFunc(func(i *LocalInfo) {
		i.MetadataOnlyCollector, i.MetadataOnlyExceptions = true, jsonList(exceptions)
	})
}

func jsonList(list []string) string {
	if len(list) == 0 {
		return ""
	}
	data, err := json.Marshal(list)
	if err != nil { // strings always encode
		return ""
	}
	return string(data)
}

// Local returns a directory of the client, by the name that the client gave it.
func Local(name string, opts ...LocalOption) State {
	info := &LocalInfo{}
	for _, o := range opts {
		o.SetLocalOption(info)
	}
	attrs := attributes{}
	attrs.set(AttrLocalSession, info.SessionID)
	attrs.set(AttrLocalInclude, info.IncludePatterns)
	attrs.set(AttrLocalExclude, info.ExcludePatterns)
	attrs.set(AttrLocalFollow, info.FollowPaths)
	attrs.set(AttrLocalSharedKey, info.SharedKeyHint)
	attrs.set(AttrLocalDiffer, string(info.Differ.Type))
	if info.Differ.Type != "" && info.Differ.Required {
		info.addCap(CapSourceLocalDiffer)
	}
	if info.MetadataOnlyCollector {
		attrs[AttrLocalMetadataTransfer] = "true"
		attrs.set(AttrLocalMetadataTransferExclude, info.MetadataOnlyExceptions)
	}
	return source("local://"+name, attrs, &info.Constraints, nil)
}

// withUniqueID adds the id that keeps directories of unlike builds apart, unless
// a session is named.
func withUniqueID(attrs map[string]string, own, all *Constraints) map[string]string {
	if _, ok := attrs[AttrLocalSession]; ok {
		return attrs
	}
	attrs = maps.Clone(attrs)
	attrs[AttrLocalUnique] = own.LocalUniqueID
	if own.LocalUniqueID == "" {
		attrs[AttrLocalUnique] = all.LocalUniqueID
	}
	return attrs
}

// HTTPInfo is what to download.
type HTTPInfo struct {
	Constraints
	fileInfo
	Checksum         digest.Digest
	AuthHeaderSecret string
	Header           *HTTPHeader
	Signature        *HTTPSignatureInfo
}

// HTTPHeader is the headers that can be set.
type HTTPHeader struct {
	Accept    string
	UserAgent string
}

// HTTPSignatureInfo is a detached signature that the download must match.
type HTTPSignatureInfo struct {
	PubKey    []byte // armored
	Signature []byte
}

// HTTPOption is an option of [HTTP].
type HTTPOption interface{ SetHTTPOption(*HTTPInfo) }

type httpOptionFunc func(*HTTPInfo)

func (f httpOptionFunc) SetHTTPOption(i *HTTPInfo) { f(i) }

// Checksum fails the build if the download has another digest.
func Checksum(d digest.Digest) HTTPOption {
	return httpOptionFunc(func(i *HTTPInfo) { i.Checksum = d })
}

// Header sets headers of the request.
func Header(h HTTPHeader) HTTPOption { return httpOptionFunc(func(i *HTTPInfo) { i.Header = &h }) }

// VerifyPGPSignature fails the build unless the signature is good.
func VerifyPGPSignature(s HTTPSignatureInfo) HTTPOption {
	return httpOptionFunc(func(i *HTTPInfo) {
		i.Signature = &HTTPSignatureInfo{PubKey: slices.Clone(s.PubKey), Signature: slices.Clone(s.Signature)}
	})
}

// HTTP returns a file system of one file: a download.
func HTTP(url string, opts ...HTTPOption) State {
	info := &HTTPInfo{}
	for _, o := range opts {
		o.SetHTTPOption(info)
	}
	attrs := attributes{}
	info.setAttrs(attrs)
	attrs.set(AttrHTTPChecksum, info.Checksum.String())
	attrs.set(AttrHTTPAuthHeaderSecret, info.AuthHeaderSecret)
	if h := info.Header; h != nil {
		attrs.set(AttrHTTPHeaderAccept, h.Accept)
		attrs.set(AttrHTTPHeaderUserAgent, h.UserAgent)
		info.addCap(CapSourceHTTPHeader)
	}
	if s := info.Signature; s != nil {
		attrs.set(AttrHTTPSigPubKey, string(s.PubKey))
		attrs.set(AttrHTTPSignature, string(s.Signature))
		info.addCap(CapSourceHTTPSignatureVerify)
	}
	return source(url, attrs, &info.Constraints, nil)
}
