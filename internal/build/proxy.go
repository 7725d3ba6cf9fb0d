package build

import (
	"context"
	"fmt"

	digest "github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/op"
	"github.com/kiln-build/kiln/internal/provenance"
	"github.com/kiln-build/kiln/internal/proxy"
	"github.com/kiln-build/kiln/llb"
)

// proxyNetwork is what the build wants of the network of its steps.
func (br *Bridge) proxyNetwork() op.ProxyNetwork {
	if !br.builder.ProxyNetwork && !br.req.ProxyNetwork {
		return op.ProxyNetwork{}
	}
	out := op.ProxyNetwork{On: true, Ran: br.records.ran}
	if br.hasPolicy(nil) {
		out.Check = br.checkURL
	}
	return out
}

// checkURL holds a request of a step against the policies, as if it were a
// source of a graph. Nothing of the answer is kept: a step may ask for anything.
func (br *Bridge) checkURL(ctx context.Context, _, url string) (string, error) {
	became, err := br.decide(ctx, &llb.SourceOp{Identifier: url}, nil, nil)
	if err != nil {
		return "", err
	}
	if len(became.Attrs) > 0 {
		return "", fmt.Errorf("the source policy gives %s attributes, which a request of a step has none of: only its URL can be converted", url)
	}
	return became.Identifier, nil
}

// ran notes what a step asked the network for.
func (r *records) ran(vertex digest.Digest, what proxy.Record) {
	var p provenance.Proxied
	for _, m := range what.Materials {
		p.Files = append(p.Files, provenance.HTTP{URL: m.URL, Digest: m.Digest})
	}
	for _, g := range what.Incomplete {
		p.Gaps = append(p.Gaps, provenance.Gap{Method: g.Method, URI: g.URL, Reason: g.Reason})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proxied == nil {
		r.proxied = map[digest.Digest]provenance.Proxied{}
	}
	r.proxied[vertex] = p
}
