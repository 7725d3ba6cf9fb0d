package syntax

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// isJSONList reports whether arguments are a JSON list.
func isJSONList(args string) bool {
	return strings.HasPrefix(args, "[") && json.Valid([]byte(args))
}

// jsonList reads the arguments from a place on as a JSON list of strings. ok is
// false where they are none and have to be read as something else.
func (s *statement) jsonList(from int) (list []Text, ok bool) {
	args := s.args[from:]
	if !strings.HasPrefix(args, "[") {
		return nil, false
	}
	if !json.Valid([]byte(args)) {
		s.checkBrokenList(from)
		return nil, false
	}
	d := json.NewDecoder(strings.NewReader(args))
	if _, err := d.Token(); err != nil {
		return nil, false
	}
	list = []Text{}
	for d.More() {
		start := from + int(d.InputOffset())
		token, err := d.Token()
		end := from + int(d.InputOffset())
		for start < end && strings.IndexByte(" \t\r\n,", s.args[start]) >= 0 {
			start++
		}
		value, isString := token.(string)
		if err != nil || !isString {
			s.unreadable = true
			s.fail(s.line.at(s.from+start, s.from+end), fmt.Sprintf("%s is in the list", s.args[start:end]), "a string in double quotes", "")
			return nil, true
		}
		list = append(list, Text{Value: value, Span: s.line.at(s.from+start, s.from+end)})
	}
	return list, true
}

// checkBrokenList complains of arguments that nearly are a JSON list where
// nothing but a list will do. All others take them as plain text, as Docker does.
func (s *statement) checkBrokenList(from int) {
	if s.Verb != VerbShell {
		return
	}
	rest := strings.TrimLeft(s.args[from+1:], blanks)
	var syntaxError *json.SyntaxError
	at := len(s.args)
	var into []any
	if errors.As(json.Unmarshal([]byte(s.args[from:]), &into), &syntaxError) {
		at = from + max(int(syntaxError.Offset)-1, 0)
	}
	message := "list is not JSON: " + plain(strings.TrimSpace(s.args[from:]))
	switch {
	case strings.HasPrefix(rest, "'"):
		message += ": strings stand in single quotes"
	case syntaxError != nil && syntaxError.Offset >= int64(len(s.args)-from):
		message += ": it has no end"
	}
	at = min(at, len(s.args)-1)
	s.fail(s.line.at(s.from+at, s.from+at+1), message, `a list such as ["one", "two"]`, "")
}
