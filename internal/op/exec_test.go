package op

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/llb"
)

// An input counts by its content only where the process can see no more of it than
// what is mounted (BuildKit's cache/contenthash).
func TestExecInputsByContent(t *testing.T) {
	for _, c := range []struct {
		name  string
		mount llb.Mount
		want  bool
	}{
		{"root", llb.Mount{Dest: "/"}, false},
		{"read only", llb.Mount{Dest: "/a", Selector: "/sub", ReadOnly: true}, true},
		{"no output", llb.Mount{Dest: "/a", Selector: "/sub", Output: llb.None}, true},
		{"whole, writable", llb.Mount{Dest: "/a", Output: 1}, true},
		{"part, writable", llb.Mount{Dest: "/a", Selector: "/sub", Output: 1}, false},
		{"told not to", llb.Mount{Dest: "/a", ReadOnly: true, ContentCache: llb.ContentOff}, false},
		{"root, told to", llb.Mount{Dest: "/", ContentCache: llb.ContentOn}, true},
		{"a secret", llb.Mount{Dest: "/a", Kind: llb.MountSecret}, false},
	} {
		o := &execOp{op: &llb.ExecOp{Mounts: []llb.Mount{c.mount}}}
		if got := o.dep(0).Digest != nil; got != c.want {
			t.Errorf("%s: by content %v, want %v", c.name, got, c.want)
		}
	}
}

func TestEntitlementsAreAsked(t *testing.T) {
	host := &llb.ExecOp{Network: llb.NetHost}
	insecure := &llb.ExecOp{Security: llb.SecurityInsecure}
	for _, c := range []struct {
		op    *llb.ExecOp
		allow []string
		word  string // of the error; "" wants none
	}{
		{host, nil, EntitlementNetworkHost},
		{host, []string{EntitlementSecurityInsecure}, EntitlementNetworkHost},
		{host, []string{EntitlementNetworkHost}, ""},
		{insecure, nil, EntitlementSecurityInsecure},
		{insecure, []string{EntitlementSecurityInsecure}, ""},
		{&llb.ExecOp{Devices: []llb.CDIDevice{{Name: "vendor.com/gpu=0"}}}, nil, "vendor.com/gpu=0"},
		{&llb.ExecOp{}, nil, ""},
	} {
		_, err := newExecOp(base{&Worker{}, &llb.Vertex{Op: c.op}}, c.op, &Job{Entitlements: c.allow})
		if (err == nil) != (c.word == "") || err != nil && !strings.Contains(err.Error(), c.word) {
			t.Errorf("%+v allowed %q: %v", c.op, c.allow, err)
		}
	}
}

// theDevices are a machine's, for tests.
type theDevices []executor.Device

func (d theDevices) Devices() []executor.Device { return d }

func TestDevices(t *testing.T) {
	w := &Worker{Devices: theDevices{
		{Name: "v.com/gpu=0"}, {Name: "v.com/gpu=1"}, {Name: "v.com/net=a", AutoAllow: true},
		{Name: "w.com/x=1", Annotations: map[string]string{deviceClass: "fast"}},
	}}
	for _, c := range []struct {
		allow    string
		name     string
		optional bool
		want     string // devices, or after ! a part of the error
	}{
		{"", "v.com/net=a", false, "v.com/net=a"},
		{"", "v.com/gpu=0", false, "!device v.com/gpu=0 is requested by the build but not allowed"},
		{"", "v.com/gpu=*", false, "!devices v.com/gpu=0, v.com/gpu=1 are requested by the build but not allowed"},
		{"", "v.com/none=1", false, `!required device "v.com/none=1" is not registered`},
		{"", "v.com/none=1", true, ""},
		{"device", "v.com/gpu=*", false, "v.com/gpu=0 v.com/gpu=1"},
		{"device", "v.com/gpu", false, "v.com/gpu=0"},
		{"device=v.com/gpu", "v.com/gpu=0", false, "v.com/gpu=0"},
		{"device=v.com/gpu", "v.com/gpu=1", false, "!not allowed"}, // the kind stands for its first
		{"device=v.com/gpu=1", "v.com/gpu=1", false, "v.com/gpu=1"},
		{"device=fast", "fast", false, "w.com/x=1"},
		{"device=v.com/gpu=1,alias=mine", "mine", false, "v.com/gpu=1"},
		{"device=v.com/gpu=1,alias=mine", "v.com/gpu=1", false, "!not allowed"},
		{"device=v.com/gpu=1,nonsense=mine", "mine", false, "!nonsense"},
	} {
		job := &Job{}
		if c.allow != "" {
			job.Entitlements = []string{c.allow}
		}
		got, err := w.devices(&llb.ExecOp{Devices: []llb.CDIDevice{{Name: c.name, Optional: c.optional}}}, "step", job)
		text := strings.Join(got, " ")
		if err != nil {
			text = "!" + err.Error()
		}
		if part, bad := strings.CutPrefix(c.want, "!"); bad && (err == nil || !strings.Contains(text, part)) || !bad && text != c.want {
			t.Errorf("%q allowed, %q wanted: %s, want %s", c.allow, c.name, text, c.want)
		}
	}
	if _, err := (&Worker{}).devices(&llb.ExecOp{Devices: []llb.CDIDevice{{Name: "x"}}}, "step", &Job{}); err == nil || !strings.Contains(err.Error(), "disabled") {
		t.Errorf("without support: %v", err)
	}
}

func TestForeignPlatformIsRefused(t *testing.T) {
	w := &Worker{Platforms: []ocispecs.Platform{{OS: "linux", Architecture: "amd64"}}}
	run := func(arch string) error {
		v := &llb.Vertex{Platform: &ocispecs.Platform{OS: "linux", Architecture: arch}}
		return (&execOp{base: base{w, v}, op: &llb.ExecOp{}}).runnable()
	}
	if err := run("amd64"); err != nil {
		t.Error(err)
	}
	if err := run("s390x"); err == nil || !strings.Contains(err.Error(), "linux/s390x") || !strings.Contains(err.Error(), "binfmt") {
		t.Errorf("s390x: %v", err)
	}
	v := &llb.Vertex{Platform: &ocispecs.Platform{OS: "windows", Architecture: "amd64"}}
	err := (&execOp{base: base{w, v}, op: &llb.ExecOp{}}).runnable()
	if err == nil || !strings.Contains(err.Error(), "a daemon on Windows") || strings.Contains(err.Error(), "binfmt") {
		t.Errorf("windows: %v", err)
	}
}

func TestProxyEnvHasBothCases(t *testing.T) {
	got := proxyEnv(&llb.ProxyEnv{HTTPProxy: "http://p:1", NoProxy: "localhost"})
	want := []string{"HTTP_PROXY=http://p:1", "http_proxy=http://p:1", "NO_PROXY=localhost", "no_proxy=localhost"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestProcessErrorNamesCommandAndCode(t *testing.T) {
	err := error(&ProcessError{Args: []string{"/bin/sh", "-c", "exit 7"}, Err: &executor.ExitError{Code: 7}})
	if want := `process "/bin/sh -c exit 7" did not complete successfully: exit code: 7`; err.Error() != want {
		t.Errorf("got %q", err)
	}
	var exit *executor.ExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("the code is lost: %v", exit)
	}
}

// A file op's inputs count by what is read of them, unless they are written to.
func TestFileInputsByContent(t *testing.T) {
	named := &llb.Ownership{User: &llb.Owner{Name: "www", Input: 0}}
	op := &llb.FileOp{Actions: []llb.FileStep{
		{Input: 0, Secondary: 1, Do: &llb.DoCopy{Src: "/a*", Wildcard: true, Owner: named}},
		{Input: 3, Secondary: 2, Do: &llb.DoCopy{Src: "b"}},
	}}
	o := &fileOp{base{}, op}
	if o.dep(0).Digest != nil {
		t.Error("what is written to counts by content")
	}
	if o.dep(1).Digest == nil || o.dep(2).Digest == nil {
		t.Error("what is copied from counts by definition")
	}
	if o.dep(1).Selector == o.dep(2).Selector {
		t.Error("two selections share a memo")
	}
	if got := reads(op.Actions[0], 0); len(got) != 1 || got[0].Path != "/etc/passwd" {
		t.Errorf("the owner's name is read from %+v", got)
	}
	if got := reads(op.Actions[1], 2); len(got) != 1 || got[0].Path != "/b" || got[0].Wildcard {
		t.Errorf("the copy reads %+v", got)
	}
}
