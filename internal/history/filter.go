package history

import (
	"encoding/csv"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
)

// Values of the filter key "status".
const (
	statusRunning   = "running"
	statusCompleted = "completed"
	statusError     = "error"
	statusCanceled  = "canceled"
)

// ParseFilters returns a function that says whether one of the filters holds;
// without filters all holds. A filter is conditions with commas between them,
// which must all hold (BuildKit's api/services/control): ref, status or repository
// with ==, != or ~= (a regular expression); startedAt or completedAt with >, >=, <
// or <= and a time, as RFC 3339 or as an age such as 24h; duration in the same
// way.
func ParseFilters(texts []string) (func(*Record) bool, error) {
	return parseFilters(texts, time.Now())
}

func parseFilters(texts []string, now time.Time) (func(*Record) bool, error) {
	var any []func(*Record) bool
	for _, text := range texts {
		f, err := parseFilter(text, now)
		if err != nil {
			return nil, fmt.Errorf("history filter %q: %w", text, err)
		}
		any = append(any, f)
	}
	return func(r *Record) bool {
		return len(any) == 0 || slices.ContainsFunc(any, func(f func(*Record) bool) bool { return f(r) })
	}, nil
}

func parseFilter(text string, now time.Time) (func(*Record) bool, error) {
	var terms []string
	if text != "" {
		r := csv.NewReader(strings.NewReader(text))
		var err error
		if terms, err = r.Read(); err != nil {
			return nil, err
		}
	}
	var all []func(*Record) bool
	var static []string
	for _, term := range terms {
		f, err := timeTerm(term, now)
		switch {
		case err != nil:
			return nil, err
		case f != nil:
			all = append(all, f)
		default:
			static = append(static, term)
		}
	}
	f, err := staticTerms(static)
	if err != nil {
		return nil, err
	}
	all = append(all, f)
	return func(r *Record) bool {
		return !slices.ContainsFunc(all, func(f func(*Record) bool) bool { return !f(r) })
	}, nil
}

// timeTerm reads a condition about time; nil is another kind of condition.
func timeTerm(term string, now time.Time) (func(*Record) bool, error) {
	at := strings.IndexAny(term, "<>=!~")
	if at < 0 {
		return nil, nil
	}
	key, rest := term[:at], term[at:]
	var value func(*Record) (int64, bool)
	var bound int64
	var err error
	op, arg := rest[:1], rest[1:]
	if strings.HasPrefix(arg, "=") {
		op, arg = op+"=", arg[1:]
	}
	switch key {
	case "startedAt":
		value = func(r *Record) (int64, bool) { return r.CreatedAt.Unix(), true }
		bound, err = moment(arg, now)
	case "completedAt":
		value = func(r *Record) (int64, bool) { return r.CompletedAt.Unix(), !r.CompletedAt.IsZero() }
		bound, err = moment(arg, now)
	case "duration":
		value = func(r *Record) (int64, bool) {
			return int64(r.CompletedAt.Sub(r.CreatedAt)), !r.CompletedAt.IsZero()
		}
		var d time.Duration
		if d, err = time.ParseDuration(arg); err != nil {
			err = fmt.Errorf("invalid duration %q: expected one such as 90s or 5m", arg)
		}
		bound = int64(d)
	default:
		return nil, nil
	}
	holds, ok := map[string]func(v int64) bool{
		">": func(v int64) bool { return v > bound }, ">=": func(v int64) bool { return v >= bound },
		"<": func(v int64) bool { return v < bound }, "<=": func(v int64) bool { return v <= bound },
	}[op]
	if !ok {
		return nil, fmt.Errorf("%s cannot be compared by %q: expected one of >, >=, <, <=", key, op)
	}
	return func(r *Record) bool {
		v, ok := value(r)
		return ok && holds(v)
	}, err
}

// moment reads a time, or an age, as seconds since 1970.
func moment(arg string, now time.Time) (int64, error) {
	if d, err := time.ParseDuration(arg); err == nil {
		return now.Add(-d).Unix(), nil
	}
	t, err := time.Parse(time.RFC3339, arg)
	if err != nil {
		return 0, fmt.Errorf("invalid time %q: expected RFC 3339, or an age such as 24h", arg)
	}
	return t.Unix(), nil
}

// staticTerms reads the conditions in containerd's syntax.
func staticTerms(terms []string) (func(*Record) bool, error) {
	f, err := filters.Parse(strings.Join(terms, ","))
	if err != nil {
		return nil, err
	}
	for _, term := range terms {
		key := term
		if at := strings.IndexAny(term, "=!~"); at >= 0 {
			key = term[:at]
		}
		if !slices.Contains([]string{"ref", "status", "repository"}, key) {
			return nil, fmt.Errorf("unknown key %q: expected ref, status, repository, startedAt, completedAt or duration", key)
		}
		// A bad pattern would match nothing.
		if _, re, ok := strings.Cut(term, "~="); ok {
			if _, err := regexp.Compile(strings.Trim(re, `"/|`)); err != nil {
				return nil, err
			}
		}
	}
	return func(r *Record) bool { return f.Match(filters.AdapterFunc(r.field)) }, nil
}

// field is a value as filters want it: there, or not.
func (r *Record) field(path []string) (string, bool) {
	if len(path) != 1 {
		return "", false
	}
	switch path[0] {
	case "ref":
		return r.Ref, r.Ref != ""
	case "status":
		return r.status(), true
	case "repository":
		return r.repository()
	}
	return "", false
}

func (r *Record) status() string {
	switch {
	case r.CompletedAt.IsZero():
		return statusRunning
	case r.Failure == nil:
		return statusCompleted
	case strings.Contains(r.Failure.Message, "context canceled"):
		return statusCanceled
	}
	return statusError
}

// repository is where the build's context came from, as far as the client told.
func (r *Record) repository() (string, bool) {
	if v, ok := r.FrontendAttrs["vcs:source"]; ok {
		return v, true
	}
	remote, ok := r.FrontendAttrs["context"]
	if !ok {
		return "", false
	}
	remote, _, _ = strings.Cut(remote, "#")
	u, err := url.Parse(remote)
	if err != nil || u.Scheme == "" { // user@host:path
		user, path, ok := strings.Cut(remote, ":")
		return remote, ok && path != "" && strings.Contains(user, "@") && !strings.Contains(user, "/")
	}
	if !slices.Contains([]string{"http", "https", "ssh", "git"}, u.Scheme) {
		return "", false
	}
	u.RawQuery = ""
	return u.String(), true
}
