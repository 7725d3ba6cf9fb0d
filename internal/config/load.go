package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Warning is something of a file that the user should know of, and that the
// daemon can do without.
type Warning struct {
	Key  string // dotted, as it is in the file
	Text string // a whole sentence, with the place
}

// Load reads a file. One that is not there is an empty one, if it may be missing.
func Load(file string, mayBeMissing bool) (*Config, []Warning, error) {
	f, err := os.Open(file)
	if mayBeMissing && errors.Is(err, fs.ErrNotExist) {
		return &Config{}, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration %s: %w", file, err)
	}
	return Parse(file, text)
}

// Parse reads the text of a file; name is for messages.
func Parse(name string, text []byte) (*Config, []Warning, error) {
	if len(text) > maxFile {
		return nil, nil, fmt.Errorf("%s: the file is larger than %d bytes: is it a configuration?", name, maxFile)
	}
	src := source{name: name}
	var c Config
	d := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	err := d.Decode(&c)
	var unknown *toml.StrictMissingError
	var bad *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		// all that is known has been decoded
	case errors.As(err, &bad):
		return nil, nil, src.decodeError(bad)
	case err != nil:
		return nil, nil, fmt.Errorf("%s: %s", name, plainMessage(err.Error()))
	}
	src.lines = keyLines(text)
	if err := c.check(src); err != nil {
		return nil, nil, err
	}
	var warnings []Warning
	if unknown != nil {
		for _, e := range unknown.Errors {
			line, _ := e.Position()
			warnings = append(warnings, unknownKey(name, line, e.Key()))
		}
	}
	return &c, append(warnings, c.ignored(src)...), nil
}

// source says where a key of a file is.
type source struct {
	name  string
	lines map[string]int // by key, its parts joined by NUL
}

// at is "FILE:LINE: KEY" of a key, which may be below one that has a line.
func (s source) at(key ...string) string {
	for n := len(key); n > 0; n-- {
		if line, ok := s.lines[strings.Join(key[:n], "\x00")]; ok {
			return fmt.Sprintf("%s:%d: %s", s.name, line, dotted(key))
		}
	}
	return fmt.Sprintf("%s: %s", s.name, dotted(key))
}

// has reports whether the file sets a key or something below it.
func (s source) has(key ...string) bool {
	k := strings.Join(key, "\x00")
	for have := range s.lines {
		if have == k || strings.HasPrefix(have, k+"\x00") {
			return true
		}
	}
	return false
}

func (s source) errorf(key []string, format string, args ...any) error {
	return fmt.Errorf("%s: %s", s.at(key...), fmt.Sprintf(format, args...))
}

// decodeError puts the place before what the decoder says.
func (s source) decodeError(e *toml.DecodeError) error {
	line, column := e.Position()
	text := plainMessage(e.Error())
	if key := e.Key(); len(key) > 0 {
		return fmt.Errorf("%s:%d: %s: %s", s.name, line, dotted(key), text)
	}
	return fmt.Errorf("%s:%d:%d: %s", s.name, line, column, text)
}

// plainMessage takes Go's own words out of a decoder's message.
func plainMessage(text string) string {
	text = strings.TrimPrefix(text, "toml: ")
	text = strings.TrimPrefix(text, "error calling UnmarshalText: ")
	found, want, ok := strings.Cut(text, " into struct field ")
	if !ok {
		return text
	}
	found = strings.TrimPrefix(found, "cannot decode TOML ")
	if i := strings.LastIndex(want, " of type "); i >= 0 {
		want = want[i+len(" of type "):]
	}
	return fmt.Sprintf("this is %s %s, expected %s", article(found), found, wanted(want))
}

// wanted says what a Go type is in a file.
func wanted(goType string) string {
	switch goType {
	case "bool":
		return "true or false"
	case "string":
		return "text in quotes"
	case "int", "int64":
		return "a whole number"
	}
	switch {
	case strings.HasPrefix(goType, "[]"):
		return "a list"
	case strings.HasPrefix(goType, "map["):
		return "a table"
	}
	return "something else, see the reference of buildkitd.toml"
}

func article(noun string) string {
	if noun != "" && strings.ContainsRune("aeiou", rune(noun[0])) {
		return "an"
	}
	return "a"
}

// dotted writes a key as a file would.
func dotted(key []string) string {
	parts := make([]string, len(key))
	for i, k := range key {
		parts[i] = k
		if k == "" || strings.ContainsFunc(k, func(r rune) bool {
			return r != '-' && r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
		}) {
			parts[i] = fmt.Sprintf("%q", k)
		}
	}
	return strings.Join(parts, ".")
}

// keyLines finds the first line of each key of a text that has been decoded.
func keyLines(text []byte) map[string]int {
	lines := map[string]int{}
	note := func(key []string, at unstable.Range) {
		k := strings.Join(key, "\x00")
		if _, ok := lines[k]; !ok {
			lines[k] = 1 + bytes.Count(text[:min(int(at.Offset), len(text))], []byte("\n"))
		}
	}
	var p unstable.Parser
	p.Reset(text)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		key, at := keyOf(e)
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = key
			note(table, at)
		case unstable.KeyValue:
			note(append(slices.Clone(table), key...), at)
		default: // comments
		}
	}
	return lines
}

func keyOf(e *unstable.Node) (key []string, at unstable.Range) {
	it := e.Key()
	for it.Next() {
		if len(key) == 0 {
			at = it.Node().Raw
		}
		key = append(key, string(it.Node().Data))
	}
	return key, at
}

// unknownKey warns of a key that means nothing.
func unknownKey(name string, line int, key []string) Warning {
	w := Warning{Key: dotted(key)}
	w.Text = fmt.Sprintf("%s:%d: unknown key %s has no effect", name, line, w.Key)
	if s := nearestKey(key); s != "" {
		w.Text += ". Did you mean " + s + "?"
	}
	return w
}

// nearestKey finds what an unknown key most likely stands for, or "".
func nearestKey(key []string) string {
	t := reflect.TypeFor[Config]()
	for i, part := range key {
		if t.Kind() == reflect.Map { // its keys are the user's own
			t = t.Elem()
			continue
		}
		names := fieldNames(t)
		next, ok := names[strings.ToLower(part)]
		if ok {
			t = next
			continue
		}
		best, bestDistance := "", len(part)/3+1
		for have := range names {
			if d := distance(strings.ToLower(part), have); d <= bestDistance && (d < bestDistance || best == "" || have < best) {
				best, bestDistance = have, d
			}
		}
		if best == "" {
			return ""
		}
		return dotted(append(slices.Clone(key[:i]), realName(t, best)))
	}
	return ""
}

// fieldNames are the keys of a table, in small letters, and what is below each.
func fieldNames(t reflect.Type) map[string]reflect.Type {
	names := map[string]reflect.Type{}
	eachField(t, func(f reflect.StructField) { names[strings.ToLower(f.Tag.Get("toml"))] = f.Type })
	return names
}

func realName(t reflect.Type, lower string) (name string) {
	eachField(t, func(f reflect.StructField) {
		if tag := f.Tag.Get("toml"); strings.ToLower(tag) == lower {
			name = tag
		}
	})
	return name
}

func eachField(t reflect.Type, do func(reflect.StructField)) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return
	}
	for _, f := range reflect.VisibleFields(t) {
		if f.Tag.Get("toml") != "" {
			do(f)
		}
	}
}

// distance is the number of letters to change, add or remove to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
