package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/client/clienttest"
	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
	"github.com/kiln-build/kiln/internal/session/upload"
)

// kilnIn runs a command line in a directory, with the daemon at address.
func kilnIn(t *testing.T, dir, address string, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Chdir(dir)
	var out, errs bytes.Buffer
	e := &env{stdin: stdin, stdout: &out, stderr: &errs, getenv: func(k string) string {
		switch k {
		case "KILN_HOST":
			return address
		case "SOURCE_DATE_EPOCH":
			return "7"
		}
		return ""
	}}
	code = run(context.Background(), e, append([]string{"kiln"}, args...))
	return code, out.String(), errs.String()
}

// contextDir is a directory with a Dockerfile and more.
func contextDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile": "FROM scratch", "other": "FROM other", "other.dockerignore": "*", "sub/Dockerfile": "FROM sub", "secret": "s",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestRequest(t *testing.T) {
	var got *control.SolveRequest
	d := clienttest.Start(t, func(_ context.Context, b *clienttest.Build) (map[string]string, error) {
		got = b.Request
		return map[string]string{"containerimage.digest": "sha256:index", "containerimage.config.digest": "sha256:config"}, nil
	})
	t.Setenv("KILN_TEST_ARG", "from env")
	image := []*control.Exporter{{Type: "image", Attrs: map[string]string{}}}
	for _, tt := range []struct {
		args      []string
		attrs     map[string]string // besides the usual ones
		exporters []*control.Exporter
		allow     []string
	}{
		{nil, nil, image, nil},
		{[]string{"-t", "a", "--tag", "b"}, nil, []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": "a,b"}}}, nil},
		{[]string{"--push", "-t", "a"}, nil, []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": "a", "push": "true"}}}, nil},
		{
			[]string{"-o", "type=oci,dest=x.tar,compression=zstd", "-t", "a", "-o", "out", "--push"}, nil,
			[]*control.Exporter{
				{Type: "oci", Attrs: map[string]string{"name": "a", "compression": "zstd"}},
				{Type: "local", Attrs: map[string]string{}},
				{Type: "image", Attrs: map[string]string{"name": "a", "push": "true"}},
			}, nil,
		},
		{[]string{"-o", "-"}, nil, []*control.Exporter{{Type: "tar", Attrs: map[string]string{}}}, nil},
		{[]string{"-o", "type=cacheonly"}, nil, nil, nil},
		{[]string{"-o", `type=image,"name=a,b"`}, nil, []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": "a,b"}}}, nil},
		{
			[]string{"--build-arg", "A=1,2=3", "--build-arg", "KILN_TEST_ARG", "--build-arg", "KILN_TEST_UNSET", "--target", "t", "--label", "l=v", "--label", "empty"},
			map[string]string{"build-arg:A": "1,2=3", "build-arg:KILN_TEST_ARG": "from env", "target": "t", "label:l": "v", "label:empty": ""}, image, nil,
		},
		{[]string{"--build-arg", "SOURCE_DATE_EPOCH=9"}, map[string]string{"build-arg:SOURCE_DATE_EPOCH": "9"}, image, nil},
		{[]string{"--platform", "linux/amd64,linux/arm64", "--platform", "linux/s390x"}, map[string]string{"platform": "linux/amd64,linux/arm64,linux/s390x"}, image, nil},
		{
			[]string{"--attest", "type=sbom,generator=scan", "--attest", "type=provenance", "--provenance", "mode=max,version=v0.2"},
			map[string]string{"attest:sbom": "generator=scan", "attest:provenance": "mode=max,version=v0.2"}, image, nil,
		},
		{[]string{"--sbom", "true", "--attest", "type=provenance,mode=min", "--provenance", "false"}, map[string]string{"attest:sbom": ""}, image, nil},
		{
			[]string{"--provenance", "mode=max,disabled=true", "--attest", "type=sbom,disabled=false,generator=x"},
			map[string]string{"attest:sbom": "generator=x"}, image, nil,
		},
		{[]string{"--no-cache", "--pull"}, map[string]string{"no-cache": "", "image-resolve-mode": "pull"}, image, nil},
		{[]string{"--network", "host", "--allow", "security.insecure"}, map[string]string{"force-network-mode": "host"}, image, []string{"security.insecure", "network.host"}},
		{
			[]string{"--add-host", "a:1.2.3.4", "--add-host", "b=::1", "--ulimit", "nofile=1:2", "--shm-size", "1.5m"},
			map[string]string{"add-hosts": "a=1.2.3.4,b=::1", "ulimit": "nofile=1:2", "shm-size": "1572864"}, image, nil,
		},
		{
			[]string{"-m", "64m", "--resource", "memory-swap=-1", "--resource", "cpu-shares=5", "--resource", "cpuset-cpus=0-1"},
			map[string]string{"memory": "67108864", "memswap": "-1", "cpushares": "5", "cpusetcpus": "0-1"}, image, nil,
		},
		{[]string{"--build-context", "base=docker-image://alpine"}, map[string]string{
			"context:base": "docker-image://alpine", "frontend.caps": "moby.buildkit.frontend.contexts+forward",
		}, image, nil},
		{[]string{"--cache-from", "a/b"}, map[string]string{"cache-imports": `[{"Type":"registry","Attrs":{"ref":"a/b"}}]`}, image, nil},
		{[]string{"-f", "other"}, map[string]string{"filename": "other"}, image, nil},
		{[]string{"-f", "sub/Dockerfile"}, nil, image, nil},
		// As people write them for docker build.
		{[]string{"-qta", "-fother"}, map[string]string{"filename": "other"}, []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": "a"}}}, nil},
		{[]string{"-qt", "b", "-m=1k", "--"}, map[string]string{"memory": "1024"}, []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": "b"}}}, nil},
		{[]string{"-otype=oci,dest=x.tar"}, nil, []*control.Exporter{{Type: "oci", Attrs: map[string]string{}}}, nil},
		{[]string{"--build-arg", "-qt"}, nil, image, nil},
		{[]string{"-progress=quiet", "-tag", "a"}, nil, []*control.Exporter{{Type: "image", Attrs: map[string]string{"name": "a"}}}, nil},
		{[]string{"--rm", "--force-rm=true", "--compress", "--disable-content-trust"}, nil, image, nil},
		{
			[]string{"--memory-swap", "1k", "--cpu-shares", "5", "--cpuset-cpus=0", "--cgroup-parent", "/g"},
			map[string]string{"memswap": "1024", "cpushares": "5", "cpusetcpus": "0", "cgroup-parent": "/g"}, image, nil,
		},
		{[]string{"--add-host", "a:[::1]"}, map[string]string{"add-hosts": "a=::1"}, image, nil},
		{
			[]string{"--annotation", "a=b=c", "--annotation", "index,manifest[linux/amd64]:org.x=y"}, nil,
			[]*control.Exporter{{Type: "image", Attrs: map[string]string{
				"annotation-manifest.a": "b=c", "annotation-index.org.x": "y", "annotation-manifest[linux/amd64].org.x": "y",
			}}}, nil,
		},
	} {
		got = nil
		args := append(append([]string{"build", "--progress", "quiet"}, tt.args...), ".")
		code, _, stderr := kilnIn(t, contextDir(t), d.Address, nil, args...)
		if code != 0 || got == nil {
			t.Errorf("%q: exit code %d: %s", tt.args, code, stderr)
			continue
		}
		want := map[string]string{"filename": "Dockerfile", "build-arg:SOURCE_DATE_EPOCH": "7"}
		maps.Copy(want, tt.attrs)
		if !reflect.DeepEqual(got.GetFrontendAttrs(), want) {
			t.Errorf("%q: attributes %q, want %q", tt.args, got.GetFrontendAttrs(), want)
		}
		if len(got.GetExporters()) != len(tt.exporters) {
			t.Errorf("%q: outputs %v, want %v", tt.args, got.GetExporters(), tt.exporters)
			continue
		}
		for i, x := range got.GetExporters() {
			w := tt.exporters[i]
			if x.GetType() != w.GetType() || len(x.GetAttrs())+len(w.GetAttrs()) > 0 && !reflect.DeepEqual(x.GetAttrs(), w.GetAttrs()) {
				t.Errorf("%q: output %d is %v, want %v", tt.args, i, x, w)
			}
		}
		if !reflect.DeepEqual(got.GetEntitlements(), tt.allow) {
			t.Errorf("%q: entitlements %q, want %q", tt.args, got.GetEntitlements(), tt.allow)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"build"}, "needs a PATH"},
		{[]string{"build", "a", "b"}, "one PATH"},
		{[]string{"build", "Dockerfile"}, "kiln build -f Dockerfile ."},
		{[]string{"build", "missing"}, "no such file"},
		{[]string{"build", "-f", "dockerfil", "."}, "Did you mean -f Dockerfile?"},
		{[]string{"build", "--buidl-arg", "x", "."}, "Did you mean --build-arg?"},
		{[]string{"buil", "."}, `Did you mean "build"?`},
		{[]string{"build", "--progress", "x", "."}, "want auto, tty"},
		{[]string{"build", "-q", "--progress", "plain", "."}, "exclude"},
		{[]string{"build", "-o", "type=image,dest=x", "."}, "no dest"},
		{[]string{"build", "-o", "type=what", "."}, "unknown type"},
		{[]string{"build", "-o", "type=local", "."}, "dest=DIR"},
		{[]string{"build", "-o", "dest=x", "."}, "want type="},
		{[]string{"build", "-o", "type=local,dest=x,mode=y", "."}, "copy or delete"},
		{[]string{"build", "-o", "-", "-o", "type=oci", "."}, "standard output"},
		{[]string{"build", "--push", "."}, "no name"},
		{[]string{"build", "--secret", "src=x", "."}, "want id="},
		{[]string{"build", "--secret", "id=x,what=y", "."}, "unknown key"},
		{[]string{"build", "--ssh", "default", "."}, "SSH_AUTH_SOCK"},
		{[]string{"build", "--ssh", "k=secret", "."}, "no socket"},
		{[]string{"build", "--network", "what", "."}, "want default, none or host"},
		{[]string{"build", "--allow", "all", "."}, "want network.host"},
		{[]string{"build", "--shm-size", "much", "."}, "want a number"},
		{[]string{"build", "--add-host", "x", "."}, "want HOST=IP"},
		{[]string{"build", "--build-arg", "=x", "."}, "want NAME=VALUE"},
		{[]string{"build", "--build-context", "x", "."}, "want NAME=VALUE"},
		{[]string{"build", "--build-context", "x=missing", "."}, "no directory"},
		{[]string{"build", "--build-context", "x=oci-layout://sub", "."}, "OCI layout"},
		{[]string{"build", "--no-cache", "--no-cache-filter", "x", "."}, "exclude"},
		{[]string{"build", "-t", "UPPER", "."}, "must be lowercase"},
		{[]string{"build", "-t", "a:b:c", "."}, "want [HOST/]NAME[:TAG]"},
		{[]string{"build", "-t", "a@sha256:" + strings.Repeat("0", 64), "."}, "leave it out"},
		{[]string{"build", "--add-host", "a:host-gateway", "."}, "give the address"},
		{[]string{"build", "--add-host", "a:b", "."}, "no IP address"},
		{[]string{"build", "--load", "."}, "docker load"},
		{[]string{"build", "--builder", "x", "."}, "KILN_HOST"},
		{[]string{"build", "--squash", "."}, "FROM scratch"},
		{[]string{"build", "-D", "."}, "no -D: "},
		{[]string{"build", "-qz", "."}, "unknown flag --qz"},
		{[]string{"build", "--pull=always", "."}, `--pull "always": want true or false`},
		{[]string{"build", ".", "-t"}, "-t needs a value"},
		{[]string{"daemon", "--idle-timeout", "soon"}, `"soon": want a duration`},
		{[]string{"build", "--provenance=foo", "."}, "want true, false or KEY=VALUE"},
		{[]string{"build", "--secret", "x", "."}, "want id=NAME"},
		{[]string{"build", "--annotation", "x", "."}, "want [TYPE:]KEY=VALUE"},
		{[]string{"build", "--annotation", "what:x=y", "."}, "unknown type"},
		{[]string{"build", "--annotation", "x=y", "-o", "out", "."}, "no output is an image"},
		{[]string{"build", "-f", "-", "-"}, "standard input"},
		{[]string{"build", "-f", "-", "."}, "is empty"},
		{[]string{"build", "-o", "Dockerfile", "."}, "-o Dockerfile: Dockerfile is a file: want a directory, or type=tar,dest=Dockerfile"},
		{[]string{"build", "-o", "type=local,dest=Dockerfile", "."}, "is a file: want a directory"},
		{[]string{"build", "--memory", "1x", "."}, `--memory: size "1x"`},
		{[]string{"build", "--resource", "memory=1x", "."}, `--resource memory=1x: size "1x"`},
		{[]string{"build", "--resource", "ram=1", "."}, "--resource ram=1: want KEY=VALUE with one of the keys cpu-period"},
		{[]string{"build", "--cache-from", "type=registry", "."}, "want its name, ref=HOST/NAME"},
		{[]string{"build", "--cache-from", "type=local,dest=x", "."}, "want its folder, src=DIR"},
		{[]string{"build", "--cache-to", "type=local,src=x", "."}, "want its folder, dest=DIR"},
		{[]string{"--tlsdir", "sub", "build", "."}, "--tlsdir sub: directory did not contain one of the needed files: ca.pem or ca.crt"},
		{[]string{"daemon", "--executor", "x"}, "want oci or fake"},
		{[]string{"daemon", "--snapshotter", "x"}, "want auto"},
		{[]string{"du", "x"}, "unexpected argument"},
		{[]string{"prune", "--max-used-space", "x"}, "want a number"},
		{[]string{"debug", "dump-lb"}, `Did you mean "dump-llb"?`},
	} {
		code, _, stderr := kilnIn(t, contextDir(t), "unix:///nonexistent", strings.NewReader(""), tt.args...)
		if code != exitUsage || !strings.Contains(stderr, tt.want) {
			t.Errorf("kiln %q: exit code %d, %q, want %d and %q", tt.args, code, stderr, exitUsage, tt.want)
		}
	}
	if code, _, stderr := kilnIn(t, contextDir(t), "unix:///nonexistent", strings.NewReader("no LLB"), "build"); code != exitUsage ||
		!strings.Contains(stderr, "want LLB there, or a PATH") {
		t.Errorf("something else than LLB: exit code %d, %s", code, stderr)
	}
	if code, _, stderr := kilnIn(t, contextDir(t), "unix:///nonexistent", nil, "build", "."); code != exitDaemon {
		t.Errorf("without a daemon: exit code %d, %s", code, stderr)
	}
}

func TestReports(t *testing.T) {
	d := clienttest.Start(t, func(context.Context, *clienttest.Build) (map[string]string, error) {
		return map[string]string{
			"containerimage.digest": "sha256:index", "containerimage.config.digest": "sha256:config",
			"containerimage.descriptor": "eyJzaXplIjogMX0=",
		}, nil
	})
	dir := contextDir(t)
	code, stdout, stderr := kilnIn(t, dir, d.Address, nil, "build", "-q", "--iidfile", "id", "--metadata-file", "meta", ".")
	if code != 0 || stdout != "sha256:config\n" || stderr != "" {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "id")); err != nil || string(got) != "sha256:config" {
		t.Errorf("--iidfile %q, %v", got, err)
	}
	meta, err := os.ReadFile(filepath.Join(dir, "meta"))
	if err != nil || !strings.Contains(string(meta), `"size": 1`) || !strings.Contains(string(meta), `"containerimage.digest": "sha256:index"`) {
		t.Errorf("--metadata-file %s, %v", meta, err)
	}
	if code, _, stderr := kilnIn(t, dir, d.Address, nil, "build", "-q", "--iidfile", "missing/id", "."); code != exitFailed || !strings.Contains(stderr, "--iidfile") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// What stands on standard input decides what it is.
func TestStdin(t *testing.T) {
	var tarHead = append(append(make([]byte, 257), "ustar"...), make([]byte, 1000)...)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(tarHead); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	var request *control.SolveRequest
	var uploaded []byte
	d := clienttest.Start(t, func(ctx context.Context, b *clienttest.Build) (map[string]string, error) {
		request, uploaded = b.Request, nil
		r, err := upload.Open(sessiontest.Context(ctx, b.Client), "/context")
		if err == nil {
			uploaded, err = io.ReadAll(r)
		}
		if strings.HasPrefix(b.Request.GetFrontendAttrs()["context"], "http://buildkit-session/") && err != nil {
			return nil, err
		}
		return nil, nil
	})
	for name, tt := range map[string]struct {
		in       []byte
		args     []string
		archive  bool
		fileName string
	}{
		"dockerfile":      {[]byte("FROM scratch\n"), []string{"-"}, false, "Dockerfile"},
		"tar":             {tarHead, []string{"-"}, true, ""},
		"gzip":            {zipped.Bytes(), []string{"-"}, true, ""},
		"tar and file":    {tarHead, []string{"-f", "a/b", "-"}, true, "a/b"},
		"dockerfile only": {[]byte("FROM scratch\n"), []string{"-f", "-", "."}, false, "Dockerfile"},
	} {
		code, _, stderr := kilnIn(t, contextDir(t), d.Address, bytes.NewReader(tt.in), append([]string{"build", "--progress=quiet"}, tt.args...)...)
		if code != 0 {
			t.Errorf("%s: exit code %d, %s", name, code, stderr)
			continue
		}
		if got := request.GetFrontendAttrs()["filename"]; got != tt.fileName {
			t.Errorf("%s: Dockerfile %q, want %q", name, got, tt.fileName)
		}
		if archive := bytes.Equal(uploaded, tt.in); archive != tt.archive {
			t.Errorf("%s: an archive was uploaded: %v, want %v", name, archive, tt.archive)
		}
	}
}

func TestInterruptible(t *testing.T) {
	codes := make(chan int, 1)
	ctx, stop := interruptible(context.Background(), 1, func(code int) { codes <- code })
	defer stop()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	if len(codes) > 0 {
		t.Fatal("the first interrupt ends the program")
	}
	if err := self.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := <-codes; code != exitCanceled {
		t.Errorf("exit code %d, want %d", code, exitCanceled)
	}
}

// An interrupt does not wait for standard input.
func TestInterruptStdin(t *testing.T) {
	in, out := io.Pipe()
	defer out.Close()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	var errs bytes.Buffer
	e := &env{stdin: in, stdout: io.Discard, stderr: &errs, getenv: func(string) string { return "" }}
	if code := run(ctx, e, []string{"kiln", "build", "-"}); code != exitCanceled {
		t.Errorf("exit code %d, %s", code, errs.String())
	}
}

func TestParseSecret(t *testing.T) {
	t.Setenv("KILN_TEST_TOKEN", "x")
	for in, want := range map[string][3]string{
		"id=a,src=f":            {"a", "f", ""},
		"id=a,source=f":         {"a", "f", ""},
		"id=a,env=E":            {"a", "", "E"},
		"id=a,type=env,src=E":   {"a", "", "E"},
		"id=KILN_TEST_TOKEN":    {"KILN_TEST_TOKEN", "", "KILN_TEST_TOKEN"},
		"id=unset":              {"unset", "unset", ""},
		"type=file,id=a,src=b":  {"a", "b", ""},
		`"id=a","src=with,two"`: {"a", "with,two", ""},
	} {
		s, err := parseSecret(in)
		if got := [3]string{s.ID, s.File, s.Env}; err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "10": 10, "64m": 64 << 20, "1.5GiB": 3 << 29, "2kb": 2048, "1 T": 1 << 40} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("%s: %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "m", "-1", "1x", "1mm", "9999999p", "nan", "inf"} {
		if got, err := parseSize(in); err == nil {
			t.Errorf("%q: %d", in, got)
		}
	}
}
