package daemon

import (
	"slices"

	"github.com/kiln-build/kiln/internal/api/caps"
	"github.com/kiln-build/kiln/llb"
)

// frontendCaps are the parts of the gateway API that work (BuildKit's
// solver/pb/caps.go).
var frontendCaps = []string{
	"solve.base", "solve.inlinereturn", "resolveimage", "resolveimage.resolvemode", "readfile", "return", "returnmap",
	"readdir", "statfile", "proto.refarray", "frontend.inputs", "gateway.solve.metadata", "gateway.solve.evaluate",
	"gateway.evaluate", "gateway.warnings", "reference.output", "reference.attestations", "frontend.caps",
	"gateway.exec", "gateway.exec.extrahosts", "gateway.exec.secretenv", "gateway.exec.signals", "gateway.exec.filesystem",
	"importcaches", "source.metaresolver", "source.metaresolver.image.attestations", "source.metaresolver.http.checksumrequest",
}

// Caps are the capabilities that definitions may need of this daemon.
func Caps() []string {
	return append(slices.Clone(llb.Caps()),
		"exporter.image.annotations", "exporter.image.attestations", "exporter.sourcedateepoch", "exporter.multiple",
		"exporter.session", "gc.freespacefilter", "source.policy", "source.policy.session", "history.filter",
		"cache.s3", "cache.azblob", "cache.gha")
}

func wireCaps(ids []string) []*caps.APICap {
	all, out := make([]caps.APICap, len(ids)), make([]*caps.APICap, len(ids))
	for i, id := range ids {
		all[i].ID, all[i].Enabled = id, true
		out[i] = &all[i]
	}
	return out
}
