package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kiln-build/kiln/internal/executor"
)

// proxied is the network of a container that has a proxy and nothing else: a
// namespace with a loopback alone, on which the proxy listens. No packet leaves
// it, so there is nothing to go around.
type proxied struct {
	ns     *os.File
	listen net.Listener
	way    *sandbox // the proxy's own way out; nil for the daemon's
	served chan struct{}
}

// newProxied makes the network of a container and has its proxy serve there.
func (e *Executor) newProxied(s executor.Spec) (_ *proxied, err error) {
	p := &proxied{served: make(chan struct{})}
	if p.ns, err = newNetNS(); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	defer func() {
		if err != nil {
			p.ns.Close()
		}
	}()
	if err := within(p.ns, func() (err error) {
		if err = loopback(); err == nil {
			p.listen, err = net.Listen("tcp4", "127.0.0.1:0")
		}
		return err
	}); err != nil {
		return nil, fmt.Errorf("listen for the container's requests: %w", err)
	}
	dial := (&net.Dialer{}).DialContext
	if s.Network == executor.NetworkSandbox && e.net != nil {
		if p.way, err = e.net.acquire(); err != nil {
			p.listen.Close()
			return nil, err
		}
		dial = p.way.dial
	}
	go func() {
		defer close(p.served)
		s.Proxy.Serve(p.listen, dial)
	}()
	return p, nil
}

// loopback sets up the loopback of the namespace that the calling thread is in.
// It is not done by netlink from outside: a daemon without root could not have
// its thread back.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// within calls f in another network namespace. Sockets that f makes are of it
// for good.
func within(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		err = f()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends with this
		}
		done <- err
	}()
	return <-done
}

// dial dials from within the sandbox. Names are looked up as the daemon does:
// what a machine's resolver listens on is often its loopback alone.
func (s *sandbox) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, a := range addrs {
		var conn net.Conn
		err := within(s.ns, func() (err error) {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
			return err
		})
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// path names the namespace for other processes of this PID namespace.
func (p *proxied) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), p.ns.Fd()) }

// environment is env with the variables by which programs find the proxy, in
// the place of all that were there.
func (p *proxied) environment(env []string) []string {
	const local = "127.0.0.1,localhost,::1"
	proxy := "http://" + p.listen.Addr().String()
	var names, out []string
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"} {
		value := proxy
		if name == "NO_PROXY" {
			value = local
		}
		lower := strings.ToLower(name)
		names = append(names, name, lower)
		out = append(out, name+"="+value, lower+"="+value)
	}
	kept := slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return slices.Contains(names, name)
	})
	return append(kept, out...)
}

// endProxied ends the proxy, whose container has ended, and waits for what it has
// under way.
func (e *Executor) endProxied(p *proxied) error {
	err := p.listen.Close()
	<-p.served
	if p.way != nil {
		e.net.release(p.way, true)
	}
	return errors.Join(err, p.ns.Close())
}
