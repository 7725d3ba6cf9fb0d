package git

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kiln-build/kiln/internal/progress"
	"github.com/kiln-build/kiln/internal/session/secret"
	"github.com/kiln-build/kiln/internal/session/ssh"
	"github.com/kiln-build/kiln/internal/source"
)

// authorize gives git the credentials for a request's remote.
func (r *runner) authorize(ctx context.Context, q *request) error {
	switch q.scheme {
	case "http", "https":
		return r.authorizeHTTP(ctx, q)
	case "ssh":
		return r.authorizeSSH(ctx, q)
	}
	return nil
}

func (r *runner) authorizeHTTP(ctx context.Context, q *request) error {
	header, err := headerSecret(ctx, q)
	if err != nil {
		return err
	}
	scope := tokenScope(q.remote)
	if header == "" && q.login != nil {
		password, _ := q.login.Password()
		header = basic(q.login.Username(), password)
		// What stands in an address holds for its relatives, such as submodules.
		scope = q.scheme + "://" + q.host + "/"
	}
	if header == "" {
		return nil
	}
	r.header = header
	r.config = append(r.config, setting{"http." + scope + ".extraHeader", "Authorization: " + header})
	if scope != gitHub {
		// git would send its headers on to whom the server names: see follow.
		r.config = append(r.config, setting{"http." + scope + ".followRedirects", "false"})
	}
	return nil
}

// headerSecret is what the client's secrets give for the Authorization header.
func headerSecret(ctx context.Context, q *request) (string, error) {
	ids := []struct {
		id    string
		token bool
	}{
		{q.headerSecret + "." + q.host, false}, {q.tokenSecret + "." + q.host, true}, {q.headerSecret, false}, {q.tokenSecret, true},
	}
	for _, s := range ids {
		if s.id == "" || strings.HasPrefix(s.id, ".") {
			continue
		}
		b, err := secret.Daemon{}.Secret(ctx, s.id)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("get secret %s: %w", s.id, err)
		}
		value := strings.TrimSpace(string(b))
		if strings.ContainsAny(value, "\r\n\x00") {
			return "", fmt.Errorf("secret %s has several lines, expected the value of one header or a token", s.id)
		}
		if value == "" {
			continue
		}
		if s.token {
			return basic("x-access-token", value), nil
		}
		return value, nil
	}
	return "", nil
}

func basic(user, password string) string {
	return "basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// tokenScope is what a token is good for: the remote; on GitHub, where submodules
// commonly have the same owner, all of it.
func tokenScope(remote string) string {
	for _, prefix := range []string{gitHub, "https://www.github.com/"} {
		if strings.HasPrefix(remote, prefix) {
			return prefix
		}
	}
	return remote
}

// gitHub is a place whose repositories may have moved, but not away from it.
const gitHub = "https://github.com/"

// infoRefs is what git asks a server for first.
const infoRefs = "/info/refs"

// follow finds out where the server has moved a repository to, if it has: git
// itself is not allowed to follow with credentials. Only another place of the
// same host is taken.
func (r *runner) follow(ctx context.Context, remote string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, remote+infoRefs+"?service=git-upload-pack", nil)
	if err != nil {
		return "", fmt.Errorf("ask %s where it is: %w", remote, err)
	}
	req.Header.Set("Authorization", r.header)
	req.Header.Set("User-Agent", "git/2 (kiln)")
	client := http.Client{Timeout: time.Minute, CheckRedirect: func(to *http.Request, via []*http.Request) error {
		from := via[0].URL
		if to.URL.Host != from.Host || to.URL.Scheme != from.Scheme && to.URL.Scheme != "https" {
			return fmt.Errorf("the server redirects to %s://%s, where the credentials for %s are not sent: use that address", to.URL.Scheme, to.URL.Host, from.Host)
		}
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		return nil
	}}
	resp, err := client.Do(req)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return "", fmt.Errorf("ask %s where it is: %w", remote, err)
	}
	_ = resp.Body.Close() // only where it came from is of interest
	at := *resp.Request.URL
	at.RawQuery = ""
	moved, ok := strings.CutSuffix(at.String(), infoRefs)
	if !ok || moved == remote {
		return "", fmt.Errorf("%s redirects to %s, which is no repository", remote, source.WithoutLogins(at.String()))
	}
	r.config = append(r.config,
		setting{"http." + moved + ".extraHeader", "Authorization: " + r.header}, setting{"http." + moved + ".followRedirects", "false"})
	return moved, nil
}

func (r *runner) authorizeSSH(ctx context.Context, q *request) error {
	// Nothing of the daemon's own user is to be used, its keys least of all.
	options := []string{
		"BatchMode=yes", "IdentityFile=none", "GlobalKnownHostsFile=" + os.DevNull, "ControlPath=none",
		"ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=4", "UpdateHostKeys=no",
	}
	if q.knownHosts != "" {
		file := filepath.Join(r.scratch, "known_hosts")
		if err := os.WriteFile(file, []byte(q.knownHosts), 0o600); err != nil {
			return fmt.Errorf("write known hosts: %w", err)
		}
		options = append(options, "StrictHostKeyChecking=yes", "UserKnownHostsFile="+quoteSSH(file))
	} else {
		// Nobody said who the server is; so does BuildKit.
		options = append(options, "StrictHostKeyChecking=no", "LogLevel=ERROR", "UserKnownHostsFile="+os.DevNull)
		progress.StepFrom(ctx).Warn(progress.Warning{Level: 1, Short: []byte("the identity of " + q.host + " is not checked: no ssh host keys are known for it")})
	}
	if q.agent == "" {
		options = append(options, "IdentityAgent=none")
	} else {
		socket, err := r.listen(ctx, q.agent)
		if err != nil {
			return err
		}
		options = append(options, "IdentityAgent="+quoteSSH(socket))
		r.env = append(r.env, "SSH_AUTH_SOCK="+socket)
	}
	r.ssh = "ssh -F " + os.DevNull
	for _, o := range options {
		r.ssh += " -o " + quoteShell(o)
	}
	return nil
}

// listen forwards the client's agent to a socket. Its path is short: the kernel
// allows 107 bytes, which a root folder may well exceed.
func (r *runner) listen(ctx context.Context, id string) (string, error) {
	dir, err := os.MkdirTemp("", "kiln-ssh")
	if err != nil {
		return "", fmt.Errorf("make directory for ssh agent: %w", err)
	}
	r.closes = append(r.closes, func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "agent")
	stop, err := ssh.Daemon{}.Listen(ctx, id, socket)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no SSH key %q forwarded from the client: give it with --ssh %s", id, id)
	}
	if err != nil {
		return "", err
	}
	r.closes = append([]func(){stop}, r.closes...)
	return socket, nil
}

// quoteShell quotes for sh, which runs the ssh command.
func quoteShell(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// quoteSSH quotes a path for ssh's configuration, which has tokens of "%" and
// splits at spaces.
func quoteSSH(path string) string { return `"` + strings.ReplaceAll(path, "%", "%%") + `"` }
