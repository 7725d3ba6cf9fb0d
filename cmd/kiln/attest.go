package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
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
		if err := setAttest(o, kind, fields); err != nil {
			return usagef(cmd, "--attest %s: %v", s, err)
		}
	}
	for _, kind := range attestKinds {
		if !cmd.IsSet(kind) {
			continue
		}
		fields, err := csvFields(cmd.String(kind))
		if on, notBool := strconv.ParseBool(cmd.String(kind)); notBool == nil {
			fields = []string{"disabled=" + strconv.FormatBool(!on)}
		}
		if err == nil {
			err = setAttest(o, kind, fields)
		}
		if err != nil {
			return usagef(cmd, "--%s %s: %v", kind, cmd.String(kind), err)
		}
	}
	return nil
}

// setAttest asks for a kind of statement, or not: disabled=true is for us, the
// daemon makes what it is asked for.
func setAttest(o *client.SolveOpt, kind string, fields []string) (err error) {
	off := false
	fields = slices.DeleteFunc(fields, func(f string) bool {
		v, ok := strings.CutPrefix(f, "disabled=")
		if ok {
			var bad error
			off, bad = strconv.ParseBool(v)
			err = errors.Join(err, bad)
		}
		return ok
	})
	if err != nil {
		return fmt.Errorf("disabled is neither true nor false: %w", err)
	}
	for _, f := range fields {
		if f != "" && strings.IndexByte(f, '=') <= 0 {
			return fmt.Errorf("%q: want true, false or KEY=VALUE", f)
		}
	}
	key := "attest:" + kind
	delete(o.FrontendAttrs, key)
	if !off {
		o.FrontendAttrs[key], err = joinCSV(fields)
	}
	return err
}
