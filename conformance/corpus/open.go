package corpus

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"
)

// Corpus is all cases, with what they need: base images, a site to load from
// and an ssh agent.
type Corpus struct {
	Cases []*Case
	bases *Bases
	site  *Site
	agent net.Listener
}

// Open makes the corpus of the folder of the conformance tests in dir, and
// serves what it loads until it is closed.
func Open(ctx context.Context, conformance, dir string) (c *Corpus, err error) {
	c = &Corpus{}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if c.bases, err = MakeBases(filepath.Join(dir, "bases")); err != nil {
		return nil, err
	}
	at := filepath.Join(dir, "site")
	if err := os.MkdirAll(at, 0o755); err != nil {
		return nil, err
	}
	testdata := filepath.Join(conformance, "testdata")
	script, err := filepath.Abs(filepath.Join(testdata, "site.sh"))
	if err != nil {
		return nil, err
	}
	var user ssh.PublicKey
	if c.agent, user, err = ServeAgent(filepath.Join(dir, "agent")); err != nil {
		return nil, err
	}
	if c.site, err = NewSite(ctx, at, script, c.bases, user); err != nil {
		return nil, err
	}
	c.Cases, err = Read(filepath.Join(testdata, "corpus"), filepath.Join(dir, "cases"), c.site.Facts)
	return c, err
}

// Close ends what is served.
func (c *Corpus) Close() {
	if c.site != nil {
		c.site.Close()
	}
	if c.agent != nil {
		_ = c.agent.Close() // nobody asks it any more
	}
}

// Connect returns a Builder that has the cases built on a daemon. Close it.
func (c *Corpus) Connect(ctx context.Context, addr string) (*Builder, error) {
	if c.agent == nil {
		return nil, errors.New("the corpus is not open")
	}
	return NewBuilder(ctx, addr, c.bases, c.agent.Addr().String())
}
