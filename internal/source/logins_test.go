package source

import "testing"

// Passwords may have most characters in them, and texts several URLs.
func TestWithoutLogins(t *testing.T) {
	for text, want := range map[string]string{
		"https://user:secret@host/x":                     "https://xxxxx@host/x",
		"https://user:se@cr@et@host/x":                   "https://xxxxx@host/x",
		"https://token@host":                             "https://xxxxx@host",
		"ssh://git@host/x":                               "ssh://git@host/x",
		"ssh://git:secret@host/x":                        "ssh://xxxxx@host/x",
		"get \"http://:a@b@c/\": 404 from https://d:e@f": "get \"http://xxxxx@c/\": 404 from https://xxxxx@f",
		"https://host/x?of=me@example.com":               "https://host/x?of=me@example.com",
		"https://host?of=me@example.com#a@b":             "https://host?of=me@example.com#a@b",
		"git@host:x.git":                                 "git@host:x.git",
	} {
		if got := WithoutLogins(text); got != want {
			t.Errorf("%s became %s, want %s", text, got, want)
		}
	}
}
