// Package gha keeps caches in the cache service of GitHub Actions, and of servers
// that speak its protocol, in both versions (BuildKit's README, Cache). It is a
// [cache.Place], with BuildKit's attributes and keys.
//
// An entry of the service never changes. What does is an entry "KEY#1", then
// "KEY#2": the newest counts.
package gha

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/registry"
)

// Config says how to talk to the service. The zero value is ready for use.
type Config struct {
	// Stall is how long a server may be silent; 0 is 30 seconds.
	Stall time.Duration
	// Backoff is the pause before a request is repeated, doubled each time; 0 is a
	// second.
	Backoff time.Duration
	// Locked is how long a key that somebody has reserved is waited for; 0 is 15
	// seconds.
	Locked time.Duration
	// API is the address of GitHub's API, that lists keys; "" is GitHub's own.
	API string
}

// place makes caches of the service.
type place struct {
	c    Config
	http *http.Client
}

// originPrefix begins the origins of blobs in the service.
const originPrefix = "gha:"

// New returns the place that all such services are.
func New(c Config) *cache.ObjectPlace {
	for to, standard := range map[*time.Duration]time.Duration{&c.Stall: 30 * time.Second, &c.Backoff: time.Second, &c.Locked: 15 * time.Second} {
		if *to == 0 {
			*to = standard
		}
	}
	if c.API == "" {
		c.API = "https://api.github.com"
	}
	p := &place{c: c, http: registry.NewHTTPClient(c.Stall)}
	return &cache.ObjectPlace{Title: "exporting to GitHub Actions Cache", Prefix: originPrefix, Open: p.open, Attrs: func(string) (map[string]string, error) {
		return nil, errors.New("the token of a gha cache is known only while a build uses it: build with --cache-from type=gha")
	}}
}

// config is the attributes of a cache.
type config struct {
	scope, url, token   string
	version             int // of the protocol
	timeout             time.Duration
	repository, ghtoken string
	scopes              []scope
}

// scope is a branch or a tag whose entries a token opens.
type scope struct {
	Scope      string
	Permission int // bits
}

const mayRead, mayWrite = 1, 2

func decode(attrs map[string]string) (*config, error) {
	c := &config{scope: "buildkit", timeout: 10 * time.Minute, token: attrs["token"], repository: attrs["repository"], ghtoken: attrs["ghtoken"]}
	if v, ok := attrs["scope"]; ok {
		c.scope = v
	}
	if c.token == "" {
		return nil, errors.New("token not set for github actions cache: give token, or run where $ACTIONS_RUNTIME_TOKEN is set")
	}
	var err error
	if v, ok := attrs["version"]; ok {
		if c.version, err = strconv.Atoi(v); err != nil {
			return nil, fmt.Errorf("failed to parse api version %q, expected positive integer", v)
		}
	}
	if v, ok := attrs["url_v2"]; ok && c.version != 1 {
		c.url, c.version = v, 2
	} else {
		c.url = attrs["url"]
	}
	if u, err := url.Parse(c.url); c.url == "" || err != nil || u.Host == "" {
		return nil, errors.New("url not set for github actions cache: give url or url_v2 with an address, or run where $ACTIONS_RESULTS_URL is set")
	}
	if c.version == 0 {
		c.version = 1
		if strings.Contains(c.url, "results-receiver.actions.githubusercontent.com") {
			c.version = 2
		}
	}
	if v, ok := attrs["timeout"]; ok {
		if c.timeout, err = time.ParseDuration(v); err != nil {
			return nil, fmt.Errorf("failed to parse timeout %q for github actions cache: expected a duration such as 10m", v)
		}
	}
	c.scopes, err = scopesOf(c.token, time.Now())
	return c, err
}

// scopesOf reads a token, which only the service can verify.
func scopesOf(token string, now time.Time) ([]scope, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, errors.New("token of github actions cache is no JSON web token")
	}
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(parts[1], "="))
	var claims struct {
		Access  string  `json:"ac"`
		Expires float64 `json:"exp"`
		Begins  float64 `json:"nbf"`
	}
	if err != nil || json.Unmarshal(b, &claims) != nil {
		return nil, errors.New("token of github actions cache is no JSON web token")
	}
	if end := time.Unix(int64(claims.Expires), 0); now.After(end) {
		return nil, fmt.Errorf("cache token expired at %v: a token is good for one run of a workflow", end)
	}
	if begin := time.Unix(int64(claims.Begins), 0); now.Before(begin) {
		return nil, fmt.Errorf("cache token is not good before %v: check the clock", begin)
	}
	var scopes []scope
	if err := json.Unmarshal([]byte(claims.Access), &scopes); err != nil {
		return nil, errors.New("token of github actions cache says nothing of what it opens")
	}
	return scopes, nil
}

// keyVersion is a part of BuildKit's keys.
const keyVersion = "1"

// blobPrefix begins the keys of blobs.
const blobPrefix = "buildkit-blob-" + keyVersion + "-"

func hashOf(scope string) string { return digest.FromString(scope).Encoded()[:8] }

// atOnce and questions are how much is asked of the service at a time, which
// limits how often it can be.
const atOnce, questions = 4, 8

// open reads attributes.
func (p *place) open(_ context.Context, attrs map[string]string, _ bool) (*cache.ObjectCache, error) {
	c, err := decode(attrs)
	if err != nil {
		return nil, err
	}
	var read []string
	write := ""
	for _, s := range c.scopes {
		if s.Permission&mayRead != 0 {
			read = append(read, s.Scope)
		}
		if s.Permission&mayWrite != 0 {
			write = s.Scope
		}
	}
	return cache.NewObjectCache(&service{c: c, conf: p.c, http: p.http, found: map[string]string{}}, cache.Layout{
		Origin:   originPrefix + url.Values{"url": {c.url}, "version": {strconv.Itoa(c.version)}, "token": {hashOf(c.token)}}.Encode(),
		Manifest: func(name string) string { return "index-" + c.scope + "-" + keyVersion + "-" + hashOf(name) },
		Blob:     func(d digest.Digest) string { return blobPrefix + d.String() },
		Record: func(name, record string) string {
			return "kiln-" + c.scope + "-" + keyVersion + "-" + hashOf(name) + "-" + record
		},
		Write: []string{write}, Read: read, AtOnce: atOnce, Questions: questions,
		Task: func(ctx context.Context, what string, size int64) cache.Task {
			return progress.StepFrom(ctx).Task(what, size)
		},
	}), nil
}
