// Package provenance tells how a result came about: which sources it was made
// of, what was asked for, and by which steps, as a statement in SLSA's terms.
//
// It is pure. Package build records what a build did in a [Capture] for each
// result, and gets a [Predicate] of it, which the exporters put beside the result
// as an in-toto statement ([Statement]) and the history keeps. The shape is
// BuildKit's (docs/attestations there), so that tools that read its
// provenance read this. What is secret is never in a capture: secrets and ssh
// agents by their ids only, URLs without credentials.
package provenance

import (
	"cmp"
	"slices"
	"strings"

	"github.com/distribution/reference"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// Capture is what a result depends on.
type Capture struct {
	Request    Parameters // frontend, arguments, secrets and the like
	Images     []Image
	Blobs      []Blob
	Git        []Git
	HTTP       []HTTP
	Locals     []string // names of the client's directories
	Network    bool     // a step could reach the network
	Proxied    bool     // all such steps went through the capturing proxy
	Gaps       []Gap    // what the proxy could not capture
	Incomplete bool     // something was used that is not listed here
}

// Proxied is what a step asked the proxy network for.
type Proxied struct {
	Files []HTTP
	Gaps  []Gap // of no step yet
}

// Gap is a request of a step of which it is not known what came of it.
type Gap struct {
	Op     digest.Digest `json:"op,omitempty"`
	Name   string        `json:"name,omitempty"`
	Method string        `json:"method,omitempty"`
	URI    string        `json:"uri,omitempty"`
	Reason string        `json:"reason,omitempty"`
}

// AddProxied records what the steps of a graph asked the proxy network for, by
// vertex. One that is not there did not run.
func (c *Capture) AddProxied(g *llb.Graph, ran map[digest.Digest]Proxied) {
	for _, v := range g.Vertices() {
		op, ok := v.Op.(*llb.ExecOp)
		if !ok || op.Network == llb.NetNone {
			continue
		}
		c.Proxied = true
		p := ran[v.Digest()]
		for _, f := range p.Files {
			c.addHTTP(f)
		}
		for _, gap := range p.Gaps {
			gap.Op, gap.Name = v.Digest(), strings.Join(op.Args, " ")
			c.addGap(gap)
		}
	}
}

func (c *Capture) addGap(g Gap) {
	c.Incomplete = true
	if !slices.Contains(c.Gaps, g) {
		c.Gaps = append(c.Gaps, g)
	}
}

// Image is an image that was used.
type Image struct {
	Ref      string
	Platform *ocispecs.Platform
	Digest   digest.Digest
	Layout   bool // from an OCI layout, not a registry
}

// Blob is a single blob of a registry or an OCI layout.
type Blob struct {
	Ref    string
	Digest digest.Digest
	Layout bool
}

// Git is a repository at a commit.
type Git struct {
	URL    string // with "#ref" if one was asked for
	Commit string // hexadecimal
	Bundle string // where a bundle of it was taken from, "docker-image+blob://…@sha256:…"; "" if it was not
}

// HTTP is a file of a server.
type HTTP struct {
	URL    string
	Digest digest.Digest
}

// Pin is what a source turned out to be.
type Pin struct {
	Op       *llb.SourceOp // as it was used
	Platform *ocispecs.Platform
	Digest   digest.Digest // of the image or file; for git, its encoded part is the commit
}

// AddGraph records what the vertices of a graph use. pins has the sources by
// vertex; one without a pin was not used.
func (c *Capture) AddGraph(g *llb.Graph, pins map[digest.Digest]Pin) {
	for _, v := range g.Vertices() {
		switch op := v.Op.(type) {
		case *llb.SourceOp:
			if pin, ok := pins[v.Digest()]; ok {
				c.AddSource(pin)
			}
		case *llb.ExecOp:
			c.addExec(op)
		case *llb.BuildOp:
			c.Incomplete = true // what a build inside a build uses is not recorded
		}
	}
}

func (c *Capture) addExec(op *llb.ExecOp) {
	for _, m := range op.Mounts {
		switch m.Kind {
		case llb.MountSecret:
			c.addSecret(m.Secret.ID, m.Secret.Optional)
		case llb.MountSSH:
			c.addSSH(m.Secret.ID, m.Secret.Optional)
		}
	}
	for _, s := range op.SecretEnv {
		c.addSecret(s.ID, s.Optional)
	}
	if op.Network != llb.NetNone {
		c.Network = true
	}
}

// AddSource records a source.
func (c *Capture) AddSource(pin Pin) {
	scheme, body, _ := strings.Cut(pin.Op.Identifier, "://")
	switch scheme {
	case "docker-image", "oci-layout":
		c.AddImage(Image{Ref: body, Platform: pin.Platform, Digest: pin.Digest, Layout: scheme == "oci-layout"})
	case "docker-image+blob", "oci-layout+blob":
		b := Blob{Ref: body, Digest: pin.Digest, Layout: scheme == "oci-layout+blob"}
		if !slices.ContainsFunc(c.Blobs, func(o Blob) bool { return o.Ref == b.Ref && o.Layout == b.Layout }) {
			c.Blobs = append(c.Blobs, b)
		}
	case "local":
		if !slices.Contains(c.Locals, body) {
			c.Locals = append(c.Locals, body)
		}
	case "http", "https":
		h := HTTP{URL: redact(pin.Op.Identifier), Digest: pin.Digest}
		c.addHTTP(h)
	case "git":
		c.addGit(body, pin)
	}
}

func (c *Capture) addHTTP(h HTTP) {
	if !slices.ContainsFunc(c.HTTP, func(o HTTP) bool { return o.URL == h.URL }) {
		c.HTTP = append(c.HTTP, h)
	}
}

// gitTransport begins a repository's URL that says how it is fetched.
var gitTransport = []string{"http://", "https://", "ssh://", "git://", "file://"}

func (c *Capture) addGit(body string, pin Pin) {
	remote, fragment, _ := strings.Cut(body, "#")
	if full := pin.Op.Attrs[llb.AttrGitFullURL]; full != "" {
		remote = full
	}
	hasTransport := func(prefix string) bool { return strings.HasPrefix(remote, prefix) }
	if !slices.ContainsFunc(gitTransport, hasTransport) && !scpRemote.MatchString(remote) {
		remote = "https://" + remote
	}
	ref, _, _ := strings.Cut(fragment, ":")
	g := Git{
		URL: redact(gitContext{remote: remote, ref: ref}.repository()), Commit: commitOf(pin.Digest),
		Bundle: pin.Op.Attrs[llb.AttrGitBundle],
	}
	c.mergeGit(g)
	for _, attr := range []string{llb.AttrGitAuthTokenSecret, llb.AttrGitAuthHeaderSecret} {
		if id := pin.Op.Attrs[attr]; id != "" {
			c.addSecret(id, true)
		}
	}
	if id := pin.Op.Attrs[llb.AttrGitMountSSHSock]; id != "" {
		c.addSSH(id, true)
	}
}

// commitOf is a commit's hexadecimal id, whether or not its algorithm is told.
func commitOf(d digest.Digest) string {
	if _, hex, ok := strings.Cut(string(d), ":"); ok {
		return hex
	}
	return string(d)
}

func (c *Capture) mergeGit(g Git) {
	if !slices.ContainsFunc(c.Git, func(o Git) bool { return o.URL == g.URL && o.Bundle == g.Bundle }) {
		c.Git = append(c.Git, g)
	}
}

// AddImage records an image; the same one for the same platform once.
func (c *Capture) AddImage(i Image) {
	for _, o := range c.Images {
		if o.Ref == i.Ref && o.Layout == i.Layout && samePlatform(o.Platform, i.Platform) {
			return
		}
	}
	c.Images = append(c.Images, i)
}

func samePlatform(a, b *ocispecs.Platform) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.OS == b.OS && a.Architecture == b.Architecture && a.Variant == b.Variant && a.OSVersion == b.OSVersion
}

func (c *Capture) addSecret(id string, optional bool) {
	c.Request.Secrets = addID(c.Request.Secrets, id, optional)
}

func (c *Capture) addSSH(id string, optional bool) {
	if id == "" {
		id = "default"
	}
	c.Request.SSH = addID(c.Request.SSH, id, optional)
}

// addID adds an id; one that is needed somewhere is not optional.
func addID(list []ID, id string, optional bool) []ID {
	for i := range list {
		if list[i].ID == id {
			list[i].Optional = list[i].Optional && optional
			return list
		}
	}
	return append(list, ID{id, optional})
}

// Merge records what another result depends on, too.
func (c *Capture) Merge(o *Capture) {
	for _, i := range o.Images {
		c.AddImage(i)
	}
	for _, b := range o.Blobs {
		if !slices.Contains(c.Blobs, b) {
			c.Blobs = append(c.Blobs, b)
		}
	}
	for _, g := range o.Git {
		c.mergeGit(g)
	}
	for _, h := range o.HTTP {
		c.addHTTP(h)
	}
	for _, name := range o.Locals {
		if !slices.Contains(c.Locals, name) {
			c.Locals = append(c.Locals, name)
		}
	}
	for _, s := range o.Request.Secrets {
		c.addSecret(s.ID, s.Optional)
	}
	for _, s := range o.Request.SSH {
		c.addSSH(s.ID, s.Optional)
	}
	c.Network = c.Network || o.Network
	c.Proxied = c.Proxied || o.Proxied
	for _, g := range o.Gaps {
		c.addGap(g)
	}
	c.Incomplete = c.Incomplete || o.Incomplete
}

// Tidy puts the capture in order: the same build gives the same text. An image
// by digest is left out where it is listed by its tag.
func (c *Capture) Tidy() {
	byTag := map[string]bool{}
	for _, i := range c.Images {
		if name, byDigest := imageTag(i.Ref); !byDigest {
			byTag[name] = true
		}
	}
	c.Images = slices.DeleteFunc(c.Images, func(i Image) bool {
		name, byDigest := imageTag(i.Ref)
		return byDigest && byTag[name]
	})
	slices.SortStableFunc(c.Images, func(a, b Image) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.SortStableFunc(c.Blobs, func(a, b Blob) int { return cmp.Compare(a.Ref, b.Ref) })
	slices.SortStableFunc(c.Git, func(a, b Git) int { return cmp.Compare(a.URL, b.URL) })
	slices.SortStableFunc(c.HTTP, func(a, b HTTP) int { return cmp.Compare(a.URL, b.URL) })
	slices.Sort(c.Locals)
	byID := func(a, b ID) int { return cmp.Compare(a.ID, b.ID) }
	slices.SortStableFunc(c.Request.Secrets, byID)
	slices.SortStableFunc(c.Request.SSH, byID)
}

// imageTag is a reference without its digest.
func imageTag(ref string) (name string, byDigest bool) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return ref, false
	}
	tag := "latest"
	if t, ok := named.(reference.Tagged); ok {
		tag = t.Tag()
	}
	_, byDigest = named.(reference.Digested)
	return named.Name() + ":" + tag, byDigest
}
