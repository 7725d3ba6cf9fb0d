package main

import (
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptServe: "serve NAME DIR [AUTHORIZATION]" serves the files of a directory
// over HTTP, git repositories among them, to those who send the header; $NAME is
// the address.
func scriptServe(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 || len(args) > 3 {
		ts.Fatalf("usage: serve name dir [authorization]")
	}
	files := http.FileServer(http.Dir(ts.MkAbs(args[1])))
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if len(args) == 3 && !strings.EqualFold(r.Header.Get("Authorization"), args[2]) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		files.ServeHTTP(w, r)
	}))
	ts.Defer(site.Close)
	ts.Setenv(args[0], site.URL)
}
