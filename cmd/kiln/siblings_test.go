package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/llb"
)

// TestSiblings has builds try what has led out of other builders and runtimes.
// Each subtest is named for what it was called when it was found.
func TestSiblings(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	b.start()
	victim := filepath.Join(b.state.run, "victim")
	if err := os.Mkdir(victim, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(victim, "read-me"), []byte("TOP SECRET"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, s := range siblings(victim) {
		t.Run(name, func(t *testing.T) {
			out, err := b.attempt(t, s.dockerfile)
			if s.says != "" && !strings.Contains(out, s.says) {
				t.Errorf("%v, want %q in\n%s", err, s.says, out)
			}
			if s.fails != (err != nil) {
				t.Errorf("the build ended with %v:\n%s", err, out)
			}
			if strings.Contains(out, "TOP SECRET") {
				t.Errorf("the machine's file was read:\n%s", out)
			}
			if left, err := os.ReadDir(victim); err != nil || len(left) != 1 {
				t.Errorf("the machine's folder holds %v, %v", left, err)
			}
		})
	}
	b.noPanic()
}

// sibling is a build that has broken another builder.
type sibling struct {
	dockerfile string
	fails      bool
	says       string // in what is shown
}

func siblings(victim string) map[string]sibling {
	up := strings.Repeat("../", 12) + strings.TrimPrefix(victim, "/")
	all := map[string]sibling{
		"CVE-2024-1753": { // a mount's source is a link to the root
			"FROM base AS evil\nRUN ln -s / /link && ln -s " + up + " /up\nFROM base\n" +
				"RUN --mount=type=bind,from=evil,source=/link,target=/m,rw ls /m && touch /m" + victim + "/written; cat /m" + victim + "/read-me; test -L /m/link && echo its-o''wn root\n",
			false, "its-own root",
		},
		"CVE-2024-1753 upwards": {
			"FROM base AS evil\nRUN ln -s " + up + " /up\nFROM base\nRUN --mount=type=bind,from=evil,source=/up,target=/m,rw cat /m/read-me\n",
			true, "no such file",
		},
		"CVE-2024-9407": { // options of mounts passed on to the runtime
			"FROM base\nRUN --mount=type=bind,bind-propagation=shared,target=/m true\n", true, "bind-propagation",
		},
		"CVE-2024-9675 source": { // a cache's folder leads upwards
			"FROM base\nRUN --mount=type=cache,id=c,source=" + up + ",target=/m cat /m/read-me; touch /m/written\n", true, "not found in the mount's source",
		},
		"CVE-2024-9675 id": { // its name does
			"FROM base\nRUN --mount=type=cache,id=" + up + ",target=/m cat /m/read-me; echo 1 > /m/file && echo a na''me\n", false, "a name",
		},
		"CVE-2026-41579": { // an image has /dev as a link, here to a folder of the machine's
			"FROM base AS made\nRUN mkdir /root-fs && cp -a /bin /root-fs/ && ln -s " + victim + " /root-fs/dev\n" +
				"FROM scratch\nCOPY --from=made /root-fs /\nENV PATH=/bin\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"echo x > /dev/null; touch /dev/x; echo r''an\"]\n",
			false, "",
		},
		"CVE-2023-28642": { // and /proc, or /sys
			"FROM base AS made\nRUN mkdir /root-fs && cp -a /bin /root-fs/ && ln -s " + victim + " /root-fs/proc && ln -s " + up + " /root-fs/sys\n" +
				"FROM scratch\nCOPY --from=made /root-fs /\nENV PATH=/bin\nRUN [\"/bin/busybox\", \"sh\", \"-c\", \"cat /proc/read-me /sys/read-me; touch /proc/x /sys/x\"]\n",
			true, "",
		},
		"CVE-2021-30465": { // a mount's place is below a link that leads out
			"FROM base\nRUN ln -s " + victim + " /out && ln -s " + up + " /up\n" +
				"RUN --mount=type=tmpfs,target=/out/t --mount=type=tmpfs,target=/up/u cat /out/read-me /up/read-me; touch /out/w /up/w; echo r''an\n",
			false, "ran",
		},
		"CVE-2026-46680": { // a user by number is that number, whoever is called so
			"FROM base\nRUN mkdir -p /etc && echo 1000:x:0:0::/: > /etc/passwd\nUSER 1000\nRUN echo uid=$(id -u)\n", false, "uid=1000",
		},
		"CVE-2022-2990": { // root is in no group that its files do not give it
			"FROM base\nRUN echo groups=$(id -G).\n", false, "groups=0.",
		},
		"CVE-2026-53488": { // what an image's labels say is nothing to the runtime
			"FROM base\nLABEL org.systemd.property.ExecStartPre=/bin/true run.oci.hooks.stderr=/x io.containerd.log.uri=binary:///bin/sh\nRUN echo r''an\n", false, "ran",
		},
		"a file through an absolute link": {
			"FROM base\nRUN mkdir /real && ln -s /real /abs\nCOPY Dockerfile /abs/new/file\nRUN test -f /real/new/file && test -L /abs && echo thr''ough\n", false, "through",
		},
	}
	// A number that 32 bits do not hold is nobody, and least of all root (CVE-2024-40635).
	for i, user := range []string{"4294967296", "4294967295", "-1", "0:4294967296", "99999999999999999999", "1:-1"} {
		all[fmt.Sprint("CVE-2024-40635 user ", i)] = sibling{"FROM base\nUSER " + user + "\nRUN echo uid=$(id -u)\n", true, ""}
		all[fmt.Sprint("CVE-2024-40635 owner ", i)] = sibling{"FROM base\nCOPY --chown=" + user + " Dockerfile /\n", true, ""}
	}
	return all
}

// TestWorkingFolder starts the daemon where somebody else may write: nothing of
// that folder is run, read or written (CVE-2020-27534).
func TestWorkingFolder(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	folder := filepath.Join(b.state.run, "folder")
	if err := os.Mkdir(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	ran := filepath.Join(b.state.run, "ran")
	planted := []string{"check", "git", "runc", "kiln-runc", "buildkit-runc", "qemu-aarch64", "buildkit-qemu-aarch64", "busybox", "newuidmap", "iptables", "sh", "ssh"}
	for _, name := range planted {
		if err := os.WriteFile(filepath.Join(folder, name), []byte("#!/bin/sh\necho $0 >> "+ran+"\nexit 1\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"buildkitd.toml", "kiln.toml"} { // would not be read if it were one
		if err := os.WriteFile(filepath.Join(folder, name), []byte("not toml ["), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.state.dir = folder
	b.start()
	b.write("Dockerfile", "FROM --platform=linux/arm64 scratch AS foreign\nCOPY Dockerfile /x\nFROM base\nARG N\nRUN echo $N > /n\nCOPY --from=foreign /x /x\n")
	b.tar("here")
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != len(planted)+2 {
		t.Errorf("the folder holds %v", entries)
	}
	if text, err := os.ReadFile(ran); err == nil {
		t.Errorf("of the folder, there ran\n%s", text)
	}
}

// TestGrantedNotAsked: what the daemon's configuration grants, a request has to
// ask for as well, for a step and for a client's container (CVE-2024-23653).
func TestGrantedNotAsked(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	b.state.flags = []string{"--allow-insecure-entitlement=security.insecure", "--allow-insecure-entitlement=network.host"}
	b.start()
	t.Run("containers", b.containerRights)
	for flag, want := range map[string]string{
		"--security=insecure": "security.insecure is not allowed",
		"--network=host":      "network.host is not allowed",
	} {
		out, err := b.attempt(t, "# syntax=docker/dockerfile:1-labs\nFROM base\nRUN "+flag+" true\n")
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v, want %q in\n%s", flag, err, want, out)
		}
	}
	// The same daemon lets those do it who ask.
	asked := false
	err := b.drivenWith(t, []string{"network.host"}, func(ctx context.Context, g *client.Gateway, base llb.State) error {
		asked = true
		st := base.Run(llb.Args([]string{"/context/busybox", "true"}), llb.Network(llb.NetModeHost)).Root()
		def, err := st.Marshal(ctx)
		if err != nil {
			return err
		}
		_, err = g.Solve(ctx, client.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		return err
	})
	if err != nil || !asked {
		t.Errorf("what is granted and asked for: %v", err)
	}
}
