package daemon

import "testing"

func TestWithoutPasswords(t *testing.T) {
	for in, want := range map[string]string{
		"https://me:sesame@example.com/x.git#main": "https://xxxxx:xxxxx@example.com/x.git#main",
		"https://:sesame@example.com/x":            "https://xxxxx:xxxxx@example.com/x",
		"https://me:ses@me@example.com/x":          "https://xxxxx:xxxxx@example.com/x",
		"https://sesame@example.com/x.git#main":    "https://xxxxx@example.com/x.git#main",
		"https://ses@me@example.com/x":             "https://xxxxx@example.com/x",
		"http://a:b@h/x http://c:d@i/y":            "http://xxxxx:xxxxx@h/x http://xxxxx:xxxxx@i/y",
		"ssh://git@example.com:22/x":               "ssh://git@example.com:22/x",
		"https://example.com:80/x@y":               "https://example.com:80/x@y",
		"https://example.com:80/?u=a:b@c":          "https://example.com:80/?u=a:b@c",
		"git@example.com:x":                        "git@example.com:x",
		"docker-image://example.com/x:1@sha256:00": "docker-image://example.com/x:1@sha256:00",
		"plain": "plain", "": "", "token": "token", "a=b,tokens=3": "a=b,tokens=3",
		`[{"Type":"s3","Attrs":{"bucket":"b","secret_access_key":"sesame","session_token":"open"}}]`: `[{"Type":"s3","Attrs":{"bucket":"b","secret_access_key":"xxxxx","session_token":"xxxxx"}}]`,
		"type=azblob,name=x,secret_access_key=se/sa+me==,mode=max":                                   "type=azblob,name=x,secret_access_key=xxxxx,mode=max",
		"type=gha,token=sesame,ghtoken=sesame":                                                       "type=gha,token=xxxxx,ghtoken=xxxxx",
	} {
		if got := withoutPasswords(map[string]string{"context": in})["context"]; got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
}
