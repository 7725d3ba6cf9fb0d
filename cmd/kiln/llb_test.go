package main

import (
	"context"
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/llb"
)

// scriptLLB: "llb FILE SCRIPT" writes a definition: SCRIPT runs in the base image (the
// layout "base") with the directory "context" at /ctx, and what it leaves in /out is the
// result.
func scriptLLB(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: llb FILE SCRIPT")
	}
	digest, err := client.LayoutDigest(ts.Getenv("BASE"), "")
	ts.Check(err)
	base := llb.OCILayout("example.com/base@"+digest, llb.OCIStore("", "base"))
	run := base.AddEnv("PATH", "/bin").Run(llb.Args([]string{"sh", "-c", args[1]}))
	run.AddMount("/ctx", llb.Local("context"), llb.Readonly)
	def, err := run.AddMount("/out", llb.Scratch()).Marshal(context.Background())
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(llb.WriteTo(def, f))
	ts.Check(f.Close())
}
