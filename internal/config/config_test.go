package config

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestWhole decodes a file with every key and compares all of what is read.
func TestWhole(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "whole.toml"))
	if err != nil {
		t.Fatal(err)
	}
	c, warnings, err := Parse("whole.toml", text)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range warnings {
		got = append(append(got, '\n'), w.Text...)
	}
	got = append(got, '\n')
	golden := filepath.Join("testdata", "whole.golden")
	if os.Getenv("KILN_UPDATE") != "" {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("not as in %s; with KILN_UPDATE=1 it is made anew. Got:\n%s", golden, got)
	}
	// Every key must be in the file, so that none is forgotten here.
	lines := keyLines(text)
	eachKey(reflect.TypeFor[Config](), nil, func(key []string) {
		src := source{lines: lines}
		if !src.has(key...) {
			t.Errorf("whole.toml lacks %s", dotted(key))
		}
	})
}

// eachKey calls do with every key that a struct has a place for.
func eachKey(typ reflect.Type, key []string, do func([]string)) {
	eachField(typ, func(f reflect.StructField) {
		k := append(slices.Clone(key), f.Tag.Get("toml"))
		if k[0] == "registry" && len(k) == 1 {
			k = append(k, "docker.io")
		}
		do(k)
		if f.Type != reflect.TypeFor[DiskSpace]() {
			eachKey(f.Type, k, do)
		}
	})
}

func TestBad(t *testing.T) {
	for text, want := range map[string]string{
		"root = ":                                           "c.toml:1:",
		"\ndebug = \"x\"":                                   "c.toml:2: debug: this is a string, expected true or false",
		"[grpc]\naddress = 5":                               "c.toml:2: grpc.address: this is an integer, expected a list",
		"[grpc]\naddress = [5]":                             "c.toml:2: grpc.address: this is an integer, expected text in quotes",
		"root = \"a\"\nroot = \"b\"":                        "c.toml:2",
		"[grpc]\naddress = [\"x.sock\"]":                    `c.toml:2: grpc.address: address x.sock does not contain proto, you meant unix://x.sock ?`,
		"[grpc]\naddress = [\"http://x\"]":                  "c.toml:2: grpc.address: addr http://x not supported, expected unix://PATH, tcp://HOST:PORT or fd://",
		"[grpc]\ngid = -4":                                  "c.toml:2: grpc.gid: -4, expected an id of at least 0",
		"insecure-entitlements = [\"root\"]":                `c.toml:1: insecure-entitlements: invalid entitlement "root", expected network.host, security.insecure or device`,
		"[log]\nformat = \"xml\"":                           `c.toml:1: log: unsupported log type "xml", expected text or json`,
		"[log]\nlevel = \"loud\"":                           `unsupported log level: "loud"`,
		"[dns]\nnameservers = [\"one.one\"]":                `c.toml:2: dns.nameservers: bad nameserver address "one.one", expected an IP address`,
		"[dns]\noptions = [\"a\\nb\"]":                      `c.toml:2: dns.options: "a\nb", expected one word`,
		"[worker.oci]\nnetworkMode = \"x\"":                 `c.toml:2: worker.oci.networkMode: invalid network mode: "x"`,
		"[worker.oci]\nplatforms = [\"\"]":                  "c.toml:2: worker.oci.platforms: invalid platforms",
		"[worker.oci]\nmax-parallelism = -1":                "c.toml:2: worker.oci.max-parallelism: -1, expected a number of at least 0",
		"[worker.oci]\nmax-parallelism = \"4\"":             "c.toml:2: worker.oci.max-parallelism: this is a string, expected a whole number",
		"[worker.oci]\nsnapshotter = \"zfs\"":               `c.toml:2: worker.oci.snapshotter: unknown snapshotter name: "zfs"`,
		"[worker.oci]\nbridgeSubnet = \"10.0.0/24\"":        `c.toml:2: worker.oci.bridgeSubnet: bad subnet "10.0.0/24"`,
		"[worker.oci]\nreservedSpace = \"10 bananas\"":      "c.toml:2",
		"[worker.oci]\nreservedSpace = \"120%\"":            "invalid disk space 120%: expected 0% to 100%",
		"[worker.oci]\nreservedSpace = -5":                  "invalid disk space -5",
		"[[worker.oci.gcpolicy]]\nkeepDuration = \"later\"": "invalid duration later: expected a number of seconds",
		"[history]\nmaxAge = -1":                            "invalid duration -1",
		"[history]\nmaxEntries = -1":                        "c.toml:2: history.maxEntries: -1, expected a number of at least 0",
		"[system]\nmaxRegistryConcurrency = 0":              "maxRegistryConcurrency must be greater than zero; set to 0 in the configuration file",
		"[registry.\"docker.io\"]\nmirrors = [\"ftp://m\"]": `c.toml:2: registry."docker.io".mirrors: "ftp://m", expected HOST[:PORT][/PATH]`,
		"[[registry.\"x\".keypair]]\nkey = \"k\"":           `c.toml:1: registry.x.keypair: expected both key and cert`,
		"\xff":       "c.toml",
		"[a\n":       "c.toml:1:",
		"a = \"\x00": "c.toml:1:",
	} {
		_, _, err := Parse("c.toml", []byte(text))
		if err == nil {
			t.Errorf("%q is taken", text)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v\nwant %s", text, err, want)
		}
	}
	if _, _, err := Parse("c.toml", make([]byte, maxFile+1)); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a file without end: %v", err)
	}
}

func TestUnknownKeys(t *testing.T) {
	for text, want := range map[string]string{
		"rot = \"/x\"":                                    "c.toml:1: unknown key rot has no effect. Did you mean root?",
		"[worker.oci]\ngc-policy = 4":                     "c.toml:2: unknown key worker.oci.gc-policy has no effect. Did you mean worker.oci.gcpolicy?",
		"[worker.oci]\nmaxParallelism = 4":                "c.toml:2: unknown key worker.oci.maxParallelism has no effect. Did you mean worker.oci.max-parallelism?",
		"[registry.\"a.b\"]\ninsecur = true":              `c.toml:2: unknown key registry."a.b".insecur has no effect. Did you mean registry."a.b".insecure?`,
		"[gc]\nenabled = true":                            "unknown key gc",
		"[frontend.\"dockerfile.v1\"]\nenabled = true":    "Did you mean frontend.\"dockerfile.v0\"?",
		"[worker.containerd]\nenabled = true":             "c.toml:1: worker.containerd has no effect: Kiln needs no containerd, its worker is configured by worker.oci",
		"[worker.oci]\nbridgeSubnet = \"10.0.0.0/24\"":    "c.toml:2: worker.oci.bridgeSubnet has no effect: Kiln needs a range of at least 1024",
		"[registry.\"x\"]\nca = [\"/nothing/there.pem\"]": "c.toml:2: registry.x.ca: stat /nothing/there.pem: no such file",
		"debug = true":                                    `c.toml:1: debug is out of use: use log.level = "debug"`,
	} {
		_, warnings, err := Parse("c.toml", []byte(text))
		if err != nil {
			t.Errorf("%q: %v", text, err)
		} else if len(warnings) == 0 || !strings.Contains(warnings[0].Text, want) {
			t.Errorf("%q: warned of %q\nwant %s", text, warnings, want)
		}
	}
	_, warnings, err := Parse("c.toml", []byte("[worker.containerd]\nenabled = false\n"))
	if err != nil || len(warnings) > 0 {
		t.Errorf("what turns containerd off is warned of: %v %v", warnings, err)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := Load(filepath.Join(dir, "none"), true); err != nil {
		t.Error(err)
	}
	if _, _, err := Load(filepath.Join(dir, "none"), false); err == nil {
		t.Error("a file that must be there may be missing")
	}
	if _, _, err := Load(dir, true); err == nil {
		t.Error("a folder is taken for a file")
	}
}

// TestRules compares with what buildkitd v0.33.1 shows for disks of some sizes.
func TestRules(t *testing.T) {
	const tb = int64(1e12)
	for _, tc := range []struct {
		gc                      GC
		total                   int64
		reserved, maxUsed, free int64
	}{
		{GC{}, tb, 10e9, 100e9, 187e9},
		{GC{}, 50e9, 5e9, 38e9, 10e9},
		{GC{}, 0, 2e9, 2e9, 2e9},
		{GC{KeepSize: DiskSpace{Bytes: 7}}, tb, 7, 0, 0},
		{GC{MaxUsed: DiskSpace{Percent: 50}}, tb, 0, 466e9, 0},
	} {
		rules := tc.gc.Rules(tc.total)
		if len(rules) != 4 {
			t.Fatalf("%+v: %d rules", tc.gc, len(rules))
		}
		if first := rules[0]; first.MaxUsed.On(tc.total) != 512e6 || first.KeepFor.Duration != 48*time.Hour || len(first.Filters) != 3 {
			t.Errorf("first rule is %+v", first)
		}
		for i, r := range rules[1:] {
			if r.Reserved.On(tc.total) != tc.reserved || r.MaxUsed.On(tc.total) != tc.maxUsed || r.MinFree.On(tc.total) != tc.free {
				t.Errorf("%+v on %d: rule %d is %+v: %d %d %d", tc.gc, tc.total, i+1, r,
					r.Reserved.On(tc.total), r.MaxUsed.On(tc.total), r.MinFree.On(tc.total))
			}
			if r.All != (i == 2) || (r.KeepFor.Duration != 0) != (i == 0) {
				t.Errorf("rule %d is %+v", i+1, r)
			}
		}
	}
	off := false
	if rules := (GC{GC: &off}).Rules(tb); rules != nil {
		t.Errorf("a collection that is turned off has %v", rules)
	}
	own := GC{Policies: []Policy{{KeepSize: DiskSpace{Bytes: 5}}}}
	if rules := own.Rules(tb); len(rules) != 1 || rules[0].Reserved.Bytes != 5 {
		t.Errorf("own rules are %+v", rules)
	}
}

func TestKeepStorage(t *testing.T) {
	var g GC
	if err := g.ParseKeepStorage("100,200,300"); err != nil {
		t.Fatal(err)
	}
	if g.Reserved.Bytes != 100e6 || g.MinFree.Bytes != 200e6 || g.MaxUsed.Bytes != 300e6 || g.KeepStorage(0) != "100,200,300" {
		t.Errorf("limits are %+v, %s", g, g.KeepStorage(0))
	}
	if err := g.ParseKeepStorage("5"); err != nil || g.KeepStorage(0) != "5" {
		t.Errorf("limits are %+v, %v", g, err)
	}
	for _, text := range []string{"x", "1,x", "1,2,3,4", "-1", "99999999999999999999", ","} {
		if err := g.ParseKeepStorage(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

func TestDefaultPlaces(t *testing.T) {
	env := map[string]string{"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/5:/x"}
	p := DefaultPlaces(func(k string) string { return env[k] }, true)
	want := Places{
		File: "/home/u/.config/buildkit/buildkitd.toml", Root: "/home/u/.local/share/buildkit",
		Address: "unix:///run/user/5/buildkit/buildkitd.sock",
	}
	if p != want {
		t.Errorf("places are %+v", p)
	}
	if p = DefaultPlaces(func(k string) string { return env[k] }, false); p.File != "/etc/buildkit/buildkitd.toml" || p.Root != "/var/lib/buildkit" {
		t.Errorf("places are %+v", p)
	}
}

func FuzzParse(f *testing.F) {
	whole, err := os.ReadFile(filepath.Join("testdata", "whole.toml"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	for _, s := range []string{"", "a", "[worker.oci]\ngc = true", "[[worker.oci.gcpolicy]]\nkeepBytes = 5", "x.y.z = {a = [1]}", "[registry]\n\"\" = {}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c, _, err := Parse("fuzz.toml", text)
		switch {
		case err != nil && c != nil:
			t.Error("an error comes with a configuration")
		case err != nil && !strings.HasPrefix(err.Error(), "fuzz.toml"):
			t.Errorf("an error does not name the file: %v", err)
		case err == nil:
			for _, p := range c.Workers.OCI.Rules(1e12) {
				if p.KeepFor.Duration < 0 || p.Reserved.On(1e12) < 0 || p.MaxUsed.On(1e12) < 0 || p.MinFree.On(1e12) < 0 {
					t.Errorf("a rule is negative: %+v", p)
				}
			}
		}
	})
}
