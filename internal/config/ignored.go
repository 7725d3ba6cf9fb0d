package config

import (
	"fmt"
	"os"
)

// ignored tells of keys that are read and have no effect here, or have another
// name now.
func (c *Config) ignored(src source) []Warning {
	var out []Warning
	for _, k := range []struct {
		key    []string
		reason string
	}{
		{[]string{"debug"}, `is out of use: use log.level = "debug"`},
		{[]string{"trace"}, `is out of use: use log.level = "trace"`},
		{[]string{"grpc", "securityDescriptor"}, "has no effect: it is for Windows"},
		{[]string{"compaction"}, "has no effect: Kiln's database needs none"},
		{[]string{"cache", "gha", "sign"}, "has no effect: Kiln signs no cache"},
		{[]string{"cache", "gha", "verify"}, "has no effect: Kiln verifies no signature of caches"},
		{[]string{"system", "sessionAuthTimeout"}, "has no effect"},
		{[]string{"worker", "oci", "gckeepstorage"}, "is out of use: use reservedSpace"},
		{[]string{"worker", "oci", "gcpolicy", "keepBytes"}, "is out of use: use reservedSpace"},
		{[]string{"worker", "oci", "userRemapUnsupported"}, "has no effect"},
		{[]string{"worker", "oci", "proxySnapshotterPath"}, "has no effect: Kiln keeps its files itself"},
		{[]string{"worker", "oci", "stargzSnapshotter"}, "has no effect: Kiln keeps its files itself"},
		{[]string{"worker", "oci", "cniConfigPath"}, "has no effect: Kiln connects steps by a bridge of its own"},
		{[]string{"worker", "oci", "cniBinaryPath"}, "has no effect: Kiln connects steps by a bridge of its own"},
		{[]string{"worker", "oci", "bridgeName"}, "has no effect: Kiln names its bridge itself"},
	} {
		if src.has(k.key...) {
			out = append(out, Warning{Key: dotted(k.key), Text: src.at(k.key...) + " " + k.reason})
		}
	}
	if w := c.Workers.OCI; w.BridgeSubnet != "" && !w.Subnet().IsValid() {
		key := []string{"worker", "oci", "bridgeSubnet"}
		out = append(out, Warning{Key: dotted(key), Text: src.at(key...) + " has no effect: Kiln needs a range of at least 1024 addresses of IPv4"})
	}
	for host, r := range c.Registries {
		for _, file := range r.CAs {
			if _, err := os.Stat(file); err != nil { // it may come later: it is read when it is needed
				key := []string{"registry", host, "ca"}
				out = append(out, Warning{Key: dotted(key), Text: src.at(key...) + ": " + err.Error()})
			}
		}
	}
	if !src.has("worker", "containerd") {
		return out
	}
	w := Warning{Key: "worker.containerd", Text: src.at("worker", "containerd") +
		" has no effect: Kiln needs no containerd, its worker is configured by worker.oci"}
	if on := c.Workers.Containerd.Enabled; on != nil && !*on {
		return out // which is what there is
	}
	if on := c.Workers.OCI.Enabled; on != nil && !*on {
		w.Text = fmt.Sprintf("%s: the oci worker is turned off and containerd asked for: Kiln's own worker does the work",
			src.at("worker", "containerd"))
	}
	return append(out, w)
}
