package llb

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/kiln-build/kiln/llb/pb"
)

// SourceOp brings files in from outside: an image, a local directory, a URL.
type SourceOp struct {
	Identifier string            // "scheme://...", see BuildKit's solver/pb/attr.go
	Attrs      map[string]string // by the names of BuildKit's solver/pb/attr.go
}

// Kind returns "source".
func (*SourceOp) Kind() string { return "source" }

// Name returns the identifier.
func (o *SourceOp) Name() string { return o.Identifier }

// Outputs returns 1.
func (*SourceOp) Outputs() int { return 1 }

// Scheme returns what stands before "://" in the identifier.
func (o *SourceOp) Scheme() string {
	scheme, _, _ := strings.Cut(o.Identifier, "://")
	return scheme
}

func (o *SourceOp) verify(inputs int) error {
	if inputs != 0 {
		return fmt.Errorf("source has %d inputs, expected none", inputs)
	}
	scheme, body, ok := strings.Cut(o.Identifier, "://")
	if !ok || scheme == "" || body == "" {
		return fmt.Errorf("source identifier %q is not of the form scheme://name", o.Identifier)
	}
	for name := range o.Attrs {
		if name == "" {
			return errors.New("source has an attribute without a name")
		}
	}
	return nil
}

func (o *SourceOp) encode(op *pb.Op) {
	op.Op = &pb.Op_Source{Source: &pb.SourceOp{Identifier: o.Identifier, Attrs: o.Attrs}}
}

func decodeSource(m *pb.SourceOp) *SourceOp {
	return &SourceOp{Identifier: m.GetIdentifier(), Attrs: m.GetAttrs()}
}

// caps lists what BuildKit's client library declares for each attribute.
func (o *SourceOp) caps(need func(string)) {
	switch o.Scheme() {
	case "docker-image":
		need(CapSourceImage)
		if o.Attrs[AttrImageResolveMode] == ResolvePull { // the others are hints that may be ignored
			need(CapSourceImageResolveMode)
		}
		o.capsOf(need, AttrImageLayerLimit, CapSourceImageLayerLimit, AttrImageChecksum, CapSourceImageChecksum)
	case "docker-image+blob", "oci-layout+blob":
		need(CapSourceImageBlob)
	case "oci-layout":
		need(CapSourceOCILayout)
	case "local":
		need(CapSourceLocal)
		o.capsOf(need,
			AttrLocalUnique, CapSourceLocalUnique,
			AttrLocalSession, CapSourceLocalSessionID,
			AttrLocalInclude, CapSourceLocalIncludePatterns,
			AttrLocalFollow, CapSourceLocalFollowPaths,
			AttrLocalExclude, CapSourceLocalExcludePatterns,
			AttrLocalSharedKey, CapSourceLocalSharedKeyHint,
			AttrLocalMetadataTransfer, CapSourceLocalMetadataTransfer)
		if _, ok := o.Attrs[AttrLocalUnique]; ok { // even an empty one
			need(CapSourceLocalUnique)
		}
	case "git":
		need(CapSourceGit)
		o.capsOf(need,
			AttrGitKeepDir, CapSourceGitKeepDir,
			AttrGitFullURL, CapSourceGitFullURL,
			AttrGitKnownSSHHosts, CapSourceGitKnownSSHHosts,
			AttrGitMountSSHSock, CapSourceGitMountSSHSock,
			AttrGitChecksum, CapSourceGitChecksum,
			AttrGitSkipSubmodules, CapSourceGitSkipSubmodules,
			AttrGitMTime, CapSourceGitMTime,
			AttrGitFetchByCommit, CapSourceGitFetchByCommit,
			AttrGitBundle, CapSourceGitBundle,
			AttrGitCheckoutBundle, CapSourceGitCheckoutBundle,
			AttrGitSigPubKey, CapSourceGitSignatureVerify)
	case "http", "https":
		need(CapSourceHTTP)
		o.capsOf(need,
			AttrHTTPChecksum, CapSourceHTTPChecksum,
			AttrHTTPPerm, CapSourceHTTPPerm,
			AttrHTTPUID, CapSourceHTTPUIDGID,
			AttrHTTPGID, CapSourceHTTPUIDGID,
			AttrHTTPAuthHeaderSecret, CapSourceHTTPAuth,
			AttrHTTPHeaderAccept, CapSourceHTTPHeader,
			AttrHTTPHeaderUserAgent, CapSourceHTTPHeader,
			AttrHTTPSigPubKey, CapSourceHTTPSignatureVerify,
			AttrHTTPSignature, CapSourceHTTPSignatureVerify)
	}
}

// capsOf takes pairs of an attribute and the capability that it takes.
func (o *SourceOp) capsOf(need func(string), pairs ...string) {
	for i := 0; i < len(pairs); i += 2 {
		if o.Attrs[pairs[i]] != "" {
			need(pairs[i+1])
		}
	}
}

// listAttrs are the attributes whose JSON arrays have a short form in text.
func listAttrs() map[string]string {
	return map[string]string{
		AttrLocalInclude: "include",
		AttrLocalExclude: "exclude",
		AttrLocalFollow:  "follow",
	}
}

func (o *SourceOp) print(refs) form {
	return form{head: []string{word(o.Identifier)}, tail: attrText(o.Attrs)}
}

// attrText writes attributes. A name without a dot could be taken for a
// property of the vertex and gets a prefix.
func attrText(attrs map[string]string) (list []string) {
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		value := attrs[name]
		if short, ok := listAttrs()[name]; ok {
			if items, ok := compactList(value); ok {
				for _, item := range items {
					list = append(list, short+"="+strconv.Quote(item))
				}
				continue
			}
		}
		text := key(name, '=') + "=" + word(value)
		if !strings.Contains(name, ".") || strings.Contains(name, ":") {
			text = "attr:" + text
		}
		list = append(list, text)
	}
	return list
}

// compactList decodes a JSON array of strings that encodes to the same bytes again.
func compactList(value string) (items []string, ok bool) {
	if json.Unmarshal([]byte(value), &items) != nil || len(items) == 0 {
		return nil, false
	}
	again, err := json.Marshal(items)
	return items, err == nil && string(again) == value
}

func parseSource(s *statement) (Op, error) {
	id, err := s.takeWord("identifier")
	if err != nil {
		return nil, err
	}
	op := &SourceOp{Identifier: id}
	op.Attrs, err = s.takeAttrs()
	return op, err
}

// takeAttrs removes the words that are attributes from the statement.
func (s *statement) takeAttrs() (map[string]string, error) {
	var attrs map[string]string
	set := func(name, value string) {
		if attrs == nil {
			attrs = map[string]string{}
		}
		attrs[name] = value
	}
	lists := map[string][]string{}
	var rest []token
	for _, t := range append(s.head, s.tail...) {
		name, value, found := t.cut('=')
		attr, prefixed := strings.CutPrefix(name.text, "attr:")
		switch {
		case !found:
			rest = append(rest, t)
		case prefixed:
			set(attr, value.text)
		case name.text == "include" || name.text == "exclude" || name.text == "follow":
			lists[name.text] = append(lists[name.text], value.text)
		case strings.Contains(name.text, ".") && !strings.Contains(name.text, ":"):
			set(name.text, value.text)
		default:
			rest = append(rest, t)
		}
	}
	for attr, short := range listAttrs() {
		if items := lists[short]; items != nil {
			value, err := json.Marshal(items)
			if err != nil {
				return nil, err
			}
			set(attr, string(value))
		}
	}
	s.head, s.tail = nil, rest
	return attrs, nil
}
