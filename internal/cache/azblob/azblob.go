// Package azblob keeps caches in containers of Azure Blob Storage (BuildKit's
// README.md). It is a [cache.Place], with BuildKit's attributes and names of blobs.
package azblob

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/cache"
	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/registry"
)

// Config says how to talk to servers. The zero value is ready for use.
type Config struct {
	// Stall is how long a server may be silent; 0 is 30 seconds.
	Stall time.Duration
	// Backoff is the pause before a request is repeated, longer each time; 0 is
	// 800 milliseconds.
	Backoff time.Duration
	// Getenv reads the environment; nil reads the process's.
	Getenv func(string) string
}

// place makes caches of containers.
type place struct {
	c    Config
	http *http.Client
}

// originPrefix begins the origins of blobs in containers.
const originPrefix = "azblob:"

// New returns the place that all containers are.
func New(c Config) *cache.ObjectPlace {
	if c.Stall == 0 {
		c.Stall = 30 * time.Second
	}
	if c.Backoff == 0 {
		c.Backoff = 800 * time.Millisecond
	}
	if c.Getenv == nil {
		c.Getenv = os.Getenv
	}
	p := &place{c: c, http: registry.NewHTTPClient(c.Stall)}
	return &cache.ObjectPlace{Title: "exporting cache to Azure Blob Storage", Prefix: originPrefix, Open: p.open, Attrs: attrsOf}
}

// config is the attributes of a cache.
type config struct {
	url                      *url.URL
	account, container       string
	prefix, manifests, blobs string
	names                    []string
	secret                   string
}

// decode reads attributes; what is not given may be in the environment.
func decode(attrs map[string]string, getenv func(string) string) (*config, error) {
	value := func(attr, env, standard string) string {
		if v, ok := attrs[attr]; ok {
			return v
		}
		if v := getenv(env); env != "" && v != "" {
			return v
		}
		return standard
	}
	address := value("account_url", "BUILDKIT_AZURE_STORAGE_ACCOUNT_URL", "")
	if address == "" {
		return nil, errors.New("either ${BUILDKIT_AZURE_STORAGE_ACCOUNT_URL} or account_url attribute is required for azblob cache")
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, errors.New("azure storage account url provided is not a valid url: expected https://ACCOUNT.blob.core.windows.net")
	}
	account, _, _ := strings.Cut(u.Hostname(), ".")
	c := &config{
		url: u, account: value("account_name", "BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME", account),
		container: value("container", "BUILDKIT_AZURE_STORAGE_CONTAINER", "buildkit-cache"),
		prefix:    value("prefix", "BUILDKIT_AZURE_STORAGE_PREFIX", ""),
		manifests: value("manifests_prefix", "", "manifests"), blobs: value("blobs_prefix", "", "blobs"),
		names: strings.Split(value("name", "", "buildkit"), ";"), secret: attrs["secret_access_key"],
	}
	if c.account == "" {
		return nil, errors.New("unable to retrieve account name from account url or ${BUILDKIT_AZURE_STORAGE_ACCOUNT_NAME} or account_name attribute for azblob cache")
	}
	return c, nil
}

// origin names what blobs are found by, without credentials.
func (c *config) origin() string {
	u := *c.url
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return originPrefix + url.Values{
		"account_url": {u.String()}, "account_name": {c.account}, "container": {c.container},
		"prefix": {c.prefix}, "blobs_prefix": {c.blobs},
	}.Encode()
}

// attrsOf reads an origin.
func attrsOf(origin string) (map[string]string, error) {
	q, err := url.ParseQuery(strings.TrimPrefix(origin, originPrefix))
	if err != nil {
		return nil, fmt.Errorf("origin of a blob %q is malformed: %w", origin, err)
	}
	attrs := map[string]string{}
	for k := range q {
		attrs[k] = q.Get(k)
	}
	return attrs, nil
}

// atOnce is how many blobs are sent at a time.
const atOnce = 4

// open reads attributes and makes a client; to write, it makes the container, too.
func (p *place) open(ctx context.Context, attrs map[string]string, write bool) (*cache.ObjectCache, error) {
	c, err := decode(attrs, p.c.Getenv)
	if err != nil {
		return nil, err
	}
	store, err := p.connect(c)
	if err != nil {
		return nil, err
	}
	if write {
		if err := store.create(ctx); err != nil {
			return nil, err
		}
	}
	return cache.NewObjectCache(store, cache.Layout{
		Origin:   c.origin(),
		Manifest: func(name string) string { return path.Join(c.prefix, c.manifests, name) },
		Blob:     func(d digest.Digest) string { return path.Join(c.prefix, c.blobs, d.String()) },
		Record:   func(name, record string) string { return path.Join(c.prefix, "records", name) + "/" + record },
		Write:    c.names, Read: c.names, AtOnce: atOnce,
		Task: func(ctx context.Context, what string, size int64) cache.Task {
			return progress.StepFrom(ctx).Task(what, size)
		},
	}), nil
}
