package dockerfile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
	"github.com/kiln-build/kiln/llb"
)

// Subrequests ask about a Dockerfile instead of building it: the option
// "requestid" has one of these names. Their answers are in the result's metadata,
// as result.json, result.txt and version (BuildKit's frontend/subrequests).
const (
	requestDescribe = "frontend.subrequests.describe"
	requestOutline  = "frontend.outline"
	requestTargets  = "frontend.targets"
	requestLint     = "frontend.lint"
	requestConvert  = "frontend.convertllb"

	requestVersion = "1.0.0" // of each of them
)

func isRequest(id string) bool {
	return slices.Contains([]string{requestDescribe, requestOutline, requestTargets, requestLint, requestConvert}, id)
}

// wirePosition, wireRange and wireLocation are places in the JSON of answers.
type wirePosition struct {
	Line      int `json:"line,omitempty"`
	Character int `json:"character,omitempty"`
}

type wireRange struct {
	Start wirePosition `json:"start"`
	End   wirePosition `json:"end"`
}

type wireLocation struct {
	SourceIndex int         `json:"sourceIndex,omitempty"`
	Ranges      []wireRange `json:"ranges,omitempty"`
}

func locate(ranges ...llb.Range) *wireLocation {
	out := &wireLocation{}
	for _, r := range ranges {
		out.Ranges = append(out.Ranges, wireRange{
			wirePosition{r.Start.Line, r.Start.Character}, wirePosition{r.End.Line, r.End.Character},
		})
	}
	return out
}

// answer makes a result of what a subrequest found out.
func answer(v any, text string) (*frontend.Result, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write answer: %w", err)
	}
	return &frontend.Result{Meta: map[string][]byte{
		"result.json": data, "result.txt": []byte(text), "version": []byte(requestVersion),
	}}, nil
}

// serve answers a subrequest about a file.
func (d *driver) serve(ctx context.Context, file *syntax.File) (*frontend.Result, error) {
	targets := d.targets(file)
	for _, in := range targets {
		in.all = d.opts.request == requestLint && d.opts.target == ""
	}
	if d.opts.request == requestTargets {
		return listTargets(file)
	}
	lowered, err := d.lowerAll(ctx, targets[:1])
	switch {
	case d.opts.request == requestLint:
		return d.lintResult(lowered, err)
	case err != nil:
		return nil, sourceErrors(err)
	}
	if d.opts.request == requestConvert {
		return convertResult(lowered[0].graph)
	}
	return lowered[0].plan.outline(d.source)
}

// convertVersion is the version of frontend.convertllb.
const convertVersion = "0.1.0"

// convertResult answers frontend.convertllb: the graph itself, as JSON.
func convertResult(g *llb.Graph) (*frontend.Result, error) {
	data, err := g.JSON()
	if err != nil {
		return nil, err
	}
	return &frontend.Result{Meta: map[string][]byte{"result.json": data, "version": []byte(convertVersion)}}, nil
}

// column writes a row of a table.
func column(w *tabwriter.Writer, cells ...string) {
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

// describeRequests lists the subrequests.
func describeRequests() (*frontend.Result, error) {
	all := []frontend.Subrequest{
		{Name: requestOutline, Description: "Tell what the target takes: arguments, secrets and agents", Opts: []frontend.SubrequestField{{Name: "target", Description: "The stage to be built"}}},
		{Name: requestTargets, Description: "List the stages that can be built"},
		{Name: requestLint, Description: "Check the Dockerfile without building it"},
		{Name: requestConvert, Description: "Show the graph that the Dockerfile becomes, as JSON", Version: convertVersion},
		{Name: requestDescribe, Description: "List what can be asked"},
	}
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 1, ' ', 0)
	column(w, "NAME", "VERSION", "DESCRIPTION")
	for i := range all {
		r := &all[i]
		r.Type, r.Metadata = "rpc", []frontend.SubrequestField{{Name: "result.json"}}
		if r.Version == "" {
			r.Version = requestVersion
			r.Metadata = append(r.Metadata, frontend.SubrequestField{Name: "result.txt"})
		}
		if r.Name == requestLint {
			r.Metadata = append(r.Metadata, frontend.SubrequestField{Name: "result.statuscode"})
		}
		column(w, strings.TrimPrefix(r.Name, "frontend."), r.Version, r.Description)
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	return answer(all, text.String())
}

// listTargets answers frontend.targets.
func listTargets(file *syntax.File) (*frontend.Result, error) {
	type target struct {
		Name        string        `json:"name,omitempty"`
		Default     bool          `json:"default,omitempty"`
		Description string        `json:"description,omitempty"`
		Base        string        `json:"base,omitempty"`
		Platform    string        `json:"platform,omitempty"`
		Location    *wireLocation `json:"location,omitempty"`
	}
	var list struct {
		Targets []target `json:"targets"`
		Sources [][]byte `json:"sources"`
	}
	list.Sources = [][]byte{file.Source.Data}
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 1, ' ', 0)
	column(w, "TARGET", "DESCRIPTION")
	for i, st := range file.Stages {
		from := st.From
		t := target{
			Name: strings.ToLower(from.Name.Value), Default: i == len(file.Stages)-1, Base: from.Image.Value,
			Description: targetDescription(from), Location: locate(file.Source.LineRanges(from.Span)...),
		}
		if from.Platform != nil {
			t.Platform = from.Platform.Value
		}
		list.Targets = append(list.Targets, t)
		name := t.Name
		switch {
		case t.Default && name == "":
			name = "(default)"
		case t.Default:
			name += " (default)"
		}
		column(w, name, t.Description)
	}
	if err := w.Flush(); err != nil {
		return nil, err
	}
	return answer(list, text.String())
}

// targetDescription is what a comment says of a stage, whose name is in lower case.
func targetDescription(from *syntax.From) string {
	if text := description(&from.Head, strings.ToLower(from.Name.Value)); text != "" {
		return text
	}
	return description(&from.Head, from.Name.Value)
}

// description is what a comment right above an instruction says of a name:
// "# NAME description".
func description(h *syntax.Head, name string) string {
	for _, c := range h.Comments {
		if text, ok := strings.CutPrefix(strings.TrimSpace(c.Text), name+" "); ok && name != "" {
			return strings.TrimSpace(text)
		}
	}
	return ""
}
