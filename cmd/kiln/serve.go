package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/containerd/log"

	"github.com/kiln-build/kiln/internal/config"
	"github.com/kiln-build/kiln/internal/daemon"
	"github.com/kiln-build/kiln/internal/namespace"
)

// runDaemon runs the daemon until ctx ends or it has been idle for long enough.
func runDaemon(ctx context.Context, o daemonOptions, ns namespace.Info) (err error) {
	if err := setUpLog(os.Stderr, o.config.Log); err != nil {
		return err
	}
	for _, n := range append(append(ns.Notices, o.notices...), notices(o.config)...) {
		slog.Warn(n)
	}
	fail := func(err error) error { return fmt.Errorf("start daemon: %w", err) }
	if err := confinement(o.config, ns.Rootless || o.config.Workers.OCI.Rootless); err != nil {
		return fail(err)
	}
	s, parts, err := newDaemon(ctx, settings{root: o.config.Root, executor: o.executor, idle: o.idleTimeout, config: o.config}, ns)
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, parts.Close()) }()
	if a := o.config.GRPC.DebugAddress; a != "" {
		stop, err := serveDebug(a, s.Metrics())
		if err != nil {
			return fail(err)
		}
		defer stop()
	}
	ls, err := listeners(o.config.GRPC, o.owner)
	if err != nil {
		return fail(err)
	}
	defer takeSpans(s, traceSocket(o.config, o.config.Root))()
	for _, l := range ls {
		slog.Info("serving", "address", shownAddress(l), "root", o.config.Root)
	}
	notify(ns, "READY=1")
	stopped := context.AfterFunc(ctx, func() { notify(ns, "STOPPING=1") })
	defer stopped()
	return s.Serve(ctx, ls...)
}

// takeSpans takes the spans of steps until it is told to stop. A daemon works
// without them: another one may have the socket.
func takeSpans(s *daemon.Server, path string) (stop func()) {
	own := socketOwner{uid: os.Getuid(), gid: os.Getgid(), mode: 0o666} // of any user in a container
	l, err := listenUnix(path, own)
	if err != nil {
		slog.Warn("steps can not send their OpenTelemetry spans", "reason", err)
		return func() {}
	}
	go s.ServeSteps(l)
	return func() { _ = l.Close() } // which removes it
}

// shownAddress is where clients connect to.
func shownAddress(l net.Listener) string {
	return l.Addr().Network() + "://" + l.Addr().String()
}

// notify tells the service manager, if there is one.
func notify(ns namespace.Info, state string) {
	if err := ns.Notify(state); err != nil {
		slog.Warn("tell the service manager", "state", state, "error", err)
	}
}

// setUpLog makes the process's log.
func setUpLog(w io.Writer, l config.Log) error {
	if err := config.CheckLog(l); err != nil {
		return err
	}
	level, err := l.Severity()
	if err != nil {
		return err
	}
	o := &slog.HandlerOptions{Level: slog.Level(level)}
	var h slog.Handler = slog.NewTextHandler(w, o)
	if l.Format == "json" {
		h = slog.NewJSONHandler(w, o)
	}
	slog.SetDefault(slog.New(h))
	return log.SetLevel("error") // containerd's packages: what matters comes as errors
}
