package conformance

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"

	"github.com/kiln-build/kiln/conformance/peer"
)

// words are those by which programs and scripts tell errors apart.
var words = []string{
	"not found", "no such file or directory", "permission denied", "exit code: ", "did not complete successfully",
	"pull access denied", "push access denied", "authorization failed", "failed to authorize", "failed to fetch anonymous token", "insufficient_scope",
	"failed to do request", "connection refused", "unexpected status", "400 Bad Request", "401 Unauthorized", "403 Forbidden", "500 Internal Server Error",
	"failed to resolve source metadata for", "failed to push", "failed to read dockerfile", "unknown instruction",
	"target stage", "could not be found", "failed to calculate checksum of ref",
	"is not allowed", "no match for platform in manifest", "digest mismatch", "invalid response status",
	"failed to fetch remote", "repository does not contain ref",
}

// TestProgramWords compares the words in errors that programs look for: what is in
// BuildKit's is in Kiln's.
func TestProgramWords(t *testing.T) {
	registry := refuse(t)
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	run := func(command string) gateway.SolveRequest {
		return evaluated(t, base().Run(llb.Args([]string{"/bin/sh", "-c", command})).Root())
	}
	const digest = "@sha256:0000000000000000000000000000000000000000000000000000000000000000"
	from := "FROM scratch AS one\n"
	cases := map[string]gateway.SolveRequest{
		"step":             run("exit 7"),
		"no digest":        evaluated(t, llb.Image(registry+"/missing/app"+digest)),
		"nobody listens":   evaluated(t, llb.Image("127.0.0.1:1/app")),
		"from nobody":      lowered(t, "FROM 127.0.0.1:1/app\n"),
		"bad name":         lowered(t, "FROM 127.0.0.1:1/UPPER\n"),
		"bad instruction":  lowered(t, "FROM scratch\nHUH\n"),
		"no stage":         lowered(t, from, "target=two"),
		"nothing to copy":  lowered(t, from+"COPY absent /\n"),
		"nothing in stage": lowered(t, from+"FROM scratch\nCOPY --from=one /none /\n"),
		"bad platform":     lowered(t, "FROM --platform=no/such/thing/ever scratch\n"),
		"no secret":        lowered(t, from+"FROM one\nRUN --mount=type=secret,id=none,required true\n"),
		"web":              lowered(t, from+"ADD "+web.URL+"/none.txt /\n"),
		"git":              lowered(t, from+"ADD "+web.URL+"/none.git /\n"),
		"missing file":     evaluated(t, llb.Scratch().File(llb.Copy(base(), "/none", "/"))),
		"not allowed":      evaluated(t, base().Run(llb.Args([]string{"/bin/true"}), llb.Network(llb.NetModeHost)).Root()),
	}
	for _, kind := range refusals {
		cases["image "+kind] = evaluated(t, llb.Image(registry+"/"+kind+"/app:1"))
		cases["FROM "+kind] = lowered(t, "FROM "+registry+"/"+kind+"/app:1\n")
	}
	for name, req := range cases {
		t.Run(name, func(t *testing.T) {
			var told [2]string
			for i, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
				err := asFrontend(t, d, func(ctx context.Context, c gateway.Client) (*gateway.Result, error) {
					return c.Solve(ctx, req)
				})
				if err == nil {
					t.Errorf("%s: no error", d.Name)
					continue
				}
				told[i] = err.Error()
			}
			for _, w := range words {
				if strings.Contains(told[1], w) && !strings.Contains(told[0], w) {
					t.Errorf("%q is not in\n%s\nas in BuildKit's\n%s", w, told[0], told[1])
				}
			}
		})
	}
}

// refusals are the ways in which a registry refuses, by the first part of a repository.
var refusals = []string{"missing", "private", "tokenless", "password", "forbidden", "broken"}

// refuse serves a registry that has nothing for anybody.
func refuse(t *testing.T) string {
	t.Helper()
	var address string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		say := func(status int, code string) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			if r.Method != http.MethodHead {
				fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"said by the registry"}]}`, code)
			}
		}
		bearer := func(realm, more string) {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/%s",service="registry",scope="repository:private/app:pull"%s`, address, realm, more))
			say(http.StatusUnauthorized, "UNAUTHORIZED")
		}
		kind, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/")
		switch {
		case r.URL.Path == "/token":
			fmt.Fprint(w, `{"token":"of nobody","expires_in":300}`)
		case r.URL.Path == "/closed":
			say(http.StatusUnauthorized, "UNAUTHORIZED")
		case kind == "private" && r.Header.Get("Authorization") != "":
			bearer("token", `,error="insufficient_scope"`)
		case kind == "private":
			bearer("token", "")
		case kind == "tokenless":
			bearer("closed", "")
		case kind == "password":
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			say(http.StatusUnauthorized, "UNAUTHORIZED")
		case kind == "forbidden":
			say(http.StatusForbidden, "DENIED")
		case kind == "broken":
			say(http.StatusInternalServerError, "UNKNOWN")
		default:
			say(http.StatusNotFound, "MANIFEST_UNKNOWN")
		}
	}))
	t.Cleanup(server.Close)
	address = strings.TrimPrefix(server.URL, "http://")
	return address
}
