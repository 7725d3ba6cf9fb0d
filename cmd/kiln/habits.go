package main

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

// This file has what people know from "docker build": its way of writing short
// flags, its flags that ask for what Kiln does anyhow, and for those that make
// no sense here, what to use instead.

// habitFlags are flags of docker build that scripts give. They are not in the
// help: the first do nothing, for Kiln works that way in any case, and the
// others are --resource under another name.
func habitFlags() []cli.Flag {
	var out []cli.Flag
	for _, name := range []string{"rm", "force-rm", "compress", "disable-content-trust"} {
		out = append(out, &cli.BoolFlag{Name: name, Hidden: true})
	}
	for _, name := range resourceHabits() {
		out = append(out, &cli.StringFlag{Name: name, Hidden: true})
	}
	return out
}

// resourceHabits are the limits that docker build has a flag each for, besides
// --memory.
func resourceHabits() []string {
	return []string{"memory-swap", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems"}
}

// insteadOf says what to use in place of a flag of docker build or buildx that
// kiln build does not have; "" if it is none of theirs.
func insteadOf(flag string) string {
	switch flag {
	case "builder":
		return "a daemon is chosen with kiln --host ADDRESS build, or KILN_HOST"
	case "load":
		return "the image is in Kiln's store (kiln images); Docker takes it by: kiln build -t NAME -o type=docker . | docker load"
	case "squash":
		return "for one layer, end the Dockerfile with a stage FROM scratch that has COPY --from=STAGE / /"
	case "isolation":
		return "steps always run in Linux containers; leave it out"
	case "security-opt":
		return "for steps without confinement, write RUN --security=insecure and give --allow security.insecure"
	case "print":
		return "it is called --call"
	case "policy":
		return "rules about sources are given with --source-policy-file FILE"
	case "debug", "D":
		return "kiln build --progress plain shows all output, kiln daemon --debug logs more"
	case "invoke", "on":
		return "the files of a stage can be looked at with --target STAGE -o DIR"
	}
	return ""
}

// splitShorthands writes the short flags of "kiln build" apart, as docker's
// command line allows them together: -qt NAME, -tNAME, -f-. What is no group of
// short flags stays as it is, long names behind one dash among them.
func splitShorthands(args []string) []string {
	start := buildWord(args)
	if start < 0 {
		return args
	}
	takesValue := map[string]bool{}
	for _, f := range buildFlags() {
		doc, ok := f.(cli.DocGenerationFlag)
		for _, name := range f.Names() {
			takesValue[name] = ok && doc.TakesValue()
		}
	}
	out := slices.Clone(args[:start+1])
	rest := args[start+1:]
	for i := 0; i < len(rest); i++ {
		arg := rest[i]
		if arg == "--" {
			return append(out, rest[i:]...)
		}
		name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		value, known := takesValue[name]
		switch {
		case !strings.HasPrefix(arg, "-") || arg == "-":
			out = append(out, arg)
		case known || strings.HasPrefix(arg, "--"):
			out = append(out, arg)
			if value && !hasValue && i+1 < len(rest) { // which may look like a flag
				i++
				out = append(out, rest[i])
			}
		default:
			out = append(out, splitGroup(arg, takesValue)...)
		}
	}
	return out
}

// splitGroup splits one group of short flags, of which the last may have a value.
func splitGroup(arg string, takesValue map[string]bool) []string {
	var out []string
	for i := 1; i < len(arg); i++ {
		value, known := takesValue[arg[i:i+1]]
		switch {
		case !known:
			return []string{arg}
		case value && i+1 == len(arg): // it is the next argument
			return append(out, "-"+arg[i:])
		case value:
			return append(out, "-"+arg[i:i+1]+"="+strings.TrimPrefix(arg[i+1:], "="))
		}
		out = append(out, "-"+arg[i:i+1])
	}
	return out
}

// buildWord is where the command "build" stands among the arguments, or -1.
func buildWord(args []string) int {
	for i := 1; i < len(args); i++ {
		switch {
		case args[i] == "build":
			return i
		case args[i] == "--host" || args[i] == "--tlsdir":
			i++
		case !strings.HasPrefix(args[i], "-"):
			return -1
		}
	}
	return -1
}

// checkTags refuses names that no image can have before anything is built.
func checkTags(cmd *cli.Command) error {
	for _, tag := range cmd.StringSlice("tag") {
		ref, err := reference.ParseNormalizedNamed(tag)
		if err != nil {
			return usagef(cmd, "-t %q: want [HOST/]NAME[:TAG], such as example.com/team/app:1: %v", tag, err)
		}
		if _, ok := ref.(reference.Digested); ok {
			return usagef(cmd, "-t %q: a digest is known only after the build: leave it out", tag)
		}
	}
	return nil
}

// hostAddress is the address of an --add-host, which may stand in brackets.
func hostAddress(cmd *cli.Command, flag, address string) (string, error) {
	if address == "host-gateway" {
		return "", usagef(cmd, "--add-host %s: host-gateway is known to Docker's own daemon only: give the address, or --network host and localhost", flag)
	}
	address = strings.TrimSuffix(strings.TrimPrefix(address, "["), "]")
	if _, err := netip.ParseAddr(address); err != nil {
		return "", usagef(cmd, "--add-host %s: %q is no IP address: want HOST=IP", flag, address)
	}
	return address, nil
}

// annotateImages gives the annotations of --annotation to all images:
// [TYPE[PLATFORM],...:]KEY=VALUE, where TYPE says which of an image's parts.
func annotateImages(cmd *cli.Command, o *client.SolveOpt) error {
	for _, s := range cmd.StringSlice("annotation") {
		attrs, err := annotationAttrs(s)
		if err != nil {
			return usagef(cmd, "--annotation %q: %v", s, err)
		}
		taken := false
		for _, x := range o.Exports {
			if x.Type != "image" && x.Type != "oci" && x.Type != "docker" {
				continue
			}
			taken = true
			for _, a := range attrs {
				x.Attrs[a[0]] = a[1]
			}
		}
		if !taken {
			return usagef(cmd, "--annotation %q: no output is an image that it could be on", s)
		}
	}
	return nil
}

// annotationAttrs is what one --annotation is as attributes of an image.
func annotationAttrs(s string) ([][2]string, error) {
	left, value, ok := strings.Cut(s, "=")
	types, key, typed := strings.Cut(left, ":")
	if !typed {
		types, key = "manifest", left
	}
	if !ok || key == "" {
		return nil, errors.New("want [TYPE:]KEY=VALUE")
	}
	var out [][2]string
	for t := range strings.SplitSeq(types, ",") {
		kind, platform, bracket := strings.Cut(t, "[")
		if !slices.Contains([]string{"manifest", "index", "manifest-descriptor", "index-descriptor"}, kind) ||
			bracket && !strings.HasSuffix(platform, "]") {
			return nil, fmt.Errorf("unknown type %q: want manifest, index, manifest-descriptor or index-descriptor, maybe with [PLATFORM]", t)
		}
		out = append(out, [2]string{"annotation-" + t + "." + key, value})
	}
	return out, nil
}
