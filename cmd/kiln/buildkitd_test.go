package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/kiln-build/kiln/internal/api/control"
)

// TestBuildkitd runs the scripts of the program under the name buildkitd.
func TestBuildkitd(t *testing.T) {
	commands := scriptCommands()
	maps.Copy(commands, map[string]func(*testscript.TestScript, bool, []string){
		"buildkitd": scriptBuildkitd,
		"logged":    scriptLogged,
		"address":   scriptAddress,
		"certs":     scriptCerts,
		"info":      scriptInfo,
		"get":       scriptGet,
		"manager":   scriptManager,
	})
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "buildkitd"), RequireUniqueNames: true, RequireExplicitExec: true, Cmds: commands,
		Setup: func(env *testscript.Env) error {
			env.Setenv("BUILDKITD_LOG_LEVEL", "")
			return setUpScript(t, env, "oci")
		},
	})
}

// daemonLog is where the daemon of a script writes.
func daemonLog(ts *testscript.TestScript) string {
	return filepath.Join(ts.Getenv("RUN"), "daemon.log")
}

// scriptBuildkitd: "buildkitd [-socket NETWORK:ADDRESS]... [flags]" starts it and waits until it
// serves, with sockets opened as a service manager does; "! buildkitd" ends it.
func scriptBuildkitd(ts *testscript.TestScript, neg bool, args []string) {
	s := state(ts)
	if neg {
		if s.daemon == nil {
			ts.Fatalf("no buildkitd runs")
		}
		cmd := s.daemon
		s.daemon = nil
		ts.Check(cmd.Process.Signal(syscall.SIGTERM))
		timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() }) // its end shows in Wait
		defer timer.Stop()
		ts.Check(cmd.Wait())
		return
	}
	// The shell has the process id that the variable names.
	cmd := exec.Command("sh", "-c", `[ -z "$LISTEN_FDS" ] || export LISTEN_PID=$$; exec buildkitd "$@"`, "sh")
	for len(args) > 1 && args[0] == "-socket" {
		network, address, _ := strings.Cut(args[1], ":")
		cmd.ExtraFiles = append(cmd.ExtraFiles, openSocket(ts, network, address))
		args = args[2:]
	}
	for _, k := range []string{
		"PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "NOTIFY_SOCKET", "BUILDKITD_DEBUGADDR", "BUILDKITD_CONFIG",
		"LISTEN_FDNAMES",
	} {
		cmd.Env = append(cmd.Env, k+"="+ts.Getenv(k))
	}
	if n := len(cmd.ExtraFiles); n > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", n))
	}
	cmd.Args = append(append(cmd.Args, "--root", ts.Getenv("ROOT")), args...)
	cmd.Dir = ts.MkAbs(".")
	log, err := os.Create(daemonLog(ts))
	ts.Check(err)
	cmd.Stdout, cmd.Stderr = log, log
	ts.Check(cmd.Start())
	ts.Check(log.Close())
	for _, f := range cmd.ExtraFiles {
		ts.Check(f.Close())
	}
	s.daemon = cmd
	ts.Setenv("PID", strconv.Itoa(cmd.Process.Pid))
	waitLog(ts, regexp.MustCompile(`msg"?[=:]"?serving`))
}

// openSocket opens a socket as a service manager does.
func openSocket(ts *testscript.TestScript, network, address string) *os.File {
	l, err := net.Listen(network, address)
	ts.Check(err)
	f, err := l.(interface{ File() (*os.File, error) }).File()
	ts.Check(err)
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	ts.Check(l.Close())
	return f
}

// waitLog waits until the daemon has logged something, and returns all.
func waitLog(ts *testscript.TestScript, pattern *regexp.Regexp) string {
	var text []byte
	for range 6000 {
		var err error
		text, err = os.ReadFile(daemonLog(ts))
		ts.Check(err)
		if pattern.Match(text) {
			return string(text)
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("the daemon did not log %s:\n%s", pattern, text)
	return ""
}

// scriptLogged: "[!] logged PATTERN" is about the log of the daemon.
func scriptLogged(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] logged pattern")
	}
	pattern := regexp.MustCompile(args[0])
	if !neg {
		waitLog(ts, pattern)
		return
	}
	text, err := os.ReadFile(daemonLog(ts))
	ts.Check(err)
	if pattern.Match(text) {
		ts.Fatalf("the daemon logged %s:\n%s", pattern, text)
	}
}

// scriptAddress: "address VARIABLE PATTERN" sets a variable to the first
// submatch in the daemon's log.
func scriptAddress(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: address variable pattern")
	}
	pattern := regexp.MustCompile(args[1])
	ts.Setenv(args[0], pattern.FindStringSubmatch(waitLog(ts, pattern))[1])
}

// scriptCerts: "certs DIR" makes ca.pem, and cert.pem and key.pem that it
// signed for a server on loopback and for clients.
func scriptCerts(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: certs dir")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ts.Check(err)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: args[0]}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotAfter: ca.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	ts.Check(err)
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	ts.Check(err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	for name, b := range map[string]*pem.Block{
		"ca.pem": {Type: "CERTIFICATE", Bytes: caDER}, "cert.pem": {Type: "CERTIFICATE", Bytes: der},
		"key.pem": {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		ts.Check(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(b), 0o600))
	}
}

// scriptInfo: "[!] info ADDRESS [-ca DIR] [-cert DIR]" asks a daemon what it
// is; the answer, or the error, is the standard output of "exec cat info".
func scriptInfo(ts *testscript.TestScript, neg bool, args []string) {
	address, creds := args[0], insecure.NewCredentials()
	conf := &tls.Config{RootCAs: x509.NewCertPool()}
	for rest := args[1:]; len(rest) > 1; rest = rest[2:] {
		dir := ts.MkAbs(rest[1])
		switch rest[0] {
		case "-ca":
			text, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
			ts.Check(err)
			conf.RootCAs.AppendCertsFromPEM(text)
		case "-cert":
			pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"))
			ts.Check(err)
			// Also where the server has said that it will not do.
			conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		default:
			ts.Fatalf("usage: info address [-ca dir] [-cert dir]")
		}
		creds = credentials.NewTLS(conf)
	}
	conn, err := grpc.NewClient("passthrough:///"+strings.TrimPrefix(address, "tcp://"), grpc.WithTransportCredentials(creds), grpc.WithAuthority("127.0.0.1"),
		grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) {
			if path, ok := strings.CutPrefix(a, "unix://"); ok {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			}
			return (&net.Dialer{}).DialContext(ctx, "tcp", a)
		}))
	ts.Check(err)
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	resp, err := control.NewControlClient(conn).ListWorkers(ctx, &control.ListWorkersRequest{})
	text := ""
	if err != nil {
		text = err.Error()
	} else {
		text = fmt.Sprint(resp)
	}
	ts.Check(os.WriteFile(ts.MkAbs("info"), []byte(text+"\n"), 0o644))
	if (err != nil) != neg {
		ts.Fatalf("info of %s: %v, want failure: %v", address, err, neg)
	}
}

// scriptGet: "get SOCKET PATH" writes what an HTTP server answers to the file
// "answer".
func scriptGet(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: get socket path")
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", args[0])
	}}}
	resp, err := client.Get("http://daemon" + args[1])
	ts.Check(err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	ts.Check(err)
	if resp.StatusCode != http.StatusOK {
		ts.Fatalf("get %s: %s: %s", args[1], resp.Status, text)
	}
	ts.Check(os.WriteFile(ts.MkAbs("answer"), text, 0o644))
}

// scriptManager: "manager" is a service manager that writes what it hears, and
// of whom, to the file "heard".
func scriptManager(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: manager")
	}
	path, out := filepath.Join(ts.Getenv("RUN"), "notify"), ts.MkAbs("heard")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	ts.Check(err)
	raw, err := conn.SyscallConn()
	ts.Check(err)
	ts.Check(raw.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_PASSCRED, 1) }))
	ts.Check(err)
	ts.Setenv("NOTIFY_SOCKET", path)
	s := state(ts)
	s.undo = append(s.undo, conn.Close)
	ts.Check(os.WriteFile(out, nil, 0o644))
	go func() {
		var all bytes.Buffer
		buf, oob := make([]byte, 512), make([]byte, 512)
		for {
			n, oobn, _, _, err := conn.ReadMsgUnix(buf, oob)
			if err != nil {
				return // it was closed
			}
			fmt.Fprintf(&all, "process %d says %s\n", senderOf(oob[:oobn]), buf[:n])
			_ = os.WriteFile(out, all.Bytes(), 0o644) // the script sees whether it is there
		}
	}()
}

// senderOf is the process that sent a message.
func senderOf(oob []byte) (pid int) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return 0
	}
	cred, err := syscall.ParseUnixCredentials(&messages[0])
	if err != nil {
		return 0
	}
	return int(cred.Pid)
}
