// Package http brings in single files by http and https (BuildKit's
// solver/pb/attr.go).
//
// A URL is pinned by what it serves: Resolve asks the server, once for a build,
// whether the file that was downloaded last is still the one, and downloads it if
// not. A URL that comes with a checksum is pinned by that and needs no request
// while the file is kept. Files of the host "buildkit-session" come from the client over
// its session.
//
// What a server says decides over one file's name, bytes and time, and over
// nothing else: names with separators are refused, bytes are capped, a silent
// server is given up, and credentials never follow a redirect to another host.
package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

// Layers is what of [layer.Store] is needed here.
type Layers interface {
	Get(ctx context.Context, id string) (*layer.Ref, error)
	New(ctx context.Context, parent *layer.Ref, opt layer.NewOptions) (*layer.Mutable, error)
	Mount(ctx context.Context, r *layer.Ref) (dir string, release func() error, err error)
}

// Config is what a Source is made of.
type Config struct {
	Layers    Layers
	Memo      source.Memo
	Transport http.RoundTripper // nil for one of its own
	MaxBytes  int64             // of a file; 0 is 32 GiB
	Stall     time.Duration     // how long a server may be silent; 0 is 30 seconds
	Backoff   time.Duration     // pause after a failure; 0 is half a second
	UserAgent string            // "kiln" if empty
}

// Source is a source.Source for URLs.
type Source struct {
	cfg     Config
	client  *http.Client
	answers source.Answers[answer]
}

// answer is what a URL serves, for one build.
type answer struct {
	file file
	ref  *layer.Ref
}

// New returns a source.
func New(c Config) *Source {
	if c.MaxBytes == 0 {
		c.MaxBytes = 32 << 30
	}
	if c.Stall == 0 {
		c.Stall = 30 * time.Second
	}
	if c.Backoff == 0 {
		c.Backoff = 500 * time.Millisecond
	}
	if c.UserAgent == "" {
		c.UserAgent = "kiln"
	}
	if c.Transport == nil {
		c.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true,
			TLSHandshakeTimeout: c.Stall, IdleConnTimeout: time.Minute,
		}
	}
	return &Source{cfg: c, client: &http.Client{Transport: c.Transport, CheckRedirect: checkRedirect}}
}

// checkRedirect keeps what is said to one host from another.
func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	if req.URL.Scheme != "http" && req.URL.Scheme != "https" {
		return fmt.Errorf("refused to be redirected to scheme %q", req.URL.Scheme)
	}
	first := via[0].URL
	if req.URL.Host != first.Host || first.Scheme == "https" && req.URL.Scheme != "https" {
		req.Header.Del("Authorization")
		req.Header.Del("Referer")
	}
	return nil
}

// Schemes are http and https.
func (s *Source) Schemes() []string { return []string{"http", "https"} }

// request is a SourceOp, decoded.
type request struct {
	url        *url.URL
	checksum   digest.Digest
	file       source.File
	authSecret string
	headers    []headerField
	// keys and signature are OpenPGP's, armored; both or none.
	keys, signature []byte
}

// headerField is a header that the build asks to be sent.
type headerField struct{ Name, Value string }

func decode(op *llb.SourceOp) (*request, error) {
	u, err := url.Parse(op.Identifier)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("malformed URL %q: expected http://host/path or https://host/path", source.WithoutLogins(op.Identifier))
	}
	r := &request{url: u}
	for k, v := range op.Attrs {
		if err := r.attr(k, v); err != nil {
			return nil, fmt.Errorf("source %s: %w", source.WithoutLogins(u.String()), err)
		}
	}
	if (len(r.keys) == 0) != (len(r.signature) == 0) {
		return nil, fmt.Errorf("source %s: http signature verification requires both pubkey and signature", source.WithoutLogins(u.String()))
	}
	slices.SortFunc(r.headers, func(a, b headerField) int { return strings.Compare(a.Name, b.Name) })
	return r, nil
}

func (r *request) attr(key, value string) error {
	if known, err := r.file.Attr(key, value); known {
		return err
	}
	switch key {
	case llb.AttrHTTPChecksum:
		r.checksum = digest.Digest(value)
		if r.checksum.Validate() != nil {
			return fmt.Errorf("attribute %s=%q: expected a digest such as sha256:<64 hex digits>", key, value)
		}
	case llb.AttrHTTPAuthHeaderSecret:
		r.authSecret = value
	case llb.AttrHTTPHeaderAccept, llb.AttrHTTPHeaderUserAgent:
		if strings.ContainsAny(value, "\r\n\x00") {
			return fmt.Errorf("attribute %s: a header's value has no line breaks", key)
		}
		r.headers = append(r.headers, headerField{http.CanonicalHeaderKey(strings.TrimPrefix(key, "http.header.")), value})
	case llb.AttrHTTPSigPubKey:
		r.keys = []byte(value)
	case llb.AttrHTTPSignature:
		r.signature = []byte(value)
	default:
		return source.UnknownAttr(key)
	}
	return nil
}

// shown is the URL as errors and descriptions have it.
func (r *request) shown() string { return source.WithoutLogins(r.url.String()) }

// fileName decides what the file is called: as asked for, as the server says,
// or by the URL.
func (r *request) fileName(header http.Header) (string, error) {
	if r.file.Name != "" {
		return r.file.Name, nil
	}
	if cd := header.Get("Content-Disposition"); cd != "" {
		if _, params, err := mime.ParseMediaType(cd); err == nil && params["filename"] != "" {
			name := params["filename"]
			if err := source.CheckFileName(name); err != nil {
				return "", fmt.Errorf("the server names the file badly, name it yourself: %w", err)
			}
			return name, nil
		}
	}
	name := path.Base(path.Clean("/" + r.url.Path))
	if last := r.url.Path[strings.LastIndexByte(r.url.Path, '/')+1:]; last != "" {
		name = last // Clean would resolve ".."
	}
	if name == "/" || name == "." || name == "" {
		return "download", nil
	}
	return name, source.CheckFileName(name)
}

// key is the cache key of BuildKit's source/http. Fields and order are the
// protocol's.
func (r *request) key(filename string, dgst digest.Digest, lastModified string) (string, error) {
	if t, err := http.ParseTime(lastModified); err == nil {
		lastModified = t.Format(http.TimeFormat)
	} else {
		lastModified = ""
	}
	b, err := json.Marshal(struct {
		Filename         string
		Perm, UID, GID   int
		Checksum         digest.Digest
		LastModTime      string        `json:",omitempty"`
		AuthHeaderSecret string        `json:",omitempty"`
		Header           []headerField `json:",omitempty"`
	}{filename, r.file.Perm, r.file.UID, r.file.GID, dgst, lastModified, r.authSecret, r.headers})
	if err != nil {
		return "", fmt.Errorf("encode cache key: %w", err)
	}
	return digest.FromBytes(b).String(), nil
}

// private is what a pin remembers.
type private struct {
	req *request
	ref *layer.Ref // nil if it was not downloaded yet
}

// Resolve finds out what the URL serves now, once for a build.
func (s *Source) Resolve(ctx context.Context, op *llb.SourceOp, opt source.Options) (*source.Pin, error) {
	req, err := decode(op)
	if err != nil {
		return nil, err
	}
	if err := checkQuery(opt.Checksum); err != nil {
		return nil, fmt.Errorf("source %s: %w", req.shown(), err)
	}
	pin := &source.Pin{Op: op, Platform: opt.Platform}
	if req.checksum != "" && req.keys == nil && opt.Checksum == nil {
		return pin, req.pinKnown(pin)
	}
	got, err := s.ask(ctx, req)
	if err != nil {
		return nil, err
	}
	if req.keys != nil || opt.Checksum != nil {
		if err := s.inspect(ctx, req, got, opt.Checksum, pin); err != nil {
			return nil, fmt.Errorf("source %s: %w", req.shown(), err)
		}
	}
	if pin.Key, err = req.key(got.file.Name, got.file.Digest, got.file.LastModified); err != nil {
		return nil, err
	}
	pin.Digest, pin.Name, pin.Private = got.file.Digest, got.file.Name, &private{req: req, ref: got.ref}
	if t, err := http.ParseTime(got.file.LastModified); err == nil {
		pin.LastModified = &t
	}
	return pin, nil
}

// pinKnown pins a file whose content is known beforehand, so its name can only
// come from the URL.
func (r *request) pinKnown(pin *source.Pin) error {
	name, err := r.fileName(http.Header{})
	if err != nil {
		return fmt.Errorf("source %s: %w", r.shown(), err)
	}
	r.file.Name = name
	pin.Digest, pin.Name, pin.Private = r.checksum, name, &private{req: r}
	pin.Key, err = r.key(name, r.checksum, "")
	return err
}

// ask finds out what the URL serves, for the build that ctx belongs to.
func (s *Source) ask(ctx context.Context, r *request) (answer, error) {
	question, err := r.memoKey()
	if err != nil {
		return answer{}, err
	}
	return s.answers.Ask(ctx, question, func(ctx context.Context) (a answer, err error) {
		a.file, a.ref, err = s.get(ctx, r)
		return a, err
	})
}

// Fetch returns a state with the one file in it.
func (s *Source) Fetch(ctx context.Context, pin *source.Pin) (*layer.Ref, error) {
	p, ok := pin.Private.(*private)
	if !ok {
		return nil, fmt.Errorf("fetch %s: the pin is not of this source", source.WithoutLogins(pin.Op.Identifier))
	}
	if p.ref != nil {
		if ref, err := s.cfg.Layers.Get(ctx, p.ref.ID()); err == nil {
			return ref, nil
		}
	}
	file, ref, err := s.get(ctx, p.req)
	if err != nil {
		return nil, err
	}
	if file.Digest != pin.Digest {
		return nil, fmt.Errorf("fetch %s: digest mismatch %s: %s: the file changed while it was in use: build again",
			p.req.shown(), file.Digest, pin.Digest)
	}
	return ref, nil
}
