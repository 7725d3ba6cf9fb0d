package corpus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/tonistiigi/fsutil"
)

// offer adds to a request what the case's client offers beside folders: a context
// on its standard input, and folders of another session. The function that it
// returns ends that session.
func (b *Builder) offer(ctx context.Context, c *Case, opt *client.SolveOpt) (end func() error, err error) {
	if c.stdin != "" {
		data, err := os.ReadFile(filepath.Join(c.family.context, c.stdin))
		if err != nil {
			return nil, fmt.Errorf("read what is to be the standard input: %w", err)
		}
		uploads := uploadprovider.New()
		opt.FrontendAttrs["context"] = uploads.Add(io.NopCloser(bytes.NewReader(data)))
		opt.Session = append(opt.Session, uploads)
	}
	end = func() error { return nil }
	if len(c.elsewhere) == 0 {
		return end, nil
	}
	folders := filesync.StaticDirSource{}
	for name, dir := range c.elsewhere {
		if folders[name], err = fsutil.NewFS(filepath.Join(c.family.context, dir)); err != nil {
			return nil, err
		}
	}
	s, err := session.NewSession(ctx, c.Name)
	if err != nil {
		return nil, fmt.Errorf("open another session: %w", err)
	}
	s.Allow(filesync.NewFSSyncProvider(folders))
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, b.client.Dialer()) }()
	for name := range c.elsewhere {
		opt.FrontendAttrs["local-sessionid:"+name] = s.ID()
	}
	return func() error { return errors.Join(s.Close(), <-ended) }, nil
}
