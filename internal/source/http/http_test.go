package http

import (
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/llb"
)

func TestFileNames(t *testing.T) {
	for _, tc := range []struct {
		url, attr, disposition string
		want                   string // "" if refused
	}{
		{url: "http://h/a/b.tgz", want: "b.tgz"},
		{url: "http://h/a/b.tgz?x=/y", want: "b.tgz"},
		{url: "http://h", want: "download"},
		{url: "http://h/", want: "download"},
		{url: "http://h/dir/", want: "dir"},
		{url: "http://h/x", disposition: `attachment; filename="real.txt"`, want: "real.txt"},
		{url: "http://h/x", attr: "mine", disposition: `attachment; filename="real.txt"`, want: "mine"},
		{url: "http://h/x", disposition: `attachment; filename="../evil"`},
		{url: "http://h/x", disposition: `attachment; filename=".."`},
		{url: "http://h/x", disposition: `attachment; filename*=UTF-8''a%0Ab`},
		{url: "http://h/x", disposition: `attachment; filename*=UTF-8''a%00b`},
		{url: "http://h/x/.."},
		{url: "http://h/x/%2e%2e"},
		{url: "http://h/x/a%00b"},
		{url: "http://h/x/a%0ab"},
		{url: "http://h/x/a%5cb"},
		{url: "http://h/x", attr: ".."},
		{url: "http://h/x", attr: "../x"},
		{url: "http://h/x", attr: "a/b"},
		{url: "http://h/x", attr: "a\x00b"},
		{url: "http://h/x", attr: "a\nb"},
		{url: "http://h/x", attr: strings.Repeat("a", 256)},
	} {
		op := &llb.SourceOp{Identifier: tc.url, Attrs: map[string]string{}}
		if tc.attr != "" {
			op.Attrs["http.filename"] = tc.attr
		}
		got := ""
		r, err := decode(op)
		if err == nil {
			h := http.Header{}
			h.Set("Content-Disposition", tc.disposition)
			got, err = r.fileName(h)
		}
		if err != nil {
			got = ""
		}
		if got != tc.want || (err == nil) != (tc.want != "") {
			t.Errorf("%+v: got %q, %v", tc, got, err)
		}
	}
}

func TestBadAttributes(t *testing.T) {
	for key, value := range map[string]string{
		"http.checksum": "abc", "http.perm": "0999", "http.uid": "-1", "http.gid": "99999999999",
		"http.header.accept": "a\r\nX: y", "http.header.cookie": "x", "http.unknown": "x", "http.perm ": "1",
	} {
		if _, err := decode(&llb.SourceOp{Identifier: "http://h/x", Attrs: map[string]string{key: value}}); err == nil {
			t.Errorf("%s=%q was taken", key, value)
		}
	}
	for _, id := range []string{"http://", "ftp://h/x", "http:/x", "http://user:secret@ho st/x", "https://[::1/x"} {
		_, err := decode(&llb.SourceOp{Identifier: id})
		if err == nil {
			t.Errorf("%s was taken", id)
		} else if strings.Contains(err.Error(), "secret") {
			t.Errorf("the password is in the error: %v", err)
		}
	}
}

func TestKey(t *testing.T) {
	r, err := decode(&llb.SourceOp{Identifier: "http://h/x", Attrs: map[string]string{"http.perm": "0755", "http.uid": "1", "http.gid": "2", "http.header.accept": "a/b"}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.key("x", "sha256:abc", "Mon Jan  2 15:04:05 2006")
	// The JSON is the protocol's: see BuildKit's source/http.
	want := digest.FromString(`{"Filename":"x","Perm":493,"UID":1,"GID":2,"Checksum":"sha256:abc","LastModTime":"Mon, 02 Jan 2006 15:04:05 GMT",` +
		`"Header":[{"Name":"Accept","Value":"a/b"}]}`).String()
	if err != nil || got != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
}
