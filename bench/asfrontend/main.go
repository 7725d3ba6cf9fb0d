// Command asfrontend is a frontend for benchmarks, on BuildKit's own library, to
// be put into an image. It makes as many files as the option "solves" says, one
// after the other, none of which the option "nonce" has named before, and tells
// when it asked for the first.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/frontend/gateway/grpcclient"
	"github.com/moby/buildkit/util/appcontext"
)

func main() {
	if err := grpcclient.RunFromEnvironment(appcontext.Context(), build); err != nil {
		fmt.Fprintln(os.Stderr, "frontend:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
	opts := c.BuildOpts().Opts
	n, err := strconv.Atoi(opts["solves"])
	if err != nil || n < 1 {
		return nil, errors.Join(fmt.Errorf("solves %q: expected a number, 1 or more", opts["solves"]), err)
	}
	began := time.Now()
	var res *gateway.Result
	for i := range n {
		def, err := llb.Scratch().File(llb.Mkfile("/f", 0o644, fmt.Appendf(nil, "%s %d", opts["nonce"], i))).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		if res, err = c.Solve(ctx, gateway.SolveRequest{Definition: def.ToPB(), Evaluate: true}); err != nil {
			return nil, err
		}
	}
	res.AddMeta("bench.first", []byte(strconv.FormatInt(began.UnixNano(), 10)))
	return res, nil
}
