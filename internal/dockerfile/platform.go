package dockerfile

import (
	"strings"

	"github.com/containerd/platforms"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// platformArgs are the arguments about platforms that every file has, and the
// target stage's name, which came with them.
func platformArgs(build, target ocispecs.Platform, stage string, overrides map[string]string) *environment {
	if stage == "" {
		stage = "default"
	}
	args := &environment{}
	for _, kv := range [][2]string{
		{"BUILDPLATFORM", platforms.Format(build)},
		{"BUILDOS", build.OS},
		{"BUILDOSVERSION", build.OSVersion},
		{"BUILDARCH", build.Architecture},
		{"BUILDVARIANT", build.Variant},
		{"TARGETPLATFORM", platforms.FormatAll(target)},
		{"TARGETOS", target.OS},
		{"TARGETOSVERSION", target.OSVersion},
		{"TARGETARCH", target.Architecture},
		{"TARGETVARIANT", target.Variant},
		{"TARGETSTAGE", stage},
	} {
		value := kv[1]
		if v, ok := overrides[kv[0]]; ok {
			value = v
		}
		args.set(kv[0], value)
	}
	return args
}

// crossSuffix is what a step's name says of the target where the step itself
// runs on another platform, such as "->arm64".
func crossSuffix(on ocispecs.Platform, env *environment) string {
	target, ok := targetOf(env)
	if !ok {
		return ""
	}
	if target.OS == "" {
		target.OS = on.OS
	}
	if target.Architecture == "" {
		target.Architecture = on.Architecture
	}
	p := platforms.Normalize(target)
	switch {
	case p.OS != on.OS:
		return "->" + platforms.FormatAll(p)
	case p.Architecture != on.Architecture:
		return strings.TrimSuffix("->"+p.Architecture+"/"+p.Variant, "/")
	}
	return ""
}

// targetOf is the target platform as far as a stage has declared the arguments
// that tell it.
func targetOf(env *environment) (p ocispecs.Platform, ok bool) {
	if v, set := env.Get("TARGETPLATFORM"); set {
		if whole, err := platforms.Parse(v); err == nil {
			return whole, true
		}
	}
	for key, into := range map[string]*string{"TARGETOS": &p.OS, "TARGETARCH": &p.Architecture, "TARGETVARIANT": &p.Variant} {
		if v, set := env.Get(key); set {
			*into, ok = v, true
		}
	}
	return p, ok
}
