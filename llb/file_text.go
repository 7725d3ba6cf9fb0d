package llb

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// fileKeywords are the words that begin an action.
func fileKeywords() []string { return []string{"copy", "mkfile", "mkdir", "rm", "symlink"} }

// usualInput is what the text form takes an action to work on: the first
// action's input, and then the result of the action before.
func usualInput(i, first, inputs int) int {
	if i == 0 {
		return first
	}
	return inputs + i - 1
}

// usualOutput is the output number that the text form takes an action to have.
func usualOutput(i, actions int) int {
	if i == actions-1 {
		return 0
	}
	return None
}

// fileRefs names inputs and results of actions.
type fileRefs struct {
	refs
	inputs int
}

func (r fileRefs) ref(n int) string {
	if n >= r.inputs {
		return "$" + strconv.Itoa(n-r.inputs)
	}
	return r.refs.ref(n)
}

// inputCount returns how many inputs the vertex that is printed has.
func (o *FileOp) inputCount(r refs) int {
	switch r := r.(type) {
	case *naturalRefs:
		return len(r.vertex.Inputs)
	case numberRefs:
		return r.inputs
	}
	return 0
}

func (o *FileOp) print(r refs) form {
	var f form
	if len(o.Actions) == 0 {
		return f
	}
	inputs := o.inputCount(r)
	names := fileRefs{r, inputs}
	first := o.Actions[0].Input
	f.head = []string{names.ref(first)}
	for i := range o.Actions {
		a := &o.Actions[i]
		text := a.text(names, first)
		if a.Input != usualInput(i, first, inputs) {
			text += " on=" + names.ref(a.Input)
		}
		if a.Output != usualOutput(i, len(o.Actions)) {
			text += " out=" + outputText(a.Output)
		}
		f.body = append(f.body, text)
	}
	return f
}

// text writes what the action does; first is the input that owners are looked
// up in unless the text says another.
func (a *FileStep) text(r fileRefs, first int) string {
	var w actionWriter
	from := r.ref(a.Secondary)
	switch do := a.Do.(type) {
	case *DoCopy:
		w.add("copy %s:%s %s", from, word(do.Src), bodyWord(do.Dest))
		w.addCopy(do)
		from = "scratch"
	case *DoMkfile:
		w.add("mkfile %s mode=%#o data=%s", bodyWord(do.Path), do.Mode, strconv.Quote(string(do.Data)))
		w.addTime(do.Timestamp)
	case *DoMkdir:
		w.add("mkdir %s mode=%#o", bodyWord(do.Path), do.Mode)
		w.addFlag(do.Parents, "parents")
		w.addTime(do.Timestamp)
	case *DoRm:
		w.add("rm %s", bodyWord(do.Path))
		w.addFlag(do.AllowNotFound, "allowmissing")
		w.addFlag(do.Wildcard, "wildcard")
	case *DoSymlink:
		w.add("symlink %s %s", bodyWord(do.Old), bodyWord(do.New))
		w.addTime(do.Timestamp)
	}
	if from != "scratch" {
		w.add("from=%s", from)
	}
	if owner := OwnerOf(a.Do); owner != nil {
		w.add("owner=%s:%s", ownerText(owner.User), ownerText(owner.Group))
		w.addLookUp("userin", owner.User, r, first)
		w.addLookUp("groupin", owner.Group, r, first)
	}
	return strings.Join(w, " ")
}

// actionWriter collects the words of an action.
type actionWriter []string

func (w *actionWriter) add(format string, args ...any) { *w = append(*w, fmt.Sprintf(format, args...)) }

func (w *actionWriter) addFlag(set bool, name string) {
	if set {
		w.add("%s", name)
	}
}

func (w *actionWriter) addTime(t int64) {
	if t != KeepTime {
		w.add("time=%d", t)
	}
}

func (w *actionWriter) addLookUp(name string, o *Owner, r fileRefs, first int) {
	if o != nil && o.Name != "" && o.Input != first {
		w.add("%s=%s", name, r.ref(o.Input))
	}
}

func (w *actionWriter) addCopy(c *DoCopy) {
	if c.Mode != -1 {
		w.add("mode=%#o", c.Mode)
	}
	if c.ModeStr != "" {
		w.add("modestr=%s", word(c.ModeStr))
	}
	for _, f := range []struct {
		set  bool
		name string
	}{
		{c.FollowSymlink, "follow"}, {c.DirContents, "contents"}, {c.Unpack, "unpack"},
		{c.CreateDest, "createdest"}, {c.Wildcard, "wildcard"}, {c.AllowEmptyWildcard, "allowempty"},
		{c.ReplaceExistingDest, "replace"},
	} {
		w.addFlag(f.set, f.name)
	}
	for _, l := range []struct {
		name string
		list []string
	}{{"include", c.Include}, {"exclude", c.Exclude}, {"require", c.Required}} {
		for _, s := range l.list {
			w.add("%s=%s", l.name, strconv.Quote(s))
		}
	}
	w.addTime(c.Timestamp)
}

func ownerText(o *Owner) string {
	switch {
	case o == nil:
		return ""
	case o.Name != "":
		return strconv.Quote(o.Name)
	default:
		return strconv.FormatUint(uint64(o.ID), 10)
	}
}

// results is above any input number. While a file operation is read and its
// inputs are not counted yet, the result of action k has the number results+k.
const results = 1 << 30

func parseFile(s *statement) (Op, error) {
	first, found, err := s.takeInput()
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, errors.New("expected what to work on, an input or scratch")
	}
	clauses, err := s.clauses(fileKeywords()...)
	if err != nil {
		return nil, err
	}
	op := &FileOp{Actions: make([]FileStep, len(clauses))}
	for i, c := range clauses {
		if err := op.Actions[i].parse(s, c, i, len(clauses), first); err != nil {
			return nil, fmt.Errorf("%s: %w", c.word, err)
		}
	}
	settle := func(n *int) {
		if *n >= results {
			*n += len(s.inputs.edges) - results
		}
	}
	for i := range op.Actions {
		a := &op.Actions[i]
		settle(&a.Input)
		settle(&a.Secondary)
		if owner := OwnerOf(a.Do); owner != nil {
			for _, o := range []*Owner{owner.User, owner.Group} {
				if o != nil {
					settle(&o.Input)
				}
			}
		}
	}
	return op, nil
}

// source reads the name of an input or of an action's result.
func (s *statement) source(t token) (int, error) {
	if !t.starts('$') {
		return s.input(t)
	}
	n, err := strconv.Atoi(t.text[1:])
	if err != nil || n < 0 || n > 1<<20 {
		return 0, fmt.Errorf("%q is not the result of an action", t.text)
	}
	return results + n, nil
}

func (a *FileStep) parse(s *statement, c clause, i, actions, first int) (err error) {
	arity := map[string]int{"copy": 2, "symlink": 2}[c.word]
	args, opts, err := c.take(max(arity, 1))
	if err != nil {
		return err
	}
	*a = FileStep{Input: usualInput(i, first, results), Secondary: None, Output: usualOutput(i, actions)}
	time, err := opts.int("time", KeepTime)
	if err != nil {
		return err
	}
	var owner **Ownership
	switch c.word {
	case "copy":
		do := &DoCopy{Dest: args[1].text, Timestamp: time}
		a.Do, owner = do, &do.Owner
		edge, src, _ := args[0].cut(':')
		do.Src = src.text
		if a.Secondary, err = s.source(edge); err == nil {
			err = do.parse(opts)
		}
	case "mkfile":
		do := &DoMkfile{Path: args[0].text, Timestamp: time}
		a.Do, owner = do, &do.Owner
		do.Mode, err = parseMode(opts, 0o644)
		if data, ok := opts.get("data"); ok && data.text != "" {
			do.Data = []byte(data.text)
		}
	case "mkdir":
		do := &DoMkdir{Path: args[0].text, Timestamp: time, Parents: opts.flag("parents")}
		a.Do, owner = do, &do.Owner
		do.Mode, err = parseMode(opts, 0o755)
	case "rm":
		a.Do = &DoRm{Path: args[0].text, AllowNotFound: opts.flag("allowmissing"), Wildcard: opts.flag("wildcard")}
	case "symlink":
		do := &DoSymlink{Old: args[0].text, New: args[1].text, Timestamp: time}
		a.Do, owner = do, &do.Owner
	}
	if err != nil {
		return err
	}
	// The order of what follows numbers the inputs as the printer expects.
	if t, ok := opts.get("from"); ok {
		if a.Secondary, err = s.source(t); err != nil {
			return err
		}
	}
	if owner != nil {
		if *owner, err = parseOwnership(s, opts, first); err != nil {
			return err
		}
	}
	if err := a.parseNumbers(s, opts); err != nil {
		return err
	}
	return opts.done()
}

// parseNumbers reads what the action works on and makes.
func (a *FileStep) parseNumbers(s *statement, opts options) (err error) {
	if t, ok := opts.get("on"); ok {
		if a.Input, err = s.source(t); err != nil {
			return err
		}
	}
	if t, ok := opts.get("out"); ok {
		a.Output, err = parseOutput(t)
	}
	return err
}

func parseMode(opts options, def int64) (int, error) {
	n, err := opts.int("mode", def)
	if int64(int32(n)) != n {
		return 0, fmt.Errorf("mode %d is out of range", n)
	}
	return int(n), err
}

func (c *DoCopy) parse(opts options) (err error) {
	if c.Mode, err = parseMode(opts, -1); err != nil {
		return err
	}
	if t, ok := opts.get("modestr"); ok {
		c.ModeStr = t.text
	}
	c.FollowSymlink = opts.flag("follow")
	c.DirContents = opts.flag("contents")
	c.Unpack = opts.flag("unpack")
	c.CreateDest = opts.flag("createdest")
	c.Wildcard = opts.flag("wildcard")
	c.AllowEmptyWildcard = opts.flag("allowempty")
	c.ReplaceExistingDest = opts.flag("replace")
	c.Include = opts.list("include")
	c.Exclude = opts.list("exclude")
	c.Required = opts.list("require")
	return nil
}

func parseOwnership(s *statement, opts options, first int) (*Ownership, error) {
	t, ok := opts.get("owner")
	if !ok {
		return nil, nil
	}
	user, group, _ := t.cut(':')
	o := &Ownership{}
	for _, side := range []struct {
		to   **Owner
		text token
		in   string
	}{{&o.User, user, "userin"}, {&o.Group, group, "groupin"}} {
		if side.text.text == "" {
			continue
		}
		if !side.text.quoted() {
			id, err := strconv.ParseUint(side.text.text, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("owner %q is neither a number nor a quoted name", side.text.text)
			}
			*side.to = &Owner{ID: uint32(id)}
			continue
		}
		*side.to = &Owner{Name: side.text.text, Input: first}
		if in, ok := opts.get(side.in); ok {
			n, err := s.source(in)
			if err != nil {
				return nil, err
			}
			(*side.to).Input = n
		}
	}
	return o, nil
}
