package dockerfile

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/kiln-build/kiln/frontend"
	"github.com/kiln-build/kiln/internal/dockerfile/syntax"
)

type outlineArg struct {
	Name        string        `json:"name"`
	Description string        `json:"description,omitempty"`
	Value       string        `json:"value,omitempty"`
	Location    *wireLocation `json:"location,omitempty"`
}

// outlineID is a secret or an agent.
type outlineID struct {
	Name     string        `json:"name"`
	Required bool          `json:"required,omitempty"`
	Location *wireLocation `json:"location,omitempty"`
}

type outlineReport struct {
	Name        string       `json:"name,omitempty"`
	Description string       `json:"description,omitempty"`
	Args        []outlineArg `json:"args,omitempty"`
	Secrets     []outlineID  `json:"secrets,omitempty"`
	SSH         []outlineID  `json:"ssh,omitempty"`
	Sources     [][]byte     `json:"sources,omitempty"`
}

// outline answers frontend.outline: what the target and the stages below it
// take from outside, in the order of the file.
func (l *lowering) outline(source *syntax.Source) (*frontend.Result, error) {
	report := &outlineReport{Sources: [][]byte{source.Data}}
	if decl := l.target.decl; decl != nil {
		report.Name = decl.From.Name.Value
		report.Description = description(&decl.From.Head, report.Name)
	}
	used := l.usedGlobals()
	for _, arg := range l.in.file.Global {
		l.outlineArgs(report, arg, func(name string) (string, bool) {
			v, _ := l.args.Get(name)
			return v, used[name]
		})
	}
	for _, s := range l.stages {
		if !l.reached[s] || s.decl == nil {
			continue
		}
		for _, i := range s.decl.Instructions {
			switch i := i.(type) {
			case *syntax.Arg:
				l.outlineArgs(report, i, func(name string) (string, bool) { return s.argValues[name], true })
			case *syntax.Run:
				l.outlineMounts(report, s, i)
			}
		}
	}
	text, err := report.text()
	if err != nil {
		return nil, err
	}
	return answer(report, text)
}

func (l *lowering) outlineArgs(report *outlineReport, arg *syntax.Arg, value func(string) (string, bool)) {
	for _, a := range arg.Args {
		name := a.Key.Value
		v, wanted := value(name)
		if !wanted {
			continue
		}
		// Of those of one name, the last counts.
		report.Args = slices.DeleteFunc(report.Args, func(o outlineArg) bool { return o.Name == name })
		report.Args = append(report.Args, outlineArg{
			name, description(&arg.Head, name), v, locate(l.in.file.Source.LineRange(arg.Line)),
		})
	}
}

func (l *lowering) outlineMounts(report *outlineReport, s *stage, run *syntax.Run) {
	for _, text := range run.Mounts {
		m, err := l.parseMount(s, &run.Head, text)
		if err != nil {
			continue // lowering has refused it before
		}
		list := &report.Secrets
		id := m.secretID()
		switch m.kind {
		case "secret":
		case "ssh":
			list = &report.SSH
			if id = m.id; id == "" {
				id = "default"
			}
		default:
			continue
		}
		at := slices.IndexFunc(*list, func(o outlineID) bool { return o.Name == id })
		if at < 0 {
			*list = append(*list, outlineID{id, m.required, locate(l.in.file.Source.LineRange(run.Line))})
		} else {
			(*list)[at].Required = (*list)[at].Required || m.required
		}
	}
}

// usedGlobals are the ARGs above the first FROM that a reached stage's base
// is made of, or takes over, and those that these are made of.
func (l *lowering) usedGlobals() map[string]bool {
	used := map[string]bool{}
	uses := func(text string) {
		for name := range l.globals {
			if strings.Contains(text, "$"+name) || strings.Contains(text, "${"+name) {
				used[name] = true
			}
		}
	}
	for _, s := range l.stages {
		if !l.reached[s] || s.decl == nil {
			continue
		}
		uses(s.decl.From.Image.Value)
		if p := s.decl.From.Platform; p != nil {
			uses(p.Value)
		}
		for _, i := range s.decl.Instructions {
			if arg, ok := i.(*syntax.Arg); ok {
				for _, a := range arg.Args {
					used[a.Key.Value] = l.globals[a.Key.Value]
				}
			}
		}
	}
	for _, arg := range slices.Backward(l.in.file.Global) {
		for _, a := range slices.Backward(arg.Args) {
			if used[a.Key.Value] && a.Default != nil {
				uses(a.Default.Value)
			}
		}
	}
	return used
}

func (r *outlineReport) text() (string, error) {
	var out bytes.Buffer
	table := func(rows ...[]string) error {
		w := tabwriter.NewWriter(&out, 0, 0, 3, ' ', 0)
		for _, row := range rows {
			column(w, row...)
		}
		column(w)
		return w.Flush()
	}
	if r.Name != "" || r.Description != "" {
		rows := [][]string{{"TARGET:", r.Name}}
		if r.Description != "" {
			rows = append(rows, []string{"DESCRIPTION:", r.Description})
		}
		if err := table(rows...); err != nil {
			return "", err
		}
	}
	args := [][]string{{"BUILD ARG", "VALUE", "DESCRIPTION"}}
	for _, a := range r.Args {
		args = append(args, []string{a.Name, a.Value, a.Description})
	}
	secrets := [][]string{{"SECRET", "REQUIRED"}}
	for _, s := range r.Secrets {
		secrets = append(secrets, []string{s.Name, strconv.FormatBool(s.Required)})
	}
	agents := [][]string{{"SSH", "REQUIRED"}}
	for _, s := range r.SSH {
		agents = append(agents, []string{s.Name, strconv.FormatBool(s.Required)})
	}
	for _, rows := range [][][]string{args, secrets, agents} {
		if len(rows) > 1 {
			if err := table(rows...); err != nil {
				return "", err
			}
		}
	}
	return out.String(), nil
}
