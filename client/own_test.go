package client_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/client/clienttest"
)

// A daemon that is not Kiln's is said to be that, whatever is asked of it that only Kiln's knows.
func TestCallsOfKilnAlone(t *testing.T) {
	d := clienttest.Start(t, nil)
	c, err := client.New(d.Address, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for name, call := range map[string]func(context.Context) error{
		"RootUsage":    func(ctx context.Context) error { _, err := c.RootUsage(ctx); return err },
		"ListImages":   func(ctx context.Context) error { _, err := c.ListImages(ctx); return err },
		"RemoveImages": func(ctx context.Context) error { _, _, err := c.RemoveImages(ctx, true); return err },
		"Leave":        func(ctx context.Context) error { _, err := c.Leave(ctx, client.Version{}); return err },
		"Why":          func(ctx context.Context) error { _, err := c.Why(ctx, ""); return err },
		"ListCache": func(ctx context.Context) error {
			return c.ListCache(ctx, "", func(client.CacheRecord) error { return nil })
		},
		"ShowCache":         func(ctx context.Context) error { _, err := c.ShowCache(ctx, "key"); return err },
		"DiffCache":         func(ctx context.Context) error { _, err := c.DiffCache(ctx, "a", "b"); return err },
		"CacheExports":      func(ctx context.Context) error { _, err := c.CacheExports(ctx); return err },
		"CacheIdentity":     func(ctx context.Context) error { _, err := c.CacheIdentity(ctx); return err },
		"CacheMounts":       func(ctx context.Context) error { _, err := c.CacheMounts(ctx); return err },
		"RemoveCacheMounts": func(ctx context.Context) error { _, _, err := c.RemoveCacheMounts(ctx, true); return err },
		"WriteCacheMount":   func(ctx context.Context) error { return c.WriteCacheMount(ctx, "id", io.Discard) },
		"ReadCacheMount": func(ctx context.Context) error {
			_, err := c.ReadCacheMount(ctx, "id", strings.NewReader("archive"))
			return err
		},
	} {
		if err := call(t.Context()); !errors.Is(err, client.ErrNotKiln) {
			t.Errorf("%s: %v, want that the daemon is not Kiln's", name, err)
		}
	}
}
