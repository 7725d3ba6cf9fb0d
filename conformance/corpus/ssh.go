package corpus

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/ssh"
)

// gitShell is an ssh server that has one command, git-upload-pack, and one user,
// who has the key of the corpus's agent.
type gitShell struct {
	listeners []net.Listener
	dir       string // of the repositories
	config    *ssh.ServerConfig
	// url and scp are what the two forms of addresses begin with.
	url, scp string
}

// serveGit serves the repositories below a folder to whoever has a key.
func serveGit(dir string, user ssh.PublicKey) (*gitShell, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	host, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return nil, err
	}
	s := &gitShell{dir: dir, config: &ssh.ServerConfig{
		PublicKeyCallback: func(_ ssh.ConnMetadata, offered ssh.PublicKey) (*ssh.Permissions, error) {
			if !bytes.Equal(offered.Marshal(), user.Marshal()) {
				return nil, errors.New("this is not the key of the corpus's agent")
			}
			return nil, nil
		},
	}}
	s.config.AddHostKey(host)
	// user@host:path has no place for a port, so this is port 22, of an address
	// on which nobody else has one.
	l, err := listenOnLoopback("22")
	if err != nil {
		return nil, err
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		_ = l.Close() // that it could not be used is the error
		return nil, err
	}
	s.listeners = []net.Listener{l, other}
	address, _, _ := strings.Cut(l.Addr().String(), ":")
	s.scp, s.url = "git@"+address+":", "ssh://git@"+other.Addr().String()
	for _, l := range s.listeners {
		go s.accept(l)
	}
	return s, nil
}

// listenOnLoopback listens on a port of this machine's many addresses.
func listenOnLoopback(port string) (l net.Listener, err error) {
	for host := 2; host < 250; host++ {
		if l, err = net.Listen("tcp", fmt.Sprintf("127.83.0.%d:%s", host, port)); err == nil {
			return l, nil
		}
	}
	return nil, err
}

// Close ends the server.
func (s *gitShell) Close() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

func (s *gitShell) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return // closed
		}
		go s.serve(conn)
	}
}

func (s *gitShell) serve(conn net.Conn) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, s.config)
	if err != nil {
		return // refused, or it only wanted the host's key
	}
	go ssh.DiscardRequests(requests)
	for c := range channels {
		if c.ChannelType() != "session" {
			_ = c.Reject(ssh.UnknownChannelType, "sessions only") // the connection tells if that failed
			continue
		}
		channel, requests, err := c.Accept()
		if err != nil {
			return
		}
		go s.session(channel, requests)
	}
}

// session serves one command. That an answer does not arrive, the client sees.
func (s *gitShell) session(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	for r := range requests {
		var command struct{ Line string }
		if r.Type != "exec" || ssh.Unmarshal(r.Payload, &command) != nil {
			_ = r.Reply(r.Type == "env", nil)
			continue
		}
		_ = r.Reply(true, nil)
		var status struct{ Status uint32 }
		if err := s.uploadPack(channel, command.Line); err != nil {
			fmt.Fprintln(channel.Stderr(), err)
			status.Status = 1
		}
		_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(status))
		return
	}
}

func (s *gitShell) uploadPack(channel ssh.Channel, line string) error {
	program, repository, _ := strings.Cut(line, " ")
	if program != "git-upload-pack" {
		return fmt.Errorf("%q is no command here", program)
	}
	at := filepath.Join(s.dir, path.Join("/", strings.Trim(repository, "'")))
	cmd := exec.Command("git", "-c", "safe.directory=*", "upload-pack", at)
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	go func() {
		_, _ = io.Copy(in, channel) // git tells if something is missing
		_ = in.Close()
	}()
	return cmd.Run()
}
