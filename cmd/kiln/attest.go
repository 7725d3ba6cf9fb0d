package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

// attestKinds are what --attest takes; each has a flag of its own as well.
var attestKinds = []string{"provenance", "sbom"}

// setAttests sets which statements are to be made about the result.
func setAttests(_ *env, cmd *cli.Command, o *client.SolveOpt) error {
	for _, s := range cmd.StringSlice("attest") {
		fields, err := csvFields(s)
		if err != nil {
			return usagef(cmd, "--attest %v", err)
		}
		kind := ""
		fields = slices.DeleteFunc(fields, func(f string) bool {
			v, ok := strings.CutPrefix(f, "type=")
			if ok {
				kind = v
			}
			return ok
		})
		if !slices.Contains(attestKinds, kind) {
			return usagef(cmd, "--attest %s: want type=provenance or type=sbom", s)
		}
		if len(fields) == 0 {
			o.FrontendAttrs["attest:"+kind] = ""
			continue
		}
		if o.FrontendAttrs["attest:"+kind], err = joinCSV(fields); err != nil {
			return usagef(cmd, "--attest %s: %v", s, err)
		}
	}
	for _, kind := range attestKinds {
		switch v := cmd.String(kind); {
		case !cmd.IsSet(kind):
		case v == "false":
			delete(o.FrontendAttrs, "attest:"+kind)
		case v == "true":
			o.FrontendAttrs["attest:"+kind] = ""
		default:
			o.FrontendAttrs["attest:"+kind] = v
		}
	}
	return nil
}
