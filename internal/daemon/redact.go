package daemon

import "regexp"

// login is what stands before a URL's host, if a password does.
var login = regexp.MustCompile(`([a-zA-Z][a-zA-Z0-9+.-]*://)[^/?#\s@:]*:[^/?#\s]*@`)

// withoutPasswords takes the passwords out of URLs in a request's attributes, so
// that they can be kept.
func withoutPasswords(attrs map[string]string) map[string]string {
	out := make(map[string]string, len(attrs))
	for k, v := range attrs {
		out[k] = login.ReplaceAllString(v, "${1}xxxxx:xxxxx@")
	}
	return out
}
