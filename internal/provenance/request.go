package provenance

import (
	"maps"
	"reflect"
	"strings"
)

// Parameters are what was asked of a build.
type Parameters struct {
	Frontend string              `json:"frontend,omitempty"`
	Args     map[string]string   `json:"args,omitempty"`
	Secrets  []ID                `json:"secrets,omitempty"`
	SSH      []ID                `json:"ssh,omitempty"`
	Locals   []Local             `json:"locals,omitempty"`
	Inputs   map[string]*Request `json:"inputs,omitempty"`
	// Root is the client's own request where a frontend was asked by another.
	Root                 *Request `json:"root,omitempty"`
	CompatibilityVersion int      `json:"compatibilityVersion,omitempty"`
}

// ID names a secret or an ssh agent.
type ID struct {
	ID       string `json:"id"`
	Optional bool   `json:"optional,omitempty"`
}

// Local names a directory of the client.
type Local struct {
	Name string `json:"name"`
}

// Request is one request to a frontend.
type Request struct {
	ConfigSource ConfigSource `json:"configSource"`
	Request      *Parameters  `json:"request,omitempty"`
}

// ConfigSource is where the build's description came from.
type ConfigSource struct {
	URI    string    `json:"uri,omitempty"`
	Digest DigestSet `json:"digest,omitempty"`
	Path   string    `json:"path,omitempty"`
}

// DigestSet is digests, hexadecimal, by the name of the algorithm.
type DigestSet map[string]string

// Equal tells whether two requests are the same.
func (r *Request) Equal(o *Request) bool { return reflect.DeepEqual(r, o) }

// hostOptions are of the machine that built, not of what was built.
var hostOptions = map[string]bool{"cgroup-parent": true, "image-resolve-mode": true, "platform": true, "cache-imports": true}

// FilterArgs leaves out of a frontend's options what provenance does not tell,
// and hides credentials in the URLs of contexts.
func FilterArgs(opts map[string]string) map[string]string {
	contextKey := "context"
	if v := opts["contextkey"]; v != "" {
		contextKey = v
	}
	out := map[string]string{}
	for k, v := range opts {
		if hostOptions[k] || strings.HasPrefix(k, "attest:") {
			continue
		}
		if k == contextKey || strings.HasPrefix(k, "context:") {
			v = redact(v)
		}
		out[k] = v
	}
	return out
}

// NewRequest describes a request to a frontend. The options are to be filtered;
// where the build file came from is taken out of them.
func NewRequest(frontend string, args map[string]string, c *Capture) *Request {
	args = maps.Clone(args)
	contextKey := "context"
	if v := args["contextkey"]; v != "" {
		contextKey = v
	} else if args["input:context"] != "" {
		contextKey = "input:context"
	}
	r := &Request{Request: &Parameters{Frontend: frontend, Args: args}}
	if v := args[contextKey]; v != "" {
		r.ConfigSource = c.configSource(v)
		delete(args, contextKey)
	}
	if v := args["filename"]; v != "" {
		r.ConfigSource.Path = v
		delete(args, "filename")
	}
	if len(args) == 0 {
		r.Request.Args = nil
	}
	return r
}

// configSource is a context with its digest, if it was used.
func (c *Capture) configSource(uri string) ConfigSource {
	match, shown := uri, uri
	if g, ok := parseGitContext(uri); ok {
		match, shown = g.repository(), g.full()
	}
	for _, s := range c.Git {
		if s.URL == redact(match) {
			return ConfigSource{URI: redact(shown), Digest: commitDigest(s.Commit)}
		}
	}
	for _, s := range c.HTTP {
		if s.URL == redact(uri) {
			return ConfigSource{URI: s.URL, Digest: digestSet(s.Digest)}
		}
	}
	return ConfigSource{URI: redact(uri)}
}

// scrub removes what mode=min does not tell. It reports whether the request is
// no longer whole: secrets and agents are none of a result's making.
func (p *Parameters) scrub() (incomplete bool) {
	if p == nil {
		return false
	}
	args := map[string]string{}
	for k, v := range p.Args {
		if strings.HasPrefix(k, "build-arg:") || strings.HasPrefix(k, "label:") {
			incomplete = true
			continue
		}
		args[k] = v
	}
	p.Args, p.Secrets, p.SSH = args, nil, nil
	inputs := map[string]*Request{}
	for name, in := range p.Inputs {
		inputs[name] = in
		if in != nil {
			clean := *in
			clean.Request = clonedParameters(in.Request)
			incomplete = clean.Request.scrub() || incomplete
			inputs[name] = &clean
		}
	}
	p.Inputs = inputs
	if p.Root != nil {
		clean := *p.Root
		clean.Request = clonedParameters(p.Root.Request)
		incomplete = clean.Request.scrub() || incomplete
		p.Root = &clean
	}
	return incomplete
}

func clonedParameters(p *Parameters) *Parameters {
	if p == nil {
		return nil
	}
	clone := *p
	return &clone
}
