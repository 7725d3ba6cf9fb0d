package source

import (
	"regexp"
	"strings"
)

// logins finds what stands before a URL's host, which begins after the last @.
var logins = regexp.MustCompile(`[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#\s]*@`)

// WithoutLogins keeps passwords, and names that may be tokens, out of a text that
// has URLs in it: an error, a log, a description.
func WithoutLogins(text string) string {
	return logins.ReplaceAllStringFunc(text, func(m string) string {
		if strings.HasPrefix(m, "ssh://") && !strings.Contains(m[len("ssh://"):], ":") {
			return m // a name to log in as, which is no secret
		}
		scheme, _, _ := strings.Cut(m, "://")
		return scheme + "://xxxxx@"
	})
}
