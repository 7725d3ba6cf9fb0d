package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"text/tabwriter"

	"github.com/kiln-build/kiln/frontend"
)

// Subrequests ask about a build file instead of building it: the option
// "requestid" has one of these names (BuildKit's frontend/subrequests).
const (
	optRequest      = "requestid"
	requestDescribe = "frontend.subrequests.describe"
	requestTargets  = "frontend.targets"
	requestVersion  = "1.0.0" // of each of them
)

// Target is something that a build file can make, for "kiln build --call targets".
type Target struct {
	Name        string // for --target
	Default     bool   // made without a --target
	Description string // in a few words; "" if there are none
	Base        string // the image it starts from; "" if there is none
	Line        int    // where it begins, from 1
}

// Answering makes a function a frontend that also answers what is asked about a
// file: which questions there are, and, unless targets is nil, what can be built.
// Programs with its image need the capability moby.buildkit.frontend.subrequests
// in their label. Anything else that is asked is a [frontend.UnsupportedError].
func Answering(build Func, targets func(context.Context, *Build) ([]Target, error)) frontend.Frontend {
	return &answering{build, targets}
}

type answering struct {
	build   Func
	targets func(context.Context, *Build) ([]Target, error)
}

// Build builds, or answers.
func (a *answering) Build(ctx context.Context, req frontend.Request, gw frontend.Gateway) (*frontend.Result, error) {
	switch id := req.Opts[optRequest]; {
	case id == requestDescribe:
		return a.describe()
	case id == requestTargets && a.targets != nil:
		req.Opts = maps.Clone(req.Opts)
		delete(req.Opts, optRequest)
		b, err := Open(ctx, req, gw)
		if err != nil {
			return nil, err
		}
		list, err := a.targets(ctx, b)
		if err != nil {
			return nil, err
		}
		return listTargets(b.File, list)
	}
	return a.build(ctx, req, gw)
}

// describe lists what can be asked.
func (a *answering) describe() (*frontend.Result, error) {
	all := []frontend.Subrequest{{Name: requestDescribe, Description: "List what can be asked"}}
	if a.targets != nil {
		all = append([]frontend.Subrequest{{Name: requestTargets, Description: "List what can be built"}}, all...)
	}
	rows := [][]string{{"NAME", "VERSION", "DESCRIPTION"}}
	for i := range all {
		r := &all[i]
		r.Version, r.Type, r.Metadata = requestVersion, "rpc", []frontend.SubrequestField{{Name: "result.json"}, {Name: "result.txt"}}
		rows = append(rows, []string{strings.TrimPrefix(r.Name, "frontend."), r.Version, r.Description})
	}
	return reply(all, rows)
}

// listTargets answers frontend.targets.
func listTargets(f *File, targets []Target) (*frontend.Result, error) {
	type position struct {
		Line int `json:"line"`
	}
	type lines struct {
		Start position `json:"start"`
		End   position `json:"end"`
	}
	type location struct {
		Ranges []lines `json:"ranges"`
	}
	type target struct {
		Name        string    `json:"name,omitempty"`
		Default     bool      `json:"default,omitempty"`
		Description string    `json:"description,omitempty"`
		Base        string    `json:"base,omitempty"`
		Location    *location `json:"location,omitempty"`
	}
	list := struct {
		Targets []target `json:"targets"`
		Sources [][]byte `json:"sources"`
	}{[]target{}, [][]byte{f.Data}}
	rows := [][]string{{"TARGET", "DESCRIPTION"}}
	for _, t := range targets {
		told := target{Name: t.Name, Default: t.Default, Description: t.Description, Base: t.Base}
		if t.Line > 0 {
			told.Location = &location{[]lines{{position{t.Line}, position{t.Line}}}}
		}
		list.Targets = append(list.Targets, told)
		name := t.Name
		if t.Default {
			name = strings.TrimSpace(name + " (default)")
		}
		rows = append(rows, []string{name, t.Description})
	}
	return reply(list, rows)
}

// reply is an answer as JSON, and as a table for people.
func reply(v any, rows [][]string) (*frontend.Result, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write answer: %w", err)
	}
	var text bytes.Buffer
	w := tabwriter.NewWriter(&text, 0, 0, 1, ' ', 0)
	for _, cells := range rows {
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	if err := w.Flush(); err != nil {
		return nil, fmt.Errorf("write answer: %w", err)
	}
	return &frontend.Result{Meta: map[string][]byte{
		"result.json": data, "result.txt": text.Bytes(), "version": []byte(requestVersion),
	}}, nil
}
