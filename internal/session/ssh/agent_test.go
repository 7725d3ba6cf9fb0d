package ssh_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"

	cryptossh "golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/session/ssh"
)

// writeKey writes a new private key into a file.
func writeKey(t *testing.T, name string) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := cryptossh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
}

// dial connects to an agent of a client as a step of a build does.
func dial(t *testing.T, p *ssh.Provider, id string) sshagent.ExtendedAgent {
	t.Helper()
	ctx := sessiontest.Context(context.Background(), sessiontest.Connect(t, p))
	socket := filepath.Join(t.TempDir(), "s")
	stop, err := ssh.Daemon{}.Listen(ctx, id, socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return sshagent.NewClient(conn)
}

// Keys in files make an agent; the agent at a socket can be used and not be changed.
func TestAgents(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	writeKey(t, one)
	writeKey(t, two)
	p, err := ssh.NewAgentProvider(nil, map[string]ssh.Agent{"keys": {Paths: []string{one, two}}})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := dial(t, p, "keys").List()
	if err != nil || len(keys) != 2 {
		t.Fatalf("%d keys, %v, want 2", len(keys), err)
	}

	ring := sshagent.NewKeyring()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Add(sshagent.AddedKey{PrivateKey: key}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "agent")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { _ = sshagent.ServeAgent(ring, conn) }()
		}
	}()
	t.Setenv("SSH_AUTH_SOCK", socket)
	p, err = ssh.NewAgentProvider(nil, map[string]ssh.Agent{"": {}, "raw": {Paths: []string{socket}, Raw: true}})
	if err != nil {
		t.Fatal(err)
	}
	guarded := dial(t, p, "default")
	keys, err = guarded.List()
	if err != nil || len(keys) != 1 {
		t.Fatalf("%d keys, %v, want 1", len(keys), err)
	}
	data := []byte("data")
	signature, err := guarded.Sign(keys[0], data)
	if err != nil || keys[0].Verify(data, signature) != nil {
		t.Errorf("sign: %v", err)
	}
	if guarded.RemoveAll() == nil || guarded.Add(sshagent.AddedKey{PrivateKey: key}) == nil || guarded.Lock([]byte("x")) == nil {
		t.Error("a build changed the agent")
	}
	if err := dial(t, p, "raw").RemoveAll(); err != nil {
		t.Errorf("what goes to a raw socket is looked into: %v", err)
	}
}

func TestBadAgents(t *testing.T) {
	dir := t.TempDir()
	key, text := filepath.Join(dir, "key"), filepath.Join(dir, "text")
	writeKey(t, key)
	if err := os.WriteFile(text, []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	t.Setenv("SSH_AUTH_SOCK", "")
	for name, a := range map[string]ssh.Agent{
		"no agent": {}, "missing": {Paths: []string{filepath.Join(dir, "none")}}, "no key": {Paths: []string{text}},
		"two sockets": {Paths: []string{socket, socket}}, "socket and key": {Paths: []string{socket, key}},
		"key and socket": {Paths: []string{key, socket}}, "raw key": {Paths: []string{key}, Raw: true},
		"raw of two": {Paths: []string{socket, key}, Raw: true},
	} {
		if _, err := ssh.NewAgentProvider(nil, map[string]ssh.Agent{"x": a}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	if _, err := ssh.NewAgentProvider(map[string]string{"x": socket}, map[string]ssh.Agent{"x": {Paths: []string{key}}}); err == nil {
		t.Error("two agents have one id")
	}
}
