package oci

import (
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kiln-build/kiln/internal/executor"
)

// traceMount is where containers find the socket for their spans. The place is
// BuildKit's: images may name it.
const traceMount = "/dev/otel-grpc.sock"

// traceEnvironment tells a process where spans go, in OpenTelemetry's variables,
// but for what it was told before: a build may send them elsewhere, or none.
func traceEnvironment(env []string, parent string) []string {
	out := slices.Clone(env)
	for _, add := range []string{
		"OTEL_TRACES_EXPORTER=otlp", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=unix://" + traceMount, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc",
	} {
		name, _, _ := strings.Cut(add, "=")
		if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			out = append(out, add)
		}
	}
	return append(slices.DeleteFunc(out, func(e string) bool { return strings.HasPrefix(e, "TRACEPARENT=") }), "TRACEPARENT="+parent)
}

// traced has a container send its spans, where there is somebody to take them.
func (e *Executor) traced(s executor.Spec, config *specs.Spec) {
	if s.Trace == "" || e.cfg.TraceSocket == "" {
		return
	}
	if info, err := os.Stat(e.cfg.TraceSocket); err != nil || info.Mode()&os.ModeSocket == 0 {
		return
	}
	if slices.ContainsFunc(config.Mounts, func(m specs.Mount) bool {
		return m.Destination == traceMount || m.Destination == "/dev" && m.Type != "tmpfs"
	}) {
		return // the step has something else there
	}
	config.Process.Env = traceEnvironment(config.Process.Env, s.Trace)
	config.Mounts = append(config.Mounts, specs.Mount{
		Destination: traceMount, Type: "none", Source: e.cfg.TraceSocket, Options: []string{"rbind", "rprivate", "ro"},
	})
}
