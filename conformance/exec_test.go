package conformance

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"

	"github.com/kiln-build/kiln/conformance/peer"
)

// execCase is a command whose output must be the same on both daemons.
type execCase struct {
	script string
	opts   []llb.RunOption
	root   llb.StateOption // changes the base; nil for none
	fails  string          // in the error of the command; "" if it ends well
}

func execCases(unique string) map[string]execCase {
	data := llb.Scratch().File(llb.Mkdir("/sub", 0o755).Mkfile("/sub/file", 0o644, []byte("content")).Mkfile("/top", 0o600, nil))
	users := func(st llb.State) llb.State {
		return st.File(llb.Mkdir("/etc", 0o755).
			Mkfile("/etc/passwd", 0o644, []byte("root:x:0:0::/root:/bin/sh\nmaker:x:1000:1001::/home/maker:/bin/sh\n")).
			Mkfile("/etc/group", 0o644, []byte("root:x:0:\nmakers:x:1001:\nextra:x:7:maker\n")))
	}
	cases := map[string]execCase{
		"environment": {script: "env | busybox sed 's/^TRACEPARENT=00-[0-9a-f]\\{32\\}-[0-9a-f]\\{16\\}-01$/TRACEPARENT/' | busybox sort", opts: []llb.RunOption{llb.AddEnv("B", "two words"), llb.AddEnv("A", "")}},
		"default path": {script: "echo $PATH; echo ${HOME-none}", root: func(st llb.State) llb.State {
			return llb.Scratch().File(llb.Copy(st, "/", "/"))
		}},
		"user by name":       {script: "id -u; id -g; id -G; echo $HOME", root: users, opts: []llb.RunOption{llb.User("maker")}},
		"user and group":     {script: "id -u; id -g; id -G", root: users, opts: []llb.RunOption{llb.User("maker:extra")}},
		"user by number":     {script: "id -u; id -g; id -G", root: users, opts: []llb.RunOption{llb.User("1000")}},
		"user unknown":       {script: "id -u", root: users, opts: []llb.RunOption{llb.User("nobody-here")}, fails: "nobody-here"},
		"directory":          {script: "pwd; ls -ld . | busybox awk '{print $1, $3, $4}'", opts: []llb.RunOption{llb.Dir("/made/for/this")}},
		"relative directory": {script: "pwd", root: func(st llb.State) llb.State { return st.Dir("some/where") }},
		"hostname":           {script: "busybox hostname; busybox head -n 1 /etc/hosts", opts: []llb.RunOption{llb.Hostname("named")}},
		"default name":       {script: "busybox hostname; cat /etc/hosts"},
		"hosts":              {script: "busybox grep some /etc/hosts", opts: []llb.RunOption{llb.AddExtraHost("some.host", []byte{1, 2, 3, 4})}},
		"no network":         {script: "ls /sys/class/net", opts: []llb.RunOption{llb.Network(llb.NetModeNone)}},
		"ulimit":             {script: "ulimit -Sn; ulimit -Hn", opts: []llb.RunOption{llb.AddUlimit(llb.UlimitNofile, 123, 456)}},
		"proxy":              {script: "env | busybox grep -i proxy | busybox sort", opts: []llb.RunOption{llb.WithProxy(llb.ProxyEnv{HTTPProxy: "http://p:1", NoProxy: "localhost", AllProxy: "a"})}},
		"capabilities":       {script: "busybox grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status"},
		"exit code":          {script: "exit 7", fails: "exit code: 7"},
		"valid code":         {script: "echo kept; exit 7", opts: []llb.RunOption{llb.ValidExitCodes(7, 9)}},
		"invalid zero":       {script: "exit 0", opts: []llb.RunOption{llb.ValidExitCodes(7)}, fails: "exit code: 0"},
		"host network":       {script: "true", opts: []llb.RunOption{llb.Network(llb.NetModeHost)}, fails: "network.host is not allowed"},
		"insecure":           {script: "true", opts: []llb.RunOption{llb.Security(llb.SecurityModeInsecure)}, fails: "security.insecure is not allowed"},
		"device":             {script: "true", opts: []llb.RunOption{llb.AddCDIDevice(llb.CDIDeviceName("no.such/device=x"))}, fails: `"no.such/device=x" is not registered`},
		"optional device":    {script: "echo ran", opts: []llb.RunOption{llb.AddCDIDevice(llb.CDIDeviceName("no.such/device=x"), llb.CDIDeviceOptional)}},

		"bind":        {script: "cat /m/sub/file; echo x > /m/new; ls /m", opts: []llb.RunOption{llb.AddMount("/m", data)}},
		"part":        {script: "cat /m/file; ls /m; (echo x > /m/y) 2>&1 | busybox grep -o Read-only", opts: []llb.RunOption{llb.AddMount("/m", data, llb.SourcePath("/sub"), llb.Readonly)}},
		"one file":    {script: "cat /m", opts: []llb.RunOption{llb.AddMount("/m", data, llb.SourcePath("sub/file"), llb.Readonly)}},
		"part beyond": {script: "ls /m", opts: []llb.RunOption{llb.AddMount("/m", data, llb.SourcePath("../../../sub"), llb.Readonly)}},
		"no part":     {script: "true", opts: []llb.RunOption{llb.AddMount("/m", data, llb.SourcePath("none"), llb.ForceNoOutput)}, fails: "none"},
		"not kept":    {script: "echo x > /m/new; ls /m", opts: []llb.RunOption{llb.AddMount("/m", data, llb.ForceNoOutput)}},
		"relative":    {script: "cat /w/rel/top; ls /w/rel", opts: []llb.RunOption{llb.Dir("/w"), llb.AddMount("rel", data)}},
		"in a mount":  {script: "ls /m /m/sub", opts: []llb.RunOption{llb.AddMount("/m/sub/deep", data), llb.AddMount("/m", data)}},
		"read-only root": {script: "(echo x > /file) 2>&1 | busybox grep -o Read-only; echo x > /out2/x && echo written", opts: []llb.RunOption{
			llb.ReadonlyRootFS(), llb.AddMount("/out2", llb.Scratch())}},
		"tmpfs":            {script: "busybox df -k /t | busybox tail -1 | busybox awk '{print $1, $2, $6}'; ls -ld /t | busybox awk '{print $1}'", opts: []llb.RunOption{llb.AddMount("/t", llb.Scratch(), llb.Tmpfs(llb.TmpfsSize(1<<20)))}},
		"shm":              {script: "busybox df -k /dev/shm | busybox tail -1 | busybox awk '{print $2}'", opts: []llb.RunOption{llb.AddMount("/dev/shm", llb.Scratch(), llb.Tmpfs(llb.TmpfsSize(128<<20)))}},
		"system":           {script: "busybox mount | busybox awk '{print $3, $5}' | busybox grep -v '^/ \\|/proc/\\|/sys/\\|cgroup\\|^/out' | busybox sort"},
		"masked":           {script: "for f in /proc/kcore /proc/keys /proc/timer_list; do busybox head -c 9 $f | busybox wc -c; done; (echo 1 > /proc/sys/kernel/sysrq) 2>&1 | busybox wc -l"},
		"devices":          {script: "ls /dev | busybox sort"},
		"secret":           {script: "cat /run/s; busybox stat -c '%u %g %a' /run/s; busybox mount | busybox grep /run/s | busybox awk '{print $5}'", opts: []llb.RunOption{llb.AddSecret("/run/s", llb.SecretID("token"), llb.SecretFileOpt(5, 6, 0o640))}},
		"secret env":       {script: "echo $TOKEN-$OTHER", opts: []llb.RunOption{llb.AddSecret("TOKEN", llb.SecretID("token"), llb.SecretAsEnv(true)), llb.AddSecret("OTHER", llb.SecretID("none"), llb.SecretAsEnv(true), llb.SecretOptional)}},
		"optional secret":  {script: "ls /run 2>&1 | busybox wc -l", opts: []llb.RunOption{llb.AddSecret("/run/s", llb.SecretID("none"), llb.SecretOptional)}},
		"missing secret":   {script: "true", opts: []llb.RunOption{llb.AddSecret("/run/s", llb.SecretID("none"))}, fails: "none"},
		"missing variable": {script: "true", opts: []llb.RunOption{llb.AddSecret("S", llb.SecretID("none"), llb.SecretAsEnv(true))}, fails: "none"},
		"no agent":         {script: "true", opts: []llb.RunOption{llb.AddSSHSocket()}, fails: "default"}, // the id that the client has no agent for
		"optional agent":   {script: "echo $SSH_AUTH_SOCK; ls /run 2>&1 | busybox wc -l", opts: []llb.RunOption{llb.AddSSHSocket(llb.SSHOptional)}},
		"stubs": {script: "ls -a / | busybox grep -v '^out'", opts: []llb.RunOption{
			llb.AddMount("/s/t/u", data), llb.AddSecret("/run/secrets/x", llb.SecretID("token"))}},
		"cache seed": {script: "ls /c; echo new > /c/new", opts: []llb.RunOption{llb.AddMount("/c", data, llb.AsPersistentCacheDir("seed"+unique, llb.CacheMountShared))}},
		"cache part": {script: "ls /c", opts: []llb.RunOption{llb.AddMount("/c", data, llb.SourcePath("/sub"), llb.AsPersistentCacheDir("part"+unique, llb.CacheMountLocked))}},
		"cache of one owner": {script: "busybox stat -c '%u %g %a' /c; touch /c/x; ls /c", opts: []llb.RunOption{
			llb.AddMount("/c", llb.Scratch().File(llb.Mkdir("/cache", 0o710, llb.WithUIDGID(5, 6))), llb.SourcePath("/cache"), llb.AsPersistentCacheDir("own"+unique, llb.CacheMountShared))}},
		"parts of a cache": {script: "echo x > /sub/x; ls /whole /whole/sub", opts: []llb.RunOption{
			llb.AddMount("/whole", data, llb.AsPersistentCacheDir("parts"+unique, llb.CacheMountLocked)),
			llb.AddMount("/sub", data, llb.SourcePath("/sub"), llb.AsPersistentCacheDir("parts"+unique, llb.CacheMountLocked))}},
		"no part of a cache": {script: "true", opts: []llb.RunOption{
			llb.AddMount("/c", llb.Scratch(), llb.SourcePath("/none"), llb.AsPersistentCacheDir("none"+unique, llb.CacheMountShared))}, fails: "none"},
		"signal": {script: "sh -c 'kill -9 $$'; exit $?", fails: "exit code: 137"},
		"stdin":  {script: "cat; echo end"},
	}
	return cases
}

// TestExec runs commands with the options of LLB on both daemons: their output,
// what they leave and how they fail must be the same.
func TestExec(t *testing.T) {
	unique := time.Now().Format(".150405.000000")
	for name, c := range execCases(unique) {
		t.Run(name, func(t *testing.T) {
			kiln, kilnErr := runExec(t, shared.kiln, c)
			buildkit, buildkitErr := runExec(t, shared.buildkit, c)
			if kiln != buildkit {
				t.Errorf("Kiln's command wrote\n%swant, as BuildKit's,\n%s", kiln, buildkit)
			}
			for d, err := range map[string]error{"kiln": kilnErr, "buildkit": buildkitErr} {
				if err != nil && strings.HasPrefix(c.fails, "exit code") && !strings.HasPrefix(err.Error(), `process "/bin/sh -c `) {
					t.Errorf("%s: the failure is told as %q", d, err)
				}
				if (err == nil) != (c.fails == "") || err != nil && !strings.Contains(err.Error(), c.fails) {
					t.Errorf("%s: %v, want %q", d, err, c.fails)
				}
			}
		})
	}
}

// runExec returns what a command wrote, and the names of what it left.
func runExec(t *testing.T, d *peer.Daemon, c execCase) (out string, failure error) {
	t.Helper()
	err := asFrontend(t, d, func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		st := base()
		if c.root != nil {
			st = c.root(st)
		}
		run := st.Run(append([]llb.RunOption{
			llb.Args([]string{"/bin/sh", "-c", "exec > /out/w/text 2> /out/w/problems\n" + c.script}), llb.IgnoreCache,
		}, c.opts...)...)
		written := run.AddMount("/out", llb.Scratch().File(llb.Mkdir("/w", 0o777)))
		left, err := trySolve(t, ctx, gw, run.Root())
		if err != nil {
			failure = err
			return gateway.NewResult(), nil
		}
		ref := solve(t, ctx, gw, written)
		for _, name := range []string{"text", "problems"} {
			text, err := ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/w/" + name})
			if err != nil {
				t.Errorf("%s: read %s: %v", d.Name, name, err)
			}
			out += string(text)
		}
		entries, err := left.ReadDir(ctx, gateway.ReadDirRequest{Path: "/"})
		if err != nil {
			t.Errorf("%s: list: %v", d.Name, err)
		}
		for _, e := range entries {
			out += "left " + e.Path + "\n"
		}
		return gateway.NewResult(), nil
	})
	if err != nil {
		t.Errorf("%s: %v", d.Name, err)
	}
	return out, failure
}
