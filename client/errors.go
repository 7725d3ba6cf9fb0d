package client

import (
	"encoding/json"
	"path"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/progress"
)

// Source is a stretch of a file that a person wrote.
type Source = progress.Source

// Error is an error that a daemon answered with (BuildKit's solver/errdefs).
type Error struct {
	Code    codes.Code
	Message string
	// Vertex is the digest of the step that failed, or "".
	Vertex string
	// Sources are the places that the error is about, the innermost first.
	Sources []Source
	// ExitCode is that of a process that failed, or 0.
	ExitCode int
	// Denials are the reasons of a policy of the client's for a source that it
	// did not allow.
	Denials []string
	// OpInputs and OpMounts are results of the step that failed, by which a client
	// that drives the build can make a container to look into it.
	OpInputs, OpMounts []string

	status *status.Status // as it came, with all details
}

// Error is what the daemon said.
func (e *Error) Error() string { return e.Message }

// GRPCStatus is the error as gRPC knows it, with the details that it came with.
func (e *Error) GRPCStatus() *status.Status {
	if e.status != nil {
		return e.status
	}
	return status.New(e.Code, e.Message)
}

// decodeError reads the details of an error. One that is not understood is left
// out: the message says it too.
func decodeError(st *status.Status) error {
	e := &Error{Code: st.Code(), Message: st.Message(), status: st}
	if e.Message == "" {
		e.Message = "the daemon answered with the error " + e.Code.String()
	}
	for _, d := range st.Proto().GetDetails() {
		name, isJSON := strings.CutSuffix(path.Base(d.GetTypeUrl()), "+json")
		if !isJSON {
			continue
		}
		switch name {
		case "errdefs.Vertex":
			var v struct{ Digest string }
			if json.Unmarshal(d.GetValue(), &v) == nil {
				e.Vertex = v.Digest
			}
		case "gatewayapi.ExitMessage":
			var v struct{ Code uint32 }
			if json.Unmarshal(d.GetValue(), &v) == nil {
				e.ExitCode = int(v.Code)
			}
		case "errdefs.Source":
			var v wireSource
			if json.Unmarshal(d.GetValue(), &v) == nil {
				e.Sources = append(e.Sources, v.source())
			}
		case "errdefs.Solve":
			var v struct {
				InputIDs []string `json:"inputIDs"`
				MountIDs []string `json:"mountIDs"`
			}
			if json.Unmarshal(d.GetValue(), &v) == nil {
				e.OpInputs, e.OpMounts = v.InputIDs, v.MountIDs
			}
		case "policysession.DecisionResponse", "moby.buildkit.v1.sourcepolicy.policysession.DecisionResponse":
			var v struct{ DenyMessages []struct{ Message string } }
			if json.Unmarshal(d.GetValue(), &v) == nil {
				for _, m := range v.DenyMessages {
					e.Denials = append(e.Denials, m.Message)
				}
			}
		}
	}
	slices.Reverse(e.Sources) // each detail wraps those before it
	return e
}

// wireSource is the JSON of a source detail.
type wireSource struct {
	Info struct {
		Filename, Language string
		Data               []byte
	}
	Ranges []struct{ Start, End struct{ Line, Character int } }
}

func (w wireSource) source() Source {
	s := Source{Filename: w.Info.Filename, Language: w.Info.Language, Data: w.Info.Data}
	for _, r := range w.Ranges {
		s.Ranges = append(s.Ranges, progress.Range{
			StartLine: r.Start.Line, StartChar: r.Start.Character,
			EndLine: r.End.Line, EndChar: r.End.Character,
		})
	}
	return s
}
