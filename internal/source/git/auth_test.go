package git_test

import (
	"encoding/base64"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
	"github.com/kiln-build/kiln/llb"
)

// auth are the attributes that the library sets by default.
func auth(o *llb.SourceOp) *llb.SourceOp {
	o.Attrs[llb.AttrGitAuthTokenSecret] = llb.GitAuthTokenKey
	o.Attrs[llb.AttrGitAuthHeaderSecret] = llb.GitAuthHeaderKey
	return o
}

func basic(user, password string) string {
	return "basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// spy puts a program called git in front of the real one that writes down its
// arguments, which everybody on the machine can see.
func spy(t *testing.T) (file string) {
	t.Helper()
	dir := t.TempDir()
	file = filepath.Join(dir, "arguments")
	script := "#!/bin/sh\necho \"$@\" >>" + file + "\nPATH=" + os.Getenv("PATH") + " exec git \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "git"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return file
}

func TestSecrets(t *testing.T) {
	top := t.TempDir()
	newOrigin(t, filepath.Join(top, "r.git")).commit("a", "1")
	s := serve(t, top)
	t.Setenv("SESAME", "sesame\n")
	t.Setenv("HEADER", "Bearer open")
	t.Setenv("WRONG", "wrong")
	token := basic("x-access-token", "sesame")
	for name, tc := range map[string]struct {
		want    string
		secrets []secret.Source
		url     string // with a login
	}{
		"token":             {token, []secret.Source{{ID: "GIT_AUTH_TOKEN", Env: "SESAME"}}, ""},
		"header":            {"Bearer open", []secret.Source{{ID: "GIT_AUTH_HEADER", Env: "HEADER"}}, ""},
		"token of the host": {token, []secret.Source{{ID: "GIT_AUTH_TOKEN", Env: "WRONG"}, {ID: "GIT_AUTH_TOKEN." + s.host, Env: "SESAME"}}, ""},
		"header of the host": {"Bearer open", []secret.Source{
			{ID: "GIT_AUTH_HEADER", Env: "WRONG"}, {ID: "GIT_AUTH_HEADER." + s.host, Env: "HEADER"}, {ID: "GIT_AUTH_TOKEN." + s.host, Env: "WRONG"}}, ""},
		"address":                    {basic("me", "sesame"), nil, "me:sesame@"},
		"secrets before the address": {token, []secret.Source{{ID: "GIT_AUTH_TOKEN", Env: "SESAME"}}, "me:wrong@"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			arguments := spy(t)
			w := newWorld(t)
			s.set(tc.want, nil)
			o := auth(s.op("/r.git#main", "git.keepgitdir", "true"))
			o.Attrs[llb.AttrGitFullURL] = strings.Replace(s.url, "://", "://"+tc.url, 1) + "/r.git"
			provider, err := secret.NewProvider(tc.secrets)
			if err != nil {
				t.Fatal(err)
			}
			var log strings.Builder
			ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t, provider))
			ctx = progress.WithStep(ctx, progress.NewStep(progress.SinkFunc(func(e progress.Event) {
				if e.Log != nil {
					log.Write(e.Log.Data)
				}
			}), "x"))
			_, ref, err := w.get(ctx, w.source(), o)
			if err != nil {
				t.Fatal(err)
			}
			if got := sourcetest.Files(t, w.layers, ref); got["a"] != "1" {
				t.Errorf("got %v", got)
			}
			said, err := os.ReadFile(arguments)
			if err != nil || len(said) == 0 {
				t.Fatalf("the spy saw nothing: %v", err)
			}
			encoded := strings.TrimPrefix(tc.want, "basic ")
			for _, secret := range []string{"sesame", "open", "wrong", encoded} {
				if strings.Contains(string(said)+log.String(), secret) {
					t.Errorf("%q is in the arguments or the log:\n%s%s", secret, said, log.String())
				}
				if found := grep(t, w.root, secret); found != "" {
					t.Errorf("%q is in %s", secret, found)
				}
			}
		})
	}
}

func TestRefusedLogin(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	commit := newOrigin(t, filepath.Join(top, "r.git")).commit("a", "1")
	s := serve(t, top)
	s.set("Bearer x", nil)
	for _, ref := range []string{"", "main", commit} {
		o := auth(s.op("/r.git#" + ref))
		o.Attrs[llb.AttrGitFullURL] = strings.Replace(s.url, "://", "://me:sesame@", 1) + "/r.git"
		_, _, err := w.get(t.Context(), w.source(), o)
		if err == nil || !strings.Contains(err.Error(), "GIT_AUTH_TOKEN") || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%s: got %v", ref, err)
		}
	}
	t.Setenv("SESAME", "several\nlines")
	provider, err := secret.NewProvider([]secret.Source{{ID: "GIT_AUTH_HEADER", Env: "SESAME"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t, provider))
	if _, err := w.source().Resolve(ctx, auth(s.op("/r.git#main")), source.Options{}); err == nil || !strings.Contains(err.Error(), "several lines") {
		t.Errorf("got %v", err)
	}
	w.clean(t)
}

// TestRedirects follows a repository that has moved, but takes no credentials
// along to another host.
func TestRedirects(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	newOrigin(t, filepath.Join(top, "new.git")).commit("a", "1")
	s, other := serve(t, top), serve(t, top)
	to := func(base string) func(http.ResponseWriter, *http.Request) bool {
		return func(rw http.ResponseWriter, r *http.Request) bool {
			rest, moved := strings.CutPrefix(r.URL.Path, "/old.git")
			if moved {
				http.Redirect(rw, r, base+"/new.git"+rest+"?"+r.URL.RawQuery, http.StatusMovedPermanently)
			}
			return moved
		}
	}
	t.Setenv("SESAME", "sesame")
	provider, err := secret.NewProvider([]secret.Source{{ID: "GIT_AUTH_TOKEN", Env: "SESAME"}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t, provider))
	token := basic("x-access-token", "sesame")
	s.set("", to(other.url))
	if _, files := w.must(t, w.source(), auth(s.op("/old.git#main"))); files["a"] != "1" {
		t.Errorf("without credentials: got %v", files)
	}
	if got := strings.Join(other.take(), " "); strings.Contains(got, "basic") {
		t.Errorf("requests %s", got)
	}
	other.set(token, nil)
	_, err = w.source().Resolve(ctx, auth(s.op("/old.git#main")), source.Options{})
	if err == nil || !strings.Contains(err.Error(), "are not sent") {
		t.Errorf("got %v", err)
	}
	if got := strings.Join(other.take(), " "); strings.Contains(got, "basic") {
		t.Errorf("credentials went to another host: %s", got)
	}
	s.set(token, to(s.url))
	_, ref, err := w.get(ctx, w.source(), auth(s.op("/old.git#main", "git.keepgitdir", "true")))
	if err != nil {
		t.Fatal(err)
	}
	if got := sourcetest.Files(t, w.layers, ref); got["a"] != "1" {
		t.Errorf("moved on the same host: got %v", got)
	}
	w.clean(t)
}

func TestMissingProgram(t *testing.T) {
	w := newWorld(t)
	t.Setenv("PATH", t.TempDir())
	_, err := w.source().Resolve(t.Context(), &llb.SourceOp{Identifier: "git://example.com/x"}, source.Options{})
	if err == nil || !strings.Contains(err.Error(), "install git") {
		t.Errorf("got %v", err)
	}
	w.clean(t)
}
