package oci

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// sandbox is a network namespace with one interface on the bridge. It lives as
// long as its file is open or a process is in it.
type sandbox struct {
	ns    *os.File
	outer string // the name of the interface's end on the bridge
	addr  netip.Addr
}

// path names the namespace for other processes of this PID namespace.
func (s *sandbox) path() string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.ns.Fd())
}

// newSandbox makes a namespace whose interface eth0 has addr and leads to the
// gateway over a bridge.
func newSandbox(bridge string, bridgeIndex int, addr netip.Prefix, gateway netip.Addr) (*sandbox, error) {
	ns, err := newNetNS()
	if err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	a := addr.Addr().As4()
	s := &sandbox{ns: ns, addr: addr.Addr(), outer: fmt.Sprintf("%s-%02x%02x", bridge, a[2], a[3])}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = s.outer
	attrs.MasterIndex = bridgeIndex
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "eth0"
	veth.PeerNamespace = netlink.NsFd(int(ns.Fd()))
	if err := netlink.LinkAdd(veth); err != nil {
		ns.Close()
		return nil, fmt.Errorf("make network interface %s: %w", s.outer, err)
	}
	err = s.configure(addr, gateway)
	if err == nil {
		err = netlink.LinkSetUp(veth)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up network interface %s: %w", s.outer, err), s.remove())
	}
	return s, nil
}

// configure sets up the interfaces inside.
func (s *sandbox) configure(addr netip.Prefix, gateway netip.Addr) error {
	inside, err := netlink.NewHandleAt(netns.NsHandle(int(s.ns.Fd())), unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer inside.Close()
	loopback, err := inside.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := inside.LinkSetUp(loopback); err != nil {
		return err
	}
	eth, err := inside.LinkByName("eth0")
	if err != nil {
		return err
	}
	if err := inside.AddrAdd(eth, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return err
	}
	if err := inside.LinkSetUp(eth); err != nil {
		return err
	}
	return inside.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: net.IP(gateway.AsSlice())})
}

// remove removes the interface and with its file the namespace.
func (s *sandbox) remove() error {
	defer s.ns.Close()
	link, err := netlink.LinkByName(s.outer)
	var gone netlink.LinkNotFoundError
	if errors.As(err, &gone) {
		return nil
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}

// newNetNS makes a network namespace on a thread of its own, which goes back
// to the daemon's; where it can not, the thread ends.
func newNetNS() (*os.File, error) {
	type result struct {
		ns  *os.File
		err error
	}
	made := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			made <- result{nil, err}
			return
		}
		defer home.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{nil, err}
			return
		}
		ns, err := os.Open("/proc/thread-self/ns/net")
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		made <- result{ns, err}
	}()
	r := <-made
	return r.ns, r.err
}
