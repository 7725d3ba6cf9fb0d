package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"
	"strings"
	"time"
)

// serveDebug serves what developers and monitoring ask of a daemon. Whoever
// reaches the address sees its memory: it should not be open to others.
func serveDebug(address string, metrics http.Handler) (stop func(), err error) {
	if !strings.Contains(address, "://") {
		address = "tcp://" + address
	}
	ls, err := listen(address, socketOwner{uid: os.Getuid(), gid: os.Getgid(), mode: 0o600}, nil, false)
	if err != nil {
		return nil, fmt.Errorf("debug address: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", metrics)
	mux.Handle("/debug/vars", http.HandlerFunc(debugVars))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/gc", func(w http.ResponseWriter, _ *http.Request) {
		runtime.GC()
		_, _ = io.WriteString(w, "ok\n") // a reader that is gone needs no answer
	})
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	for _, l := range ls {
		slog.Info("debug endpoints", "address", shownAddress(l))
		if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			slog.Warn(fmt.Sprintf("whoever reaches %s can read this daemon's memory, secrets of builds among it: "+
				"a unix socket or a loopback address is for this machine alone", shownAddress(l)))
		}
		go func() { _ = s.Serve(l) }() // it ends when stop is called
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s.Shutdown(ctx) != nil {
			_ = s.Close() // a reader that does not end is cut off
		}
	}, nil
}

// debugVars shows what package expvar of Go does, which as a part of the program
// would take time at each start.
func debugVars(w http.ResponseWriter, _ *http.Request) {
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_ = json.NewEncoder(w).Encode(map[string]any{"cmdline": os.Args, "memstats": &memory}) // a reader that is gone needs no answer
}
