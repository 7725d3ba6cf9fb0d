package daemon

import (
	"regexp"
	"strings"
)

// login is what stands before a URL's host, if a password does.
var login = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#\s@:]*:[^/?#\s]*@`)

// token is a name that stands there alone. With these schemes nobody needs one but who
// has a token for it.
var token = regexp.MustCompile(`(https?://)[^/?#\s:]+@`)

// credential is a value of the attributes by which caches are reached (BuildKit's
// README.md), as KEY=VALUE or in JSON.
var credential = regexp.MustCompile(`((?:^|[,;\s"'{?&])(?:secret_access_key|session_token|ghtoken|token|password)"?\s*[:=]\s*"?)[^"',;\s&}]+`)

// withoutPasswords takes the passwords of URLs and the credentials of caches out
// of a request's attributes, so that they can be kept.
func withoutPasswords(attrs map[string]string) map[string]string {
	out := make(map[string]string, len(attrs))
	for k, v := range attrs {
		out[k] = withoutPassword(v)
	}
	return out
}

// withoutPassword does so for one text. Clients put their whole command line
// into their spans.
func withoutPassword(s string) string {
	// Most texts have none of it, and long ones are slow to match.
	if strings.Contains(s, "://") {
		s = token.ReplaceAllString(login.ReplaceAllString(s, "${1}xxxxx:xxxxx@"), "${1}xxxxx@")
	}
	if strings.Contains(s, "token") || strings.Contains(s, "password") || strings.Contains(s, "secret_access_key") {
		s = credential.ReplaceAllString(s, "${1}xxxxx")
	}
	return s
}
