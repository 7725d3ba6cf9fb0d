package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/log"

	"github.com/kiln-build/kiln/internal/namespace"
)

// runDaemon runs the daemon until ctx ends or it has been idle for long enough.
func runDaemon(ctx context.Context, o daemonOptions, ns namespace.Info) error {
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})))
	if err := log.SetLevel("error"); err != nil { // containerd's packages: what matters comes as errors
		return err
	}
	for _, n := range ns.Notices {
		slog.Warn(n)
	}
	s, parts, err := newDaemon(ctx, settings{
		root: o.root, executor: o.executor, snapshotter: o.snapshotter, runtime: o.runtime,
		idle: o.idleTimeout, entitlements: o.entitlements, labels: o.labels,
	}, ns)
	if err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	var listeners []net.Listener
	for _, a := range o.addrs {
		l, err := listen(a)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close() // the error at hand says why nothing is served
			}
			return errors.Join(fmt.Errorf("start daemon: %w", err), parts.Close())
		}
		listeners = append(listeners, l)
		slog.Info("serving", "address", a, "root", o.root)
	}
	return errors.Join(s.Serve(ctx, listeners...), parts.Close())
}

// listen opens an address such as "unix:///run/kiln/kiln.sock".
func listen(address string) (net.Listener, error) {
	scheme, where, ok := strings.Cut(address, "://")
	switch {
	case !ok:
		return nil, fmt.Errorf("address %q: expected unix://PATH or tcp://HOST:PORT", address)
	case scheme == "tcp":
		l, err := net.Listen("tcp", where)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		return l, nil
	case scheme != "unix":
		return nil, fmt.Errorf("address %q: unknown scheme %q, expected unix or tcp", address, scheme)
	}
	if err := os.MkdirAll(filepath.Dir(where), 0o711); err != nil {
		return nil, fmt.Errorf("make folder of socket: %w", err)
	}
	if err := removeStale(where); err != nil {
		return nil, err
	}
	l, err := net.Listen("unix", where)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	// Whoever may connect can run steps: that is for the owner alone.
	if err := os.Chmod(where, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("restrict socket: %w", err), l.Close())
	}
	return l, nil
}

// removeStale removes a socket that nobody listens on any more.
func removeStale(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look at socket: %w", err)
	}
	if fi.Mode()&fs.ModeSocket == 0 {
		return fmt.Errorf("%s is there and is no socket: give another --addr", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close() // it was opened only to see whether it can be
		return fmt.Errorf("a daemon is serving on %s already", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	return nil
}
