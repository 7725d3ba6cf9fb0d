package main

import (
	"encoding/base64"
	"testing"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kiln-build/kiln/internal/cache/cachetest"
)

// scriptBucket starts an S3 server. $S3 names an empty bucket of it, for caches.
func scriptBucket(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: bucket")
	}
	b := s3mem.New()
	ts.Check(b.CreateBucket("bucket"))
	url := startLossy(ts, "bucket", gofakes3.New(b, gofakes3.WithLogger(gofakes3.DiscardLog())).Server(), nil)
	ts.Setenv("S3", "region=nowhere,bucket=bucket,use_path_style=true,endpoint_url="+url)
	ts.Setenv("AWS_ACCESS_KEY_ID", "me")
	ts.Setenv("AWS_SECRET_ACCESS_KEY", "notforlogs")
}

// scriptAzure starts a server of Azure's blobs. $AZURE names a container, for caches.
func scriptAzure(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: azure")
	}
	url := startLossy(ts, "azure", cachetest.NewAzure(), nil)
	secret := base64.StdEncoding.EncodeToString([]byte("notforlogs"))
	ts.Setenv("AZURE", "account_url="+url+"/me,account_name=me,container=caches,secret_access_key="+secret)
}

// scriptGitHub starts a cache service of GitHub Actions, and sets what a job of it
// has in its environment.
func scriptGitHub(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 0 {
		ts.Fatalf("usage: github")
	}
	a := cachetest.NewActions(scriptTB{ts: ts})
	a.URL = startLossy(ts, "github", a.Faults, nil) // by which it names its entries
	ts.Setenv("ACTIONS_CACHE_SERVICE_V2", "true")
	ts.Setenv("ACTIONS_RESULTS_URL", a.URL+"/")
	ts.Setenv("ACTIONS_RUNTIME_TOKEN", cachetest.Token("refs/heads/main"))
}

// scriptTB has what servers of tests end with end with the script.
type scriptTB struct {
	testing.TB
	ts *testscript.TestScript
}

// Cleanup calls f when the script has ended.
func (s scriptTB) Cleanup(f func()) { s.ts.Defer(f) }
