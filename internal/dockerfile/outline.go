package dockerfile

import (
	"bytes"
	"cmp"
	"maps"
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
	line        int
}

// outlineID is a secret or an agent.
type outlineID struct {
	Name     string        `json:"name"`
	Required bool          `json:"required,omitempty"`
	Location *wireLocation `json:"location,omitempty"`
	line     int
}

type outlineReport struct {
	Name        string       `json:"name,omitempty"`
	Description string       `json:"description,omitempty"`
	Args        []outlineArg `json:"args,omitempty"`
	Secrets     []outlineID  `json:"secrets,omitempty"`
	SSH         []outlineID  `json:"ssh,omitempty"`
	Sources     [][]byte     `json:"sources,omitempty"`
}

// outline answers frontend.outline: what the target and the stages that it is
// made of take from outside, in the order of the file.
func (l *lowering) outline(source *syntax.Source) (*frontend.Result, error) {
	report := &outlineReport{Sources: [][]byte{source.Data}}
	if decl := l.target.decl; decl != nil {
		report.Name = strings.ToLower(decl.From.Name.Value)
		report.Description = targetDescription(decl.From)
	}
	o := &outliner{lowering: l, report: report, used: map[string]bool{}, globals: map[string]outlineArg{}}
	for _, arg := range l.in.file.Global {
		for _, a := range arg.Args {
			v, _ := l.args.Get(a.Key.Value)
			o.globals[a.Key.Value] = o.arg(a, &arg.Head, arg.Span, v)
		}
	}
	// Of those of one name, the last of the target's own chain of bases counts, and
	// of secrets and agents the first.
	var chain []*stage
	own := map[*stage]bool{}
	for s := l.target; s != nil; s = s.base {
		chain, own[s] = append(chain, s), true
	}
	args := map[string]outlineArg{}
	for _, s := range slices.Backward(chain) {
		o.stage(s, args)
	}
	others := map[string]outlineArg{}
	for _, s := range l.stages {
		if l.reached[s] && !own[s] {
			o.stage(s, others)
		}
	}
	o.globalsOfGlobals()
	for name, used := range o.used {
		if a, ok := o.globals[name]; ok && used {
			setDefault(others, name, a)
		}
	}
	for name, a := range others {
		setDefault(args, name, a)
	}
	report.Args = slices.Collect(maps.Values(args))
	slices.SortFunc(report.Args, func(a, b outlineArg) int { return cmp.Or(cmp.Compare(a.line, b.line), cmp.Compare(a.Name, b.Name)) })
	for _, list := range [][]outlineID{report.Secrets, report.SSH} {
		slices.SortStableFunc(list, func(a, b outlineID) int { return cmp.Compare(a.line, b.line) })
	}
	text, err := report.text()
	if err != nil {
		return nil, err
	}
	return answer(report, text)
}

func setDefault(m map[string]outlineArg, name string, a outlineArg) {
	if _, ok := m[name]; !ok {
		m[name] = a
	}
}

// outliner gathers what stages take from outside.
type outliner struct {
	*lowering
	report  *outlineReport
	globals map[string]outlineArg // the ARGs above the first FROM
	used    map[string]bool       // those of them that are used
}

func (o *outliner) arg(a syntax.ArgDecl, h *syntax.Head, at syntax.Span, value string) outlineArg {
	lines := o.in.file.Source.LineRanges(at)
	return outlineArg{a.Key.Value, description(h, a.Key.Value), value, locate(lines...), lines[0].Start.Line}
}

// stage adds what a stage takes. Its triggers are at its FROM.
func (o *outliner) stage(s *stage, args map[string]outlineArg) {
	if s.decl == nil {
		return
	}
	o.uses(s.decl.From.Image.Value)
	if p := s.decl.From.Platform; p != nil {
		o.uses(p.Value)
	}
	for _, c := range s.commands {
		at := syntax.HeadOf(c.Instruction).Span
		if c.trigger {
			at = s.decl.From.Span
		}
		switch i := c.Instruction.(type) {
		case *syntax.Arg:
			for _, a := range i.Args {
				o.stageArg(s, a, &i.Head, at, args)
			}
		case *syntax.Run:
			o.mounts(s, i, at)
		}
	}
}

func (o *outliner) stageArg(s *stage, a syntax.ArgDecl, h *syntax.Head, at syntax.Span, args map[string]outlineArg) {
	name := a.Key.Value
	_, given := o.in.opts.buildArgs[name]
	_, inherited := o.args.Get(name)
	if given || a.Default != nil || !inherited {
		args[name] = o.arg(a, h, at, s.argValues[name])
		return
	}
	// It is what a stage below or the file's head says; those of platforms, which
	// nobody declares, are not told.
	if global, ok := o.globals[name]; ok {
		o.used[name] = true
		setDefault(args, name, global)
	}
}

func (o *outliner) mounts(s *stage, run *syntax.Run, at syntax.Span) {
	for _, text := range run.Mounts {
		m, err := o.parseMount(s, &run.Head, text)
		if err != nil {
			continue // lowering has refused it before
		}
		list := &o.report.Secrets
		id := m.secretID()
		switch m.kind {
		case "secret":
		case "ssh":
			list = &o.report.SSH
			if id = m.id; id == "" {
				id = "default"
			}
		default:
			continue
		}
		if !slices.ContainsFunc(*list, func(known outlineID) bool { return known.Name == id }) {
			lines := o.in.file.Source.LineRanges(at)
			*list = append(*list, outlineID{id, m.required, locate(lines...), lines[0].Start.Line})
		}
	}
}

// uses notes the ARGs above the first FROM that a text names.
func (o *outliner) uses(text string) {
	for name := range o.globals {
		if strings.Contains(text, "$"+name) || strings.Contains(text, "${"+name) {
			o.used[name] = true
		}
	}
}

// globalsOfGlobals notes the ARGs that those which are used are made of.
func (o *outliner) globalsOfGlobals() {
	for _, arg := range slices.Backward(o.in.file.Global) {
		for _, a := range slices.Backward(arg.Args) {
			_, given := o.in.opts.buildArgs[a.Key.Value]
			if o.used[a.Key.Value] && a.Default != nil && !given {
				o.uses(a.Default.Value)
			}
		}
	}
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
