package oci_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kiln-build/kiln/internal/executor/executortest"
	"github.com/kiln-build/kiln/internal/executor/oci"
)

func TestDevices(t *testing.T) {
	dir, shared := t.TempDir(), t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(shared, "lib"), "from the machine")
	write(filepath.Join(dir, "good.yaml"), `
cdiVersion: "0.6.0"
kind: "vendor.com/device"
devices:
- name: foo
  containerEdits:
    env: ["FOO=injected"]
    deviceNodes: [{path: /dev/foo, hostPath: /dev/zero}]
    mounts: [{hostPath: `+shared+`, containerPath: /opt/vendor, options: [ro, bind]}]
- name: bar
  containerEdits:
    env: ["BAR=injected"]
annotations:
  org.mobyproject.buildkit.device.autoallow: true
`)
	write(filepath.Join(dir, "other.json"), `{"cdiVersion": "0.6.0", "kind": "other.com/device", "devices": [{"name": "x", "containerEdits": {"env": ["X=1"]}}]}`)
	write(filepath.Join(dir, "bad.yaml"), "nonsense: [")
	devices, err := oci.OpenDevices([]string{dir}, []string{"other.com/device"})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range devices.Devices() {
		names = append(names, d.Name)
		if !d.AutoAllow {
			t.Errorf("%s is not allowed unasked", d.Name)
		}
	}
	if got := strings.Join(names, " "); got != "other.com/device=x vendor.com/device=bar vendor.com/device=foo" {
		t.Errorf("found %s", got)
	}
	e := openWith(t, oci.Config{Devices: devices})
	spec := executortest.Spec(t, "echo $FOO-$BAR-$X; head -c 1 /dev/foo | wc -c; cat /opt/vendor/lib")
	spec.Devices = []string{"vendor.com/device=foo", "other.com/device=x"}
	executortest.MustPrint(t, e, spec, "injected--1\n1\nfrom the machine")
	if _, err := os.Lstat(filepath.Join(spec.Root, "opt")); !os.IsNotExist(err) {
		t.Errorf("the device's mount point is left: %v", err)
	}
	spec = executortest.SpecIn(spec.Root, "echo $FOO; [ ! -e /dev/foo ]")
	executortest.MustPrint(t, e, spec, "\n")
	spec = executortest.SpecIn(spec.Root, "true")
	spec.Devices = []string{"vendor.com/device=none"}
	if _, _, err := executortest.Finish(t, e, spec); err == nil || !strings.Contains(err.Error(), "vendor.com/device=none") {
		t.Errorf("a device that is not there: %v", err)
	}
	// Descriptions that come later are found.
	write(filepath.Join(dir, "late.yaml"), "cdiVersion: \"0.6.0\"\nkind: late.com/device\ndevices: [{name: y, containerEdits: {env: [\"Y=1\"]}}]\n")
	if got := len(devices.Devices()); got != 4 {
		t.Errorf("%d devices after one was added", got)
	}
}

// Folders of descriptions may come and go, and so do their devices.
func TestDeviceFoldersComeLate(t *testing.T) {
	dirs := []string{filepath.Join(t.TempDir(), "a"), filepath.Join(t.TempDir(), "b")}
	devices, err := oci.OpenDevices(dirs, nil)
	if err != nil {
		t.Fatal(err)
	}
	text := "cdiVersion: \"0.6.0\"\nkind: late.com/device\ndevices: [{name: x, containerEdits: {env: [\"X=1\"]}}]\n"
	for i, there := range []bool{false, true, true, false, false, true} {
		dir := dirs[i%len(dirs)]
		for _, d := range dirs {
			if err := os.RemoveAll(d); err != nil {
				t.Fatal(err)
			}
		}
		want := 0
		if there {
			want = 1
			if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(dir, "late.yaml"), []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if got := devices.Devices(); len(got) != want {
			t.Errorf("at %d there are %d devices, want %d", i, len(got), want)
		}
	}
}
