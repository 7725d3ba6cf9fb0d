package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

// setOutputs sets where the result goes.
func setOutputs(e *env, cmd *cli.Command, o *client.SolveOpt) error {
	outputs := cmd.StringSlice("output")
	if len(outputs) == 0 {
		outputs = []string{"type=image"}
	}
	stdout := ""
	for _, s := range outputs {
		export, err := parseOutput(e, cmd, s)
		if err != nil {
			return err
		}
		if export == nil {
			continue
		}
		if export.Writer != nil {
			if stdout != "" {
				return usagef(cmd, "-o %s and -o %s: only one can go to standard output", stdout, s)
			}
			stdout = s
		}
		o.Exports = append(o.Exports, *export)
	}
	if cmd.Bool("push") {
		if err := pushImages(cmd, o); err != nil {
			return err
		}
	}
	if err := nameImages(cmd, o); err != nil {
		return err
	}
	return annotateImages(cmd, o)
}

// pushImages pushes the images, and makes one if there is none.
func pushImages(cmd *cli.Command, o *client.SolveOpt) error {
	pushed := false
	for _, x := range o.Exports {
		if x.Type == "image" {
			x.Attrs["push"], pushed = "true", true
		}
	}
	if !pushed {
		o.Exports = append(o.Exports, client.Export{Type: "image", Attrs: map[string]string{"push": "true"}})
	}
	for _, x := range o.Exports {
		if x.Attrs["push"] == "true" && x.Attrs["name"] == "" && len(cmd.StringSlice("tag")) == 0 {
			return usagef(cmd, "--push: the image has no name: give one with -t")
		}
	}
	return nil
}

// nameImages gives the tags to the outputs that have a name.
func nameImages(cmd *cli.Command, o *client.SolveOpt) error {
	tags := cmd.StringSlice("tag")
	if slices.Contains(tags, "") {
		return usagef(cmd, "-t: the name is empty")
	}
	if err := checkTags(cmd); err != nil {
		return err
	}
	for _, x := range o.Exports {
		switch x.Type {
		case "image", "oci", "docker":
			if x.Attrs["name"] == "" && len(tags) > 0 {
				x.Attrs["name"] = strings.Join(tags, ",")
			}
		}
	}
	return nil
}

// parseOutput reads one -o: a directory, "-" for a tar on standard output, or
// "type=...". It returns nil for type=cacheonly, which has no output.
func parseOutput(e *env, cmd *cli.Command, s string) (*client.Export, error) {
	switch {
	case s == "":
		return nil, usagef(cmd, "-o: it is empty: want a directory, - or type=TYPE")
	case s == "-":
		s = "type=tar,dest=-"
	case !strings.Contains(s, "="):
		if err := checkFolder(s); err != nil {
			return nil, usagef(cmd, "-o %s: %v", s, err)
		}
		return &client.Export{Type: "local", Dir: s, Attrs: map[string]string{}}, nil
	}
	attrs, err := attributes(s)
	if err != nil {
		return nil, usagef(cmd, "-o: %v", err)
	}
	if err := knownAttrs(attrs); err != nil {
		return nil, usagef(cmd, "-o %s: %v", s, err)
	}
	x := &client.Export{Type: attrs["type"], Attrs: attrs}
	dest := attrs["dest"]
	delete(attrs, "type")
	delete(attrs, "dest")
	switch x.Type {
	case "":
		return nil, usagef(cmd, "-o %s: want type=image, oci, docker, local or tar", s)
	case "cacheonly":
		return nil, nil
	case "registry":
		x.Type, attrs["push"] = "image", "true"
		fallthrough
	case "image":
		if dest != "" {
			return nil, usagef(cmd, "-o %s: an image goes into the daemon's store: want no dest", s)
		}
	case "local":
		if dest == "" || dest == "-" {
			return nil, usagef(cmd, "-o %s: want the directory dest=DIR", s)
		}
		if err := checkFolder(dest); err != nil {
			return nil, usagef(cmd, "-o %s: %v", s, err)
		}
		x.Dir, x.DeleteOthers = dest, attrs["mode"] == "delete"
		if m := attrs["mode"]; m != "" && m != "copy" && m != "delete" {
			return nil, usagef(cmd, "-o %s: mode %s: want copy or delete", s, m)
		}
	case "oci", "docker", "tar":
		if x.Type != "tar" && attrs["tar"] == "false" {
			if dest == "" || dest == "-" {
				return nil, usagef(cmd, "-o %s: want the directory dest=DIR for a layout", s)
			}
			x.Layout = dest
			break
		}
		if dest != "" && dest != "-" {
			if err := checkPlace(dest); err != nil {
				return nil, fmt.Errorf("-o %s: %w", s, err)
			}
			x.File = dest
			break
		}
		if isTerminal(e.stdout) {
			return nil, usagef(cmd, "-o %s: not to a terminal: want dest=FILE, or a pipe", s)
		}
		x.Writer = e.stdout
	default:
		return nil, usagef(cmd, "-o %s: unknown type %q: want image, registry, oci, docker, local, tar or cacheonly", s, x.Type)
	}
	return x, nil
}

// checkFolder refuses what is there and is no directory.
func checkFolder(name string) error {
	if info, err := os.Stat(name); err == nil && !info.IsDir() {
		return fmt.Errorf("%s is a file: want a directory, or type=tar,dest=%s for an archive", name, name)
	}
	return nil
}

// imageAttrs and filesAttrs are what outputs can be told (BuildKit's
// exporter/containerimage/exptypes).
const (
	imageAttrs = "name push push-by-digest registry.insecure unpack dangling-name-prefix danging-name-empty-only " +
		"name-canonical store oci-mediatypes oci-artifact attestation-inline prefer-nondist-layers source-date-epoch " +
		"compression compression-level force-compression rewrite-timestamp"
	filesAttrs = "platform-split attestation-prefix mode src source-date-epoch"
)

// knownAttrs refuses an attribute that the output's type does not have. The
// daemon takes any, for the sake of other clients; a person misspells them.
func knownAttrs(attrs map[string]string) error {
	known := strings.Fields("type dest " + imageAttrs)
	switch attrs["type"] {
	case "local", "tar":
		known = strings.Fields("type dest " + filesAttrs)
	case "oci", "docker":
		known = append(known, "tar")
	}
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		if !slices.Contains(known, k) && !(strings.HasPrefix(k, "annotation") && slices.Contains(known, "name")) {
			return fmt.Errorf("unknown attribute %q: want one of %s", k, strings.Join(known, ", "))
		}
	}
	return nil
}
