package oci

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	subnetBits   = 22 // 1022 addresses for a daemon
	defaultReady = 2
	maxIdle      = 8 // namespaces kept for reuse
)

// network connects sandboxed containers by a bridge of this daemon's own, made
// with the first of them. Addresses of the way out are translated.
//
// The right to a subnet is an abstract unix socket named after it. Such a name
// belongs to one network namespace, as a bridge does, and the kernel frees it
// when its holder ends in any way: a bridge whose name is free is a dead
// daemon's, and is removed. The network namespaces themselves are held by open
// files only, so they end with the daemon too.
type network struct {
	cfg NetworkConfig
	log *slog.Logger

	mu      sync.Mutex // held while interfaces are made
	closed  bool
	claim   net.Listener
	bridge  string // name of the bridge; "" until it is made
	index   int    // of the bridge
	subnet  netip.Prefix
	free    []netip.Addr // addresses given back
	next    netip.Addr   // the lowest never given
	idle    []*sandbox
	filling sync.WaitGroup
}

func newNetwork(cfg NetworkConfig, log *slog.Logger) *network {
	if !cfg.Pool.IsValid() {
		cfg.Pool = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, 0, 0}), 16)
	}
	if cfg.Ready == 0 {
		cfg.Ready = defaultReady
	}
	return &network{cfg: cfg, log: log}
}

// acquire gives a connected network namespace, one that waits if there is one.
func (n *network) acquire() (*sandbox, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil, errors.New("the network is closed")
	}
	if err := n.open(); err != nil {
		return nil, err
	}
	var s *sandbox
	if last := len(n.idle) - 1; last >= 0 {
		s, n.idle = n.idle[last], n.idle[:last]
	} else {
		var err error
		if s, err = n.connect(); err != nil {
			return nil, err
		}
	}
	if len(n.idle) < n.cfg.Ready {
		n.filling.Go(n.fill)
	}
	return s, nil
}

// fill makes namespaces wait, ahead of the containers that will want them.
func (n *network) fill() {
	for {
		n.mu.Lock()
		if n.closed || len(n.idle) >= n.cfg.Ready {
			n.mu.Unlock()
			return
		}
		s, err := n.connect()
		if err == nil {
			n.idle = append(n.idle, s)
		}
		n.mu.Unlock()
		if err != nil {
			n.log.Warn("could not ready a network for a container", "error", err)
			return
		}
	}
}

// release takes a namespace back, whose container has ended.
func (n *network) release(s *sandbox, reusable bool) {
	n.mu.Lock()
	if reusable && !n.closed && len(n.idle) < maxIdle {
		n.idle = append(n.idle, s)
		n.mu.Unlock()
		return
	}
	n.mu.Unlock()
	n.filling.Go(func() { n.drop(s) }) // the kernel takes tens of milliseconds
}

// drop removes a namespace and its interface and gives its address back.
func (n *network) drop(s *sandbox) {
	if err := s.remove(); err != nil {
		n.log.Warn("could not remove a container's network interface", "interface", s.outer, "error", err)
		return
	}
	n.mu.Lock()
	n.free = append(n.free, s.addr)
	n.mu.Unlock()
}

// connect makes a namespace with an interface on the bridge. n.mu is held.
func (n *network) connect() (*sandbox, error) {
	addr := n.next
	if last := len(n.free) - 1; last >= 0 {
		addr, n.free = n.free[last], n.free[:last]
	} else if !n.subnet.Contains(addr.Next()) { // the last one is for broadcasts
		return nil, fmt.Errorf("all addresses of %s are in use", n.subnet)
	} else {
		n.next = addr.Next()
	}
	s, err := newSandbox(n.bridge, n.index, netip.PrefixFrom(addr, n.subnet.Bits()), n.gateway())
	if err != nil {
		n.free = append(n.free, addr)
		return nil, err
	}
	return s, nil
}

// gateway is the bridge's own address.
func (n *network) gateway() netip.Addr { return n.subnet.Addr().Next() }

// open makes the bridge, once. n.mu is held.
func (n *network) open() error {
	if n.bridge != "" {
		return nil
	}
	taken, err := usedRanges()
	if err != nil {
		return err
	}
	pool := n.cfg.Pool.Masked()
	if pool.Bits() > subnetBits || !pool.Addr().Is4() {
		return fmt.Errorf("network pool %s: want an IPv4 range of at least /%d", pool, subnetBits)
	}
	subnet := netip.PrefixFrom(pool.Addr(), subnetBits)
	for i := 0; pool.Contains(subnet.Addr()); i++ {
		ok, err := n.try(i, subnet, taken)
		if err != nil || ok {
			return err
		}
		a := subnet.Addr().As4()
		start := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
		start += 1 << (32 - subnetBits)
		subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(start >> 24), byte(start >> 16), byte(start >> 8), byte(start)}), subnetBits)
	}
	return fmt.Errorf("no part of %s is free for containers: configure another range", pool)
}

// try takes a subnet, if no other daemon has it and nothing else uses it.
func (n *network) try(i int, subnet netip.Prefix, taken map[string][]netip.Prefix) (bool, error) {
	name := fmt.Sprintf("kiln%d", i)
	claim, err := net.Listen("unix", "@kiln-network-"+subnet.Addr().String())
	if errors.Is(err, unix.EADDRINUSE) {
		return false, nil // another daemon's
	}
	if err != nil {
		return false, fmt.Errorf("claim network %s: %w", subnet, err)
	}
	for owner, ranges := range taken {
		for _, r := range ranges {
			if owner != name && r.Overlaps(subnet) {
				return false, claim.Close()
			}
		}
	}
	n.subnet = subnet
	n.next = n.gateway().Next()
	if stale, err := netlink.LinkByName(name); err == nil {
		if stale.Type() != "bridge" {
			return false, claim.Close()
		}
		n.removeBridge(name)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}
	if err := makeBridge(bridge, netip.PrefixFrom(n.gateway(), subnet.Bits())); errors.Is(err, unix.EEXIST) {
		return false, claim.Close() // made meanwhile, or not yet gone
	} else if err != nil {
		return false, errors.Join(fmt.Errorf("make bridge %s: %w", name, err), claim.Close())
	}
	n.claim, n.bridge, n.index = claim, name, bridge.Index
	if err := n.translate(name); err != nil {
		n.log.Warn("containers have no way out to other networks", "reason", err)
	}
	return true, nil
}

func makeBridge(bridge *netlink.Bridge, addr netip.Prefix) error {
	if err := netlink.LinkAdd(bridge); err != nil {
		return err
	}
	link, err := netlink.LinkByName(bridge.Name)
	if err != nil {
		return err
	}
	bridge.Index = link.Attrs().Index
	if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: ipNet(addr)}); err != nil {
		return err
	}
	return netlink.LinkSetUp(bridge)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// usedRanges are the ranges that the machine has interfaces in or routes to, by
// the name of the interface.
func usedRanges() (map[string][]netip.Prefix, error) {
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	used := map[string][]netip.Prefix{}
	names := map[int]string{}
	for _, in := range interfaces {
		names[in.Index] = in.Name
		addrs, err := in.Addrs()
		if err != nil {
			continue // it has gone since
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				used[in.Name] = append(used[in.Name], p.Masked())
			}
		}
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		if p, err := netip.ParsePrefix(r.Dst.String()); err == nil && p.Bits() > 0 {
			used[names[r.LinkIndex]] = append(used[names[r.LinkIndex]], p.Masked())
		}
	}
	return used, nil
}

// rules are the firewall's, as iptables arguments after the command: the table,
// the chain and the rule.
func (n *network) rules(bridge string) [][]string {
	subnet := n.subnet.String()
	return [][]string{
		{"nat", "POSTROUTING", "-s", subnet, "!", "-o", bridge, "-j", "MASQUERADE"},
		{"filter", "FORWARD", "-i", bridge, "-j", "ACCEPT"},
		{"filter", "FORWARD", "-o", bridge, "-m", "conntrack", "--ctstate", "RELATED,ESTABLISHED", "-j", "ACCEPT"},
	}
}

// translate lets containers out, through the machine's own addresses.
func (n *network) translate(bridge string) error {
	const forward = "/proc/sys/net/ipv4/ip_forward"
	state, err := os.ReadFile(forward)
	if err != nil {
		return fmt.Errorf("read %s: %w", forward, err)
	}
	if strings.TrimSpace(string(state)) == "0" {
		if err := os.WriteFile(forward, []byte("1"), 0); err != nil {
			return fmt.Errorf("let the kernel forward packets: %w", err)
		}
	}
	for _, r := range n.rules(bridge) {
		if err := iptables(r[0], "-I", r[1:]); err != nil {
			return err
		}
	}
	return nil
}

// iptables runs the program of that name; it is often in a folder that only
// root's PATH has.
func iptables(table, command string, rule []string) error {
	program, err := exec.LookPath("iptables")
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil {
			program, err = exec.LookPath(filepath.Join(dir, "iptables"))
		}
	}
	if err != nil {
		return errors.New("the program iptables is not installed")
	}
	out, err := exec.Command(program, append([]string{"-w", "-t", table, command}, rule...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("iptables: %w: %s", err, strings.TrimSpace(string(out[:min(len(out), 1024)])))
	}
	return nil
}

// removeBridge removes a bridge, the interfaces on it and its rules. A dead
// daemon's interfaces go with their namespaces, but take a moment to.
func (n *network) removeBridge(name string) {
	for _, r := range n.rules(name) {
		_ = iptables(r[0], "-D", r[1:]) // it may never have come to be
	}
	links, err := netlink.LinkList()
	if err != nil {
		n.log.Warn("could not list network interfaces", "error", err)
		return
	}
	for _, link := range links {
		if own := link.Attrs().Name; own != name && !strings.HasPrefix(own, name+"-") {
			continue
		}
		var gone netlink.LinkNotFoundError
		if err := netlink.LinkDel(link); err != nil && !errors.As(err, &gone) && !errors.Is(err, unix.ENODEV) {
			n.log.Warn("could not remove a network interface", "interface", link.Attrs().Name, "error", err)
		}
	}
}

// close removes the network. All containers have ended.
func (n *network) close() error {
	n.mu.Lock()
	n.closed = true
	idle := n.idle
	n.idle = nil
	n.mu.Unlock()
	for _, s := range idle {
		n.filling.Go(func() { n.drop(s) })
	}
	n.filling.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.bridge == "" {
		return nil
	}
	n.removeBridge(n.bridge)
	n.bridge = ""
	return n.claim.Close()
}
