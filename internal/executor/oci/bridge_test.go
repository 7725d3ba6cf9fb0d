package oci

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// ownNetwork runs a test again in a network namespace of its own, where no other
// daemon takes the names and ranges that it looks at. It tells whether this is
// that run.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	const variable = "KILN_TEST_OWN_NETWORK"
	if os.Getenv(variable) != "" {
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.LinkSetUp(lo)
		}
		if err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), variable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a network of its own: %v\n%s", err, out)
	}
	return false
}

// TestTwoDaemons: each has a bridge and a subnet of its own, and all of it is
// gone with it.
func TestTwoDaemons(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	one, two := openTest(t, Config{}), openTest(t, Config{})
	first, second := sandboxed(t, one, printGateway), sandboxed(t, two, printGateway)
	if first == second || first == "" || second == "" {
		t.Fatalf("gateways %q and %q, want two", first, second)
	}
	bridge, rules := one.net.bridge, one.net.rules(one.net.bridge)
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	if again := sandboxed(t, two, printGateway); again != second {
		t.Errorf("the other daemon's gateway is now %q, was %q", again, second)
	}
	links, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Attrs().Name == bridge || strings.HasPrefix(l.Attrs().Name, bridge+"-") {
			t.Errorf("interface %s is left", l.Attrs().Name)
		}
	}
	for _, r := range rules {
		if err := iptables(r[0], "-C", r[1:]); err == nil {
			t.Errorf("firewall rule %v is left", r)
		}
	}
}

// TestDeadDaemonsBridge: a bridge that nobody holds the claim on is replaced,
// and a range that something else uses is passed over.
func TestDeadDaemonsBridge(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	pool := netip.MustParsePrefix("10.98.0.0/20")
	first := openTest(t, Config{Network: NetworkConfig{Pool: pool}})
	gateway := sandboxed(t, first, printGateway)
	first.net.mu.Lock()
	first.net.claim.Close() // as its end would
	name := first.net.bridge
	first.net.bridge, first.net.idle = "", nil // it removes nothing
	first.net.mu.Unlock()
	second := openTest(t, Config{Network: NetworkConfig{Pool: pool}})
	if got := sandboxed(t, second, printGateway); got != gateway || second.net.bridge != name {
		t.Errorf("gateway %s on %s, want the dead daemon's %s on %s", got, second.net.bridge, gateway, name)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}

	other := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "kilntestother"}}
	if err := makeBridge(other, netip.MustParsePrefix("10.98.1.1/24")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeLink(t, other) })
	third := openTest(t, Config{Network: NetworkConfig{Pool: pool}})
	if got := sandboxed(t, third, printGateway); got != "10.98.4.1" {
		t.Errorf("gateway %s, want that of the next free range, 10.98.4.1", got)
	}
}

func removeLink(t *testing.T, link netlink.Link) {
	t.Helper()
	if err := netlink.LinkDel(link); err != nil {
		t.Errorf("remove %s: %v", link.Attrs().Name, err)
	}
}
