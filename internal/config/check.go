package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/platforms"
)

// Entitlements are those that a daemon can grant.
func Entitlements() []string { return []string{"network.host", "security.insecure", "device"} }

// check refuses values that the daemon could not work with.
func (c *Config) check(src source) error {
	for _, check := range []func(source) error{
		c.checkTop, c.checkGRPC, c.checkDNS, c.checkWorker, c.checkRegistries, c.checkSystem,
	} {
		if err := check(src); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) checkTop(src source) error {
	for _, e := range c.Entitlements {
		if !slices.Contains(Entitlements(), e) {
			return src.errorf([]string{"insecure-entitlements"}, "invalid entitlement %q, expected %s", e, choice(Entitlements()))
		}
	}
	if err := CheckLog(c.Log); err != nil {
		return src.errorf([]string{"log"}, "%v", err)
	}
	if c.History != nil && c.History.MaxEntries != nil && *c.History.MaxEntries < 0 {
		return src.errorf([]string{"history", "maxEntries"}, "%d, expected a number of at least 0", *c.History.MaxEntries)
	}
	return nil
}

// CheckLog refuses formats and levels that there are none of.
func CheckLog(l Log) error {
	if l.Format != "" && l.Format != "text" && l.Format != "json" {
		return fmt.Errorf("unsupported log type %q, expected text or json", l.Format)
	}
	if _, err := l.Severity(); err != nil {
		return err
	}
	return nil
}

// Severity is the level of what is logged, of log/slog; trace is below debug.
func (l Log) Severity() (int, error) {
	switch strings.ToLower(l.Level) {
	case "panic", "fatal", "error":
		return 8, nil
	case "warn", "warning":
		return 4, nil
	case "info", "":
		return 0, nil
	case "debug":
		return -4, nil
	case "trace":
		return -8, nil
	}
	return 0, fmt.Errorf("unsupported log level: %q, expected error, warn, info, debug or trace", l.Level)
}

func (c *Config) checkGRPC(src source) error {
	for _, a := range c.GRPC.Address {
		if err := CheckAddress(a); err != nil {
			return src.errorf([]string{"grpc", "address"}, "%v", err)
		}
	}
	for name, id := range map[string]*int{"uid": c.GRPC.UID, "gid": c.GRPC.GID} {
		if id != nil && *id < 0 {
			return src.errorf([]string{"grpc", name}, "%d, expected an id of at least 0", *id)
		}
	}
	return nil
}

// CheckAddress refuses what no daemon can listen on.
func CheckAddress(address string) error {
	scheme, _, ok := strings.Cut(address, "://")
	if !ok {
		return fmt.Errorf("address %s does not contain proto, you meant unix://%s ?", address, address)
	}
	switch scheme {
	case "unix", "tcp", "fd":
		return nil
	}
	return fmt.Errorf("addr %s not supported, expected unix://PATH, tcp://HOST:PORT or fd://", address)
}

func (c *Config) checkDNS(src source) error {
	for _, s := range c.DNS.Nameservers {
		if _, err := netip.ParseAddr(s); err != nil {
			return src.errorf([]string{"dns", "nameservers"}, "bad nameserver address %q, expected an IP address", s)
		}
	}
	for key, values := range map[string][]string{"options": c.DNS.Options, "searchDomains": c.DNS.SearchDomains} {
		for _, v := range values {
			if v == "" || strings.ContainsAny(v, " \t\r\n") {
				return src.errorf([]string{"dns", key}, "%q, expected one word", v)
			}
		}
	}
	return nil
}

func (c *Config) checkWorker(src source) error {
	w := &c.Workers.OCI
	key := func(name string) []string { return []string{"worker", "oci", name} }
	if err := CheckNetworkMode(w.Mode); err != nil {
		return src.errorf(key("networkMode"), "%v", err)
	}
	if _, err := netip.ParsePrefix(w.BridgeSubnet); err != nil && w.BridgeSubnet != "" {
		return src.errorf(key("bridgeSubnet"), "bad subnet %q, expected a range such as 10.10.0.0/16", w.BridgeSubnet)
	}
	if err := CheckPlatforms(w.Platforms); err != nil {
		return src.errorf(key("platforms"), "%v", err)
	}
	for name, n := range map[string]int{"max-parallelism": w.MaxParallelism, "cniPoolSize": w.CNIPoolSize} {
		if n < 0 {
			return src.errorf(key(name), "%d, expected a number of at least 0", n)
		}
	}
	if err := CheckSnapshotter(w.Snapshotter); err != nil && w.ProxySnapshotter == "" {
		return src.errorf(key("snapshotter"), "%v", err)
	}
	return nil
}

// CheckNetworkMode refuses a mode of network that there is none of.
func CheckNetworkMode(mode string) error {
	switch mode {
	case "", "auto", "host", "cni", "bridge":
		return nil
	}
	return fmt.Errorf("invalid network mode: %q, expected auto, host, cni or bridge", mode)
}

// CheckSnapshotter refuses a snapshotter that there is none of.
func CheckSnapshotter(name string) error {
	switch name {
	case "", "auto", "overlayfs", "native", "fuse-overlayfs", "stargz":
		return nil
	}
	return fmt.Errorf("unknown snapshotter name: %q, expected auto, overlayfs or native", name)
}

// CheckPlatforms refuses what names no platform.
func CheckPlatforms(list []string) error {
	for _, p := range list {
		if _, err := platforms.Parse(p); err != nil {
			return fmt.Errorf("invalid platforms: %q, expected one such as linux/arm64: %w", p, err)
		}
	}
	return nil
}

// Subnet is the range of addresses that steps are to have, or the zero value
// where there is none that would do: Kiln needs 1024 addresses of IPv4.
func (n Network) Subnet() netip.Prefix {
	p, err := netip.ParsePrefix(n.BridgeSubnet)
	if err != nil || !p.Addr().Is4() || p.Bits() > 22 {
		return netip.Prefix{}
	}
	return p.Masked()
}

func (c *Config) checkRegistries(src source) error {
	for host, r := range c.Registries {
		key := func(name string) []string { return []string{"registry", host, name} }
		if host == "" || strings.ContainsAny(host, "/ ") {
			return src.errorf([]string{"registry", host}, "%q, expected a host such as docker.io or localhost:5000", host)
		}
		for _, m := range r.Mirrors {
			if host, _ := SplitMirror(m); host == "" || strings.ContainsAny(m, " ?#@") || strings.HasSuffix(host, ":") {
				return src.errorf(key("mirrors"), "%q, expected HOST[:PORT][/PATH]", m)
			}
		}
		for _, p := range r.KeyPairs {
			if p.Key == "" || p.Cert == "" {
				return src.errorf(key("keypair"), "expected both key and cert")
			}
		}
	}
	return nil
}

// SplitMirror takes a mirror apart: the host, and a path or "". A scheme before
// it says nothing, as with BuildKit: how to speak to a host is its own section's
// to say.
func SplitMirror(mirror string) (host, path string) {
	mirror = strings.TrimPrefix(strings.TrimPrefix(mirror, "https://"), "http://")
	host, path, _ = strings.Cut(mirror, "/")
	return host, strings.Trim(path, "/")
}

func (c *Config) checkSystem(src source) error {
	if n := c.System.MaxRegistryConcurrency; n != nil && *n <= 0 {
		return src.errorf([]string{"system", "maxRegistryConcurrency"},
			"maxRegistryConcurrency must be greater than zero; set to %d in the configuration file", *n)
	}
	return nil
}

// ParseSwitch reads "true", "false" or "auto", which is nil.
func ParseSwitch(text string) (*bool, error) {
	if text == "" || strings.EqualFold(text, "auto") {
		return nil, nil
	}
	b, err := strconv.ParseBool(text)
	if err != nil {
		return nil, fmt.Errorf("%q, expected true, false or auto", text)
	}
	return &b, nil
}

// choice lists values as a sentence does.
func choice(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	last := len(values) - 1
	return strings.Join(values[:last], ", ") + " or " + values[last]
}
