package git_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	cryptossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/session/ssh"
	"github.com/kiln-build/kiln/internal/source/sourcetest"
	"github.com/kiln-build/kiln/llb"
)

func newSSHKey(t *testing.T) (ed25519.PrivateKey, cryptossh.Signer) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := cryptossh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return key, signer
}

// sshServer serves the repositories below a directory to one user with one key.
type sshServer struct {
	addr       string
	knownHosts string
	mu         sync.Mutex
	logins     []string // names that tried
}

func serveSSH(t *testing.T, dir string, user cryptossh.PublicKey) *sshServer {
	t.Helper()
	_, host := newSSHKey(t)
	s := &sshServer{}
	config := &cryptossh.ServerConfig{
		PublicKeyCallback: func(c cryptossh.ConnMetadata, key cryptossh.PublicKey) (*cryptossh.Permissions, error) {
			s.mu.Lock()
			s.logins = append(s.logins, c.User()+" "+cryptossh.FingerprintSHA256(key))
			s.mu.Unlock()
			if string(key.Marshal()) != string(user.Marshal()) {
				return nil, errors.New("unknown key")
			}
			return nil, nil
		},
	}
	config.AddHostKey(host)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() { s.serve(conn, config, dir) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		work.Wait()
	})
	s.addr = l.Addr().String()
	_, port, _ := strings.Cut(s.addr, ":")
	s.knownHosts = fmt.Sprintf("[127.0.0.1]:%s %s", port, cryptossh.MarshalAuthorizedKey(host.PublicKey()))
	return s
}

func (s *sshServer) serve(conn net.Conn, config *cryptossh.ServerConfig, dir string) {
	defer conn.Close()
	_, channels, requests, err := cryptossh.NewServerConn(conn, config)
	if err != nil {
		return // refused
	}
	go cryptossh.DiscardRequests(requests)
	for c := range channels {
		if c.ChannelType() != "session" {
			_ = c.Reject(cryptossh.UnknownChannelType, "sessions only")
			continue
		}
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		for r := range requests {
			if r.Type != "exec" {
				_ = r.Reply(r.Type == "env", nil)
				continue
			}
			_ = r.Reply(true, nil)
			status := run(channel, dir, string(r.Payload[4:]))
			_, _ = channel.SendRequest("exit-status", false, cryptossh.Marshal(struct{ Status uint32 }{status}))
			_ = channel.Close()
		}
	}
}

// run runs the one command that there is: git-upload-pack '/path'.
func run(channel cryptossh.Channel, dir, command string) uint32 {
	program, path, _ := strings.Cut(command, " ")
	if program != "git-upload-pack" {
		fmt.Fprintf(channel.Stderr(), "no command %s\n", program)
		return 1
	}
	cmd := exec.Command("git", "-c", "safe.directory=*", "upload-pack", filepath.Join(dir, strings.Trim(path, "'")))
	in, err := cmd.StdinPipe()
	if err != nil {
		return 1
	}
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	go func() {
		_, _ = io.Copy(in, channel)
		_ = in.Close()
	}()
	if err := cmd.Run(); err != nil {
		return 1
	}
	return 0
}

// serveAgent serves keys on a socket, and returns its path.
func serveAgent(t *testing.T, keys ...ed25519.PrivateKey) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, k := range keys {
		if err := ring.Add(agent.AddedKey{PrivateKey: k}); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	var work sync.WaitGroup
	work.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			work.Go(func() {
				_ = agent.ServeAgent(ring, conn) // ends with the connection
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		work.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestSSH(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Fatalf("this test needs ssh: %v", err)
	}
	w, top := newWorld(t), t.TempDir()
	newOrigin(t, filepath.Join(top, "dir/r.git")).commit("a", "1")
	sub := newOrigin(t, filepath.Join(top, "dir/sub.git"))
	sub.commit("b", "2")
	o := newOrigin(t, filepath.Join(top, "dir/withsub.git"))
	o.addSubmodule(sub.dir, "../sub.git", "sub")
	key, signer := newSSHKey(t)
	strange, strangeSigner := newSSHKey(t)
	s := serveSSH(t, top, signer.PublicKey())
	other := serveSSH(t, top, signer.PublicKey())
	provider := ssh.NewProvider(map[string]string{"default": serveAgent(t, key), "work": serveAgent(t, key), "strange": serveAgent(t, strange)})
	ctx := sessiontest.Context(t.Context(), sessiontest.Connect(t, provider))
	op := func(path string, attrs ...string) *llb.SourceOp {
		o := &llb.SourceOp{Identifier: "git://" + s.addr + path + "#main", Attrs: map[string]string{
			llb.AttrGitFullURL: "ssh://me@" + s.addr + path, llb.AttrGitMountSSHSock: "default", llb.AttrGitKnownSSHHosts: s.knownHosts,
		}}
		for i := 0; i < len(attrs); i += 2 {
			o.Attrs[attrs[i]] = attrs[i+1]
		}
		return o
	}
	_, ref, err := w.get(ctx, w.source(), op("/dir/r.git"))
	if err != nil {
		t.Fatal(err)
	}
	if got := sourcetest.Files(t, w.layers, ref); got["a"] != "1" {
		t.Errorf("got %v", got)
	}
	if _, ref, err = w.get(ctx, w.source(), op("/dir/withsub.git", llb.AttrGitMountSSHSock, "work")); err != nil {
		t.Fatal(err)
	}
	if got := sourcetest.Files(t, w.layers, ref); got["sub/b"] != "2" {
		t.Errorf("got %v", got)
	}
	if _, _, err := w.get(ctx, w.source(), op("/dir/r.git", llb.AttrGitKnownSSHHosts, "")); err != nil {
		t.Errorf("without known hosts: %v", err)
	}
	s.mu.Lock()
	s.logins = nil
	s.mu.Unlock()
	for name, tc := range map[string]struct {
		attrs []string
		want  string
	}{
		"unknown server":  {[]string{llb.AttrGitKnownSSHHosts, "[127.0.0.1]:1 ssh-ed25519 AAAA\n"}, "Host key verification failed"},
		"another's key":   {[]string{llb.AttrGitKnownSSHHosts, strings.Replace(other.knownHosts, other.addr[strings.Index(other.addr, ":")+1:], s.addr[strings.Index(s.addr, ":")+1:], 1)}, "Host key verification failed"},
		"no such agent":   {[]string{llb.AttrGitMountSSHSock, "nosuch"}, `no SSH key "nosuch" forwarded from the client`},
		"another's agent": {[]string{llb.AttrGitMountSSHSock, "strange"}, "Permission denied"},
		"no agent":        {[]string{llb.AttrGitMountSSHSock, ""}, "Permission denied"},
	} {
		if _, err := w.source().Resolve(ctx, op("/dir/r.git", tc.attrs...), sourceOptions()); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %q", name, err, tc.want)
		}
	}
	if _, err := w.source().Resolve(t.Context(), op("/dir/r.git"), sourceOptions()); err == nil || !strings.Contains(err.Error(), `no SSH key "default" forwarded`) {
		t.Errorf("no session: got %v", err)
	}
	// The daemon's own keys are not offered to anybody.
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, login := range s.logins {
		if login != "me "+cryptossh.FingerprintSHA256(strangeSigner.PublicKey()) {
			t.Errorf("tried to log in as %s", login)
		}
	}
	w.clean(t)
}
