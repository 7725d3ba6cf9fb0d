package main

import (
	"fmt"
	"strings"
	"testing"
	"text/template"
	"time"
)

// formatValues are values of the kinds that commands print.
func formatValues() map[string]any {
	used := time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC)
	record := &historyRecord{
		Ref: "r1", FrontendAttrs: map[string]string{"target": "a", "build-arg:X": "<1>"}, NumTotalSteps: 7, Pinned: true,
		CreatedAt: &timestamp{Seconds: 1700000000, Nanos: 5}, Logs: &blobInfo{MediaType: "text/x", Digest: "sha256:1", Size: 3},
		Results:   map[string]*resultInfo{"linux/amd64": {Results: map[int64]*blobInfo{2: {Digest: "d2"}, 1: {Digest: "d1"}}}},
		Exporters: []exporterInfo{{Type: "image"}, {Type: "oci"}},
	}
	return map[string]any{
		"event": &historyEvent{Type: 1, Record: record},
		"usage": []*usageInfo{
			{ID: "one", Size: 5, CreatedAt: used, LastUsedAt: &used, Parents: []string{"p", "q"}, UsageCount: 2},
			{ID: "two", Size: 9, InUse: true, CreatedAt: used},
		},
		"workers": []*workerInfo{{ID: "w", Labels: map[string]string{"b": "2", "a": "1"}, GCPolicy: []pruneInfo{{All: true, KeepDuration: time.Minute}}}},
		"map":     map[string]any{"n": 3, "f": 2.5, "nil": nil, "list": []any{1, "x", nil}, "u": uint8(3), "deep": map[string]any{"k": "v"}},
		"nothing": nil,
	}
}

// TestFormatAsTemplates compares what templates give with what text/template
// makes of them, and what is wrong with them with what it says.
func TestFormatAsTemplates(t *testing.T) {
	for name, list := range map[string][]string{
		"event": {
			`{{.Type}} {{.Record.Ref}} {{.Record.NumTotalSteps}} {{.Record.CreatedAt.AsTime}}`, `{{json .}}`, `{{. | json}}`,
			`{{.Record.CreatedAt.AsTime.Format "2006"}} {{.Record.CreatedAt.AsTime.Unix}}`, `{{.Record.Logs}}`, `{{.Record.CompletedAt}}`, `{{.Record.CompletedAt.AsTime}}`,
			`{{.Record.Nope}}`, `{{.Record.CompletedAt.Seconds}}`, `{{.Record.Ref.X}}`, `{{.Record.Ref 1}}`, `{{.Record.Trace.Digest}}`,
			`{{range $k, $v := .Record.FrontendAttrs}}{{$k}}={{$v}};{{end}}`, `{{index .Record.FrontendAttrs "build-arg:X" | html}}`,
			`{{range $p, $r := .Record.Results}}{{$p}}:{{range $i, $d := $r.Results}}{{$i}}{{$d.Digest}} {{end}}{{end}}`,
			`{{with .Record.Error}}{{.Message}}{{else}}fine{{end}}`, `{{with $x := .Record}}{{$x.Ref}} {{$.Type}}{{end}}`,
			`{{if and .Record.Pinned (gt .Record.NumTotalSteps 5)}}big{{else if .Record.Pinned}}small{{end}}`,
			`{{range .Record.Exporters}}{{if eq .Type "oci"}}{{break}}{{end}}{{.Type}}{{end}}`, `{{(index .Record.Exporters 1).Type}}`,
			`{{range $i, $e := .Record.Exporters}}{{if eq $i 0}}{{continue}}{{end}}{{$e.Type}}{{end}}`, `{{index .Record.Exporters 9}}`,
			`{{define "x"}}<{{.Ref}}>{{end}}{{template "x" .Record}}`, `{{template "y"}}`, `{{block "b" .Record}}{{.Ref}}{{end}}`,
			`{{define "x"}}{{template "x" .}}{{end}}{{template "x" .}}`, `{{/* c */ -}} x`, `{{printf "%s-%05d" .Record.Ref .Record.NumTotalSteps}}`,
			`{{.Record}}`, `{{.}}`, `{{$x := 1}}{{$x = 2}}{{$x}}`, `{{len .Record.Exporters}} {{len .Record.Pinned}}`, `{{slice .Record.Ref 1}}`,
			`{{slice .Record.Ref 0 1}} {{slice .Record.Exporters 1}}`, `{{slice .Record.Ref 5}}`, `{{not .Record.Pinned}}`, `{{print 1 2 "x"}}`,
			`{{eq .Record.NumTotalSteps 7 8}} {{ne .Record.Ref "r1"}} {{lt 1 2}} {{le 2 2}} {{ge 1 2}}`, `{{eq .Record.Ref 1}}`, `{{urlquery "a b&c"}}`,
			`{{range 3}}{{.}}{{end}}`, `{{range .Record.Ref}}{{end}}`, `{{"quoted"}} {{'x'}} {{1.5}} {{0x10}} {{true}}`, `{{nil}}`, `{{.Record.Ref | 1}}`,
			`{{(.Record).Ref}}`, `{{or .Record.Error .Record.Ref}}`, `{{and .Record.Error .Record.Error.Message}}`, `{{or}}`, `{{len}}`,
			`{{.Record.CreatedAt.AsTime.Format}}`, `{{.Record.CreatedAt.AsTime.Format 1}}`, `{{end}}`, `{{`, `{{nosuch .}}`, `{{range}}`, `{{$y}}`,
		},
		"usage": {
			`{{range .}}{{.ID}} {{.RecordType}} {{.Size}} {{end}}`, `{{json .}}`, `{{range .}}{{.CreatedAt}} {{.LastUsedAt}} {{.CreatedAt.Year}}{{end}}`,
			`{{range .}}{{range .Parents}}{{.}},{{else}}none{{end}}{{end}}`, `{{len .}} {{(index . 0).ID}}`,
			`{{range .}}{{if .InUse}}{{.ID}}{{end}}{{end}}`, `{{.ID}}`, `{{range $i, $u := .}}{{if $i}},{{end}}{{$u.ID}}{{end}}`,
			`{{$n := 0}}{{range .}}{{$n = .Size}}{{end}}{{$n}}`, `{{range .}}{{.Size | printf "%08d"}}{{end}}`, `{{range .}}{{json .ID}}{{end}}`,
		},
		"workers": {
			`{{range .}}{{.ID}} {{len .Platforms}} {{.BuildkitVersion.Package}}{{end}}`, `{{range .}}{{range .GCPolicy}}{{.KeepDuration}} {{.KeepDuration.Seconds}}{{end}}{{end}}`,
			`{{range .}}{{.Labels}} {{.Labels.a}} {{.Labels.none}}{{end}}`,
		},
		"map": {
			`{{.n}} {{.f}} {{.nil}} {{.none}} {{.list}}`, `{{range .list}}[{{.}}]{{end}}`, `{{index .deep "k"}} {{.deep.k}} {{.deep.none}}`, `{{.nil.x}}`, `{{.none.x}}`,
			`{{eq .n .u}} {{lt .u 4}} {{eq .f 2.5}} {{eq .nil nil}}`, `{{lt .n .f}}`, `{{index .list 1}} {{index .list 5}}`, `{{range $k, $v := .}}{{$k}} {{end}}`,
			`{{if .nil}}a{{else}}b{{end}}`, `{{with .deep}}{{.k}}{{$.n}}{{end}}`, `{{len .list}}`, `{{index . "deep" "k"}}`, `{{index .n 1}}`,
		},
		"nothing": {`{{.}}`, `{{.x}}`, `{{json .}}`, `text`, ``, `{{range .}}x{{else}}y{{end}}`, `{{define "a"}}{{end}}`},
	} {
		value := formatValues()[name]
		for _, text := range list {
			var want, got strings.Builder
			theirs, wantErr := template.New("").Funcs(template.FuncMap{"json": jsonText}).Parse(text)
			if wantErr == nil {
				wantErr = theirs.Execute(&want, value)
			}
			ours, gotErr := parseFormat(text)
			if gotErr == nil {
				gotErr = ours.execute(&got, value)
			}
			if got.String() != want.String() || fmt.Sprint(gotErr) != fmt.Sprint(wantErr) {
				t.Errorf("%s, %s:\ngot  %q, %v\nwant %q, %v", name, text, got.String(), gotErr, want.String(), wantErr)
			}
		}
	}
}
