package oci

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/kiln-build/kiln/internal/executor"
)

// etcPaths are the files bound over a container's own in /etc.
type etcPaths struct{ hosts, resolvConf string }

// mounts are read-only: what a build writes to them would be lost without a word.
func (p etcPaths) mounts() []specs.Mount {
	options := []string{"rbind", "rprivate", "ro"}
	return []specs.Mount{
		{Destination: "/etc/resolv.conf", Type: "none", Source: p.resolvConf, Options: options},
		{Destination: "/etc/hosts", Type: "none", Source: p.hosts, Options: options},
	}
}

// maxResolvConf bounds what is read of the machine's resolv.conf.
const maxResolvConf = 1 << 20

// etcFiles makes hosts and resolv.conf. Runs share a file where they want the
// same text.
type etcFiles struct {
	dir  string
	dns  DNS
	host []string // where the machine's resolv.conf is; the first is the usual one

	mu    sync.Mutex
	stamp map[string]time.Time // generated file -> modification time of what it was made from
}

func newEtcFiles(dir string, dns DNS) (*etcFiles, error) {
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("clear generated files: %w", err)
	}
	// Users other than root read the files through the binds, not this path.
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make folder of generated files: %w", err)
	}
	return &etcFiles{
		dir: dir, dns: dns,
		host:  []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"},
		stamp: map[string]time.Time{},
	}, nil
}

// prepare gives the files for a run; bundle is where those go that no other
// run shares.
func (f *etcFiles) prepare(s executor.Spec, hostNetwork bool, bundle string) (etcPaths, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	resolv, err := f.resolvConf(hostNetwork)
	if err != nil {
		return etcPaths{}, err
	}
	if s.Hostname != "" || len(s.Hosts) > 0 {
		hosts := filepath.Join(bundle, "hosts")
		return etcPaths{hosts, resolv}, writeFile(hosts, hostsText(s))
	}
	hosts := filepath.Join(f.dir, "hosts")
	if _, made := f.stamp[hosts]; made {
		return etcPaths{hosts, resolv}, nil
	}
	if err := writeFile(hosts, hostsText(s)); err != nil {
		return etcPaths{}, err
	}
	f.stamp[hosts] = time.Time{}
	return etcPaths{hosts, resolv}, nil
}

// hostsText is /etc/hosts: localhost, the container's own name, and the lines
// asked for, in their order.
func hostsText(s executor.Spec) []byte {
	name := s.Hostname
	if name == "" {
		name = defaultHostname
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", name)
	for _, h := range s.Hosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.IP, h.Name)
	}
	return b.Bytes()
}

// resolvConf gives the generated file, made anew when the machine's has changed.
func (f *etcFiles) resolvConf(hostNetwork bool) (string, error) {
	out := filepath.Join(f.dir, "resolv.conf")
	if hostNetwork {
		out += ".host"
	}
	var changed time.Time // zero where the machine has no such file
	if info, err := os.Stat(f.host[0]); err == nil {
		changed = info.ModTime()
	}
	if last, made := f.stamp[out]; made && last.Equal(changed) {
		return out, nil
	}
	text, err := resolvText(f.host, f.dns, hostNetwork)
	if err != nil {
		return "", err
	}
	if err := writeFile(out, text); err != nil {
		return "", err
	}
	f.stamp[out] = changed
	return out, nil
}

// resolvText is the text of resolv.conf. A container with its own network does
// not reach name servers on the machine's loopback: those are left out, a
// systemd-resolved's own list is read in its place, and where no server is left
// public ones are named.
func resolvText(host []string, dns DNS, hostNetwork bool) ([]byte, error) {
	conf, err := readResolvConf(host[0])
	if err != nil {
		return nil, err
	}
	if !hostNetwork && len(conf.Nameservers) > 0 && len(withoutLoopback(conf.Nameservers)) == 0 {
		for _, other := range host[1:] {
			behind, err := readResolvConf(other)
			if err == nil && len(withoutLoopback(behind.Nameservers)) > 0 {
				conf = behind
				break
			}
		}
	}
	if !hostNetwork {
		conf.Nameservers = withoutLoopback(conf.Nameservers)
	}
	if len(conf.Nameservers) == 0 && !hostNetwork {
		conf.Nameservers = []string{"8.8.8.8", "8.8.4.4"}
	}
	if len(dns.Nameservers) > 0 {
		conf.Nameservers = dns.Nameservers
	}
	if len(dns.Search) > 0 {
		conf.Search = dns.Search
	}
	if len(dns.Options) > 0 {
		conf.Options = dns.Options
	}
	var b bytes.Buffer
	for _, server := range conf.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(conf.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(conf.Search, " "))
	}
	if len(conf.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(conf.Options, " "))
	}
	return b.Bytes(), nil
}

// readResolvConf reads resolv.conf(5); a file that is not there says nothing.
func readResolvConf(path string) (DNS, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return DNS{}, nil
	}
	if err != nil {
		return DNS{}, fmt.Errorf("read the machine's name servers: %w", err)
	}
	defer f.Close()
	var conf DNS
	lines := bufio.NewScanner(io.LimitReader(f, maxResolvConf))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			conf.Nameservers = append(conf.Nameservers, fields[1])
		case "search", "domain":
			conf.Search = fields[1:] // the last line counts
		case "options":
			conf.Options = append(conf.Options, fields[1:]...)
		}
	}
	if err := lines.Err(); err != nil {
		return DNS{}, fmt.Errorf("read the machine's name servers: %s: %w", path, err)
	}
	return conf, nil
}

func withoutLoopback(servers []string) []string {
	var out []string
	for _, s := range servers {
		address, err := netip.ParseAddr(s)
		if err == nil && address.IsLoopback() {
			continue
		}
		out = append(out, s)
	}
	return out
}

// writeFile replaces a file in one step: containers may have it mounted.
func writeFile(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return fmt.Errorf("write generated file: %w", err)
	}
	if err := os.Chmod(path+".new", 0o644); err != nil { // whatever the umask
		return fmt.Errorf("write generated file: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("write generated file: %w", err)
	}
	return nil
}
