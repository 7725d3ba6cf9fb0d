package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// Agent is an ssh agent that is more than a socket of one.
type Agent struct {
	// Paths are files of private keys without a passphrase, which make up an agent
	// of their own, or the one socket of an agent, of which only keys may be listed
	// and used. None stands for the socket in SSH_AUTH_SOCK.
	Paths []string
	// Raw hands all that goes over the one socket on as it is, whatever it speaks.
	Raw bool
}

// maxKey is the size of the largest file of a private key, bytes.
const maxKey = 100 << 10

// NewAgentProvider returns the provider of agents by id: unix sockets, handed on as
// they are, and others.
func NewAgentProvider(sockets map[string]string, agents map[string]Agent) (*Provider, error) {
	p := NewProvider(sockets)
	for id, a := range agents {
		if id == "" {
			id = DefaultID
		}
		if _, taken := p.agents[id]; taken {
			return nil, fmt.Errorf("duplicate agent ID %q", id)
		}
		dial, err := a.dialer()
		if err != nil {
			return nil, fmt.Errorf("ssh agent %q: %w", id, err)
		}
		p.agents[id] = dial
	}
	return p, nil
}

func (a Agent) dialer() (dialer, error) {
	paths := a.Paths
	if a.Raw && len(paths) != 1 {
		return nil, errors.New("raw mode must supply exactly one socket path")
	}
	if len(paths) == 0 || len(paths) == 1 && paths[0] == "" {
		paths = []string{os.Getenv("SSH_AUTH_SOCK")}
		if paths[0] == "" {
			return nil, errors.New("invalid empty ssh agent socket: make sure SSH_AUTH_SOCK is set")
		}
	}
	info, err := os.Stat(paths[0])
	switch {
	case err != nil:
		return nil, err
	case info.Mode()&os.ModeSocket != 0:
		if len(paths) > 1 {
			return nil, errors.New("only single socket allowed, and no keys beside it")
		}
		if a.Raw {
			return dialSocket(paths[0]), nil
		}
		return guarded(dialSocket(paths[0])), nil
	case a.Raw:
		return nil, errors.New("raw mode only supported with socket paths")
	}
	ring := agent.NewKeyring()
	for _, path := range paths {
		if err := addKey(ring, path); err != nil {
			return nil, err
		}
	}
	return func(context.Context) (net.Conn, error) { return serveAgent(ring, nil), nil }, nil
}

// addKey adds the private key in a file.
func addKey(ring agent.Agent, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.Mode()&os.ModeSocket != 0 {
		return errors.New("invalid combination of keys and sockets")
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	key, err := ssh.ParseRawPrivateKey(data)
	if err != nil {
		return fmt.Errorf("failed to parse %s: %w; want a private key without a passphrase, or add it to an agent with ssh-add", path, err)
	}
	return ring.Add(agent.AddedKey{PrivateKey: key})
}

// guarded connects to an agent whose keys may be listed and used, but not changed.
func guarded(dial dialer) dialer {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		return serveAgent(readOnly{agent.NewClient(conn)}, conn), nil
	}
}

// serveAgent returns a connection to a; its end closes behind, if that is not nil.
func serveAgent(a agent.Agent, behind io.Closer) net.Conn {
	near, far := net.Pipe()
	go func() {
		// It ends with the connection; whoever uses that sees the error.
		_ = agent.ServeAgent(a, far)
		_ = far.Close()
		if behind != nil {
			_ = behind.Close()
		}
	}()
	return near
}

// readOnly is an agent that a build cannot change.
type readOnly struct{ agent.ExtendedAgent }

var errGuarded = errors.New("a build may use the keys of the agent, and change nothing")

func (readOnly) Add(agent.AddedKey) error                 { return errGuarded }
func (readOnly) Remove(ssh.PublicKey) error               { return errGuarded }
func (readOnly) RemoveAll() error                         { return errGuarded }
func (readOnly) Lock([]byte) error                        { return errGuarded }
func (readOnly) Unlock([]byte) error                      { return errGuarded }
func (readOnly) Extension(string, []byte) ([]byte, error) { return nil, errGuarded }
