package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/llb"
	"github.com/kiln-build/kiln/llb/pb"
)

// TestStepsStayInside has steps try what has led out of builders before: each
// is refused or does no harm, and the daemon goes on.
func TestStepsStayInside(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	b.start()
	victim := filepath.Join(b.state.run, "victim")
	if err := os.MkdirAll(filepath.Join(victim, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "secret"} {
		if err := os.WriteFile(filepath.Join(victim, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b.write("id", "the secret\n")
	if err := os.WriteFile(filepath.Join(victim, "read-me"), []byte("TOP SECRET"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("mount points exchanged for links", func(t *testing.T) {
		b.exchangedMountPoints(t, victim)
	})
	t.Run("working directory of a leaked handle", func(t *testing.T) {
		b.leakedHandles(t, victim)
	})
	t.Run("folders of caches exchanged for links", func(t *testing.T) {
		b.exchangedCacheFolders(t, victim)
	})
	t.Run("user files", b.userFiles)
	t.Run("special files", b.specialFiles)
	t.Run("entitlements of containers", b.containerRights)
	t.Run("users and working directories of containers", func(t *testing.T) {
		b.containerProcesses(t, victim)
	})
	b.noPanic()
	b.write("Dockerfile", "FROM base\nARG N\nRUN echo $N > /n\n")
	b.tar("after")
}

// attempt builds a Dockerfile and returns what was shown.
func (b *builder) attempt(t *testing.T, dockerfile string, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(dockerfile), 0o644); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	out, err := b.command(append(append([]string{"build", "--progress=plain", "-o", "type=cacheonly"}, args...), dir)...).CombinedOutput()
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("the build took %v", took)
	}
	if strings.Contains(string(out), "internal error") || strings.Contains(string(out), "panic") {
		t.Errorf("%s", out)
	}
	return string(out), err
}

// exchangedMountPoints: what is cleared away after a step are the points that
// mounts were put on, not what the step has put in their place (CVE-2024-23652).
func (b *builder) exchangedMountPoints(t *testing.T, victim string) {
	for _, parent := range []string{"mv /a /old", "rm -rf /a || mv /a /old"} {
		out, err := b.attempt(t, "FROM base\nRUN --mount=type=tmpfs,target=/a/folder --mount=type=secret,id=id,target=/a/secret "+
			"--mount=type=bind,from=base,source=/bin/busybox,target=/a/file "+parent+" && ln -s "+victim+" /a && test -L /a && echo exchan''ged\n",
			"--secret", "id=id,src="+filepath.Join(b.dir, "id"))
		t.Logf("%s: %v", parent, err)
		if !strings.Contains(out, "exchanged") {
			t.Errorf("%s: nothing was exchanged:\n%s", parent, out)
		}
		for _, name := range []string{"folder", "file", "secret", "read-me"} {
			if _, err := os.Lstat(filepath.Join(victim, name)); err != nil {
				t.Errorf("%s: the machine's own file: %v", parent, err)
			}
		}
	}
}

// leakedHandles: no handle of the runtime or the daemon leads a step's working
// directory out (CVE-2024-21626).
func (b *builder) leakedHandles(t *testing.T, victim string) {
	var waiting sync.WaitGroup
	slots := make(chan struct{}, 4)
	for n := 3; n <= 20; n++ {
		slots <- struct{}{}
		waiting.Go(func() {
			defer func() { <-slots }()
			out, err := b.attempt(t, fmt.Sprintf("FROM base\nWORKDIR /proc/self/fd/%d\nRUN cat %s%s/read-me; cat ../../../../../../etc/shadow; echo r''an\n",
				n, strings.Repeat("../", 12), strings.TrimPrefix(victim, "/")))
			if strings.Contains(out, "TOP SECRET") || strings.Contains(out, "root:") {
				t.Errorf("through handle %d the machine's files were read:\n%s", n, out)
			}
			if err == nil && !strings.Contains(out, "ran") {
				t.Errorf("handle %d: the step neither ran nor failed:\n%s", n, out)
			}
		})
	}
	waiting.Wait()
}

// exchangedCacheFolders: a folder of a cache that a mount takes is in the cache,
// while another step exchanges it for a link, and back (CVE-2024-23651).
func (b *builder) exchangedCacheFolders(t *testing.T, victim string) {
	const mount = "--mount=type=cache,id=exchanged"
	out, err := b.attempt(t, "FROM base\nRUN "+mount+",target=/c mkdir /c/kept && ln -s "+victim+" /c/link && ln -s ../../../../../../../"+victim+" /c/up\n")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, source := range []string{"link", "up", "../..", "kept/../../.."} {
		out, err := b.attempt(t, "FROM base\nRUN "+mount+",source="+source+",target=/d cat /d/read-me; touch /d/written-"+filepath.Base(source)+"; ls /d\n")
		if strings.Contains(out, "TOP SECRET") {
			t.Errorf("source %q: the machine's file was read: %v\n%s", source, err, out)
		}
	}
	// The one step swaps as long as the others, one after the other, take the folder.
	ctx, cancel := context.WithCancel(t.Context())
	swapped := make(chan string, 1)
	go func() {
		out, _ := b.attempt(t, "FROM base\nRUN "+mount+",target=/c mkdir /c/sub; i=0; while [ $i -lt 40000 ]; do i=$((i+1)); [ -e /c/done ] && break; "+
			"mv /c/sub /c/was; ln -s "+victim+" /c/sub; rm /c/sub; mv /c/was /c/sub; done; rm -f /c/done; echo swapped $i times\n")
		swapped <- out
		cancel()
	}()
	took := 0
	for i := 0; (i < 10 || took == 0) && i < 80 && ctx.Err() == nil; i++ {
		out, _ := b.attempt(t, fmt.Sprintf("FROM base\nRUN %s,source=sub,target=/d cat /d/read-me; touch /d/written; echo to''ok %d\n", mount, i))
		if strings.Contains(out, "TOP SECRET") {
			t.Errorf("the machine's file was read:\n%s", out)
		}
		if strings.Contains(out, "took") {
			took++
		}
	}
	if out, err := b.attempt(t, "FROM base\nRUN "+mount+",target=/c touch /c/done\n"); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	if out := <-swapped; !regexp.MustCompile(`swapped \d+ times`).MatchString(out) || took == 0 {
		t.Errorf("%d steps took the folder, beside:\n%s", took, out)
	}
	for _, name := range []string{"written", "written-link", "written-up"} {
		if _, err := os.Lstat(filepath.Join(victim, name)); err == nil {
			t.Errorf("a step wrote the machine's %s", name)
		}
	}
}

// userFiles: a passwd or group file may be anything.
func (b *builder) userFiles(t *testing.T) {
	for name, spoil := range map[string]string{
		"pipe":        "mkfifo /etc/passwd",
		"device":      "mknod /etc/passwd c 1 5",
		"link out":    "ln -s ../../../../../../../../etc/passwd /etc/passwd && mkdir -p /proc/self",
		"device link": "mknod /zero c 1 5 && ln -s /zero /etc/passwd",
		"sparse":      "truncate -s 20G /etc/passwd",
		"folder":      "mkdir /etc/passwd",
		"group pipe":  "echo nobody:x:1:1::/: > /etc/passwd && mkfifo /etc/group",
	} {
		for _, use := range []string{"USER nobody:nogroup\nRUN true", "USER nobody\nCOPY --chown=nobody:nogroup Dockerfile /"} {
			out, err := b.attempt(t, "FROM base\nRUN mkdir -p /etc && rm -f /etc/passwd /etc/group && "+spoil+"\n"+use+"\n")
			if err == nil || !strings.Contains(out, "ERROR") && !strings.Contains(out, "error") {
				t.Errorf("%s, %q: the build went well:\n%s", name, use, out)
			}
		}
	}
}

// driven builds as the frontend of its own build, on the base image's files.
func (b *builder) driven(t *testing.T, f func(ctx context.Context, g *client.Gateway, base llb.State) error) error {
	t.Helper()
	return b.drivenWith(t, nil, f)
}

func (b *builder) drivenWith(t *testing.T, entitlements []string, f func(ctx context.Context, g *client.Gateway, base llb.State) error) error {
	t.Helper()
	c, err := client.New("unix://"+filepath.Join(b.state.run, "sock"), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	files := client.Attach{Dirs: map[string]string{"base": filepath.Dir(b.kiln)}}
	_, err = c.Build(ctx, client.SolveOpt{Attach: files, Entitlements: entitlements}, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		return nil, f(ctx, g, llb.Local("base", llb.IncludePatterns([]string{"context/busybox"})))
	}, discardEvents{})
	return err
}

// specialFiles: nothing that a client asks to read keeps the daemon waiting.
func (b *builder) specialFiles(t *testing.T) {
	err := b.driven(t, func(ctx context.Context, g *client.Gateway, base llb.State) error {
		const busybox = "/context/busybox "
		made := base.Run(llb.Args([]string{"/context/busybox", "sh", "-c", busybox + "mkfifo /pipe && " + busybox + "mknod /zero c 1 5 && " +
			busybox + "ln -s /pipe /link && " + busybox + "mkdir /folder && " + busybox + "ln -s /../../../../../../../../etc/passwd /out"})).Root()
		def, err := made.Marshal(ctx)
		if err != nil {
			return err
		}
		res, err := g.Solve(ctx, client.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		if err != nil {
			return err
		}
		for _, name := range []string{"/pipe", "/zero", "/link", "/folder", "/out", "/../../../../../../etc/passwd", "..", "", "/context/busybox/x"} {
			if text, err := res.Ref.ReadFile(ctx, name, nil); err == nil || ctx.Err() != nil || strings.Contains(err.Error(), "internal error") {
				t.Errorf("read %q: %.40q, %v", name, text, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// containerRights: what a step may not do without an entitlement, a process of
// a client's container may not either (CVE-2024-23653), and there is no way of
// being confined but those that are known (GHSA-7236-3392-c5c6).
func (b *builder) containerRights(t *testing.T) {
	err := b.driven(t, func(ctx context.Context, g *client.Gateway, base llb.State) error {
		def, err := base.Marshal(ctx)
		if err != nil {
			return err
		}
		res, err := g.Solve(ctx, client.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		if err != nil {
			return err
		}
		try := func(network pb.NetMode, security pb.SecurityMode) error {
			c, err := g.NewContainer(ctx, client.ContainerRequest{Mounts: []client.ContainerMount{{Dest: "/", Ref: res.Ref}}, Network: network})
			if err != nil {
				return err
			}
			p, err := c.Start(ctx, client.ProcessRequest{Args: []string{"/context/busybox", "true"}, Security: security})
			if err == nil {
				err = p.Wait()
			}
			if e := c.Release(ctx); e != nil {
				t.Error(e)
			}
			return err
		}
		if err := try(pb.NetMode_UNSET, pb.SecurityMode_SANDBOX); err != nil {
			t.Errorf("a process that may run: %v", err)
		}
		for want, err := range map[string]error{
			"network.host is not allowed":      try(pb.NetMode_HOST, pb.SecurityMode_SANDBOX),
			"security.insecure is not allowed": try(pb.NetMode_UNSET, pb.SecurityMode_INSECURE),
			"invalid security mode":            try(pb.NetMode_UNSET, pb.SecurityMode(2)),
			"invalid network mode":             try(pb.NetMode(9000), pb.SecurityMode_SANDBOX),
		} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// containerProcesses: what holds for the working directory and the user of a step holds
// for a process of a client's container (CVE-2024-21626, GHSA-72x6-4j93-7w86).
func (b *builder) containerProcesses(t *testing.T, victim string) {
	const busybox = "/context/busybox"
	err := b.driven(t, func(ctx context.Context, g *client.Gateway, base llb.State) error {
		run := func(spoil string, r client.ProcessRequest) (string, error) {
			def, err := base.Run(llb.Args([]string{busybox, "sh", "-c", strings.ReplaceAll(spoil, "BB", busybox)})).Root().Marshal(ctx)
			if err != nil {
				t.Fatal(err)
			}
			res, err := g.Solve(ctx, client.SolveRequest{Definition: def.ToPB(), Evaluate: true})
			if err != nil {
				t.Fatal(err)
			}
			c, err := g.NewContainer(ctx, client.ContainerRequest{Mounts: []client.ContainerMount{{Dest: "/", Ref: res.Ref}}})
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			r.Stdout, r.Stderr = &out, &out
			p, err := c.Start(ctx, r)
			if err == nil {
				err = p.Wait()
			}
			_ = c.Release(ctx) // tells once more how the process ended
			return out.String(), err
		}
		up := strings.Repeat("../", 12) + strings.TrimPrefix(victim, "/")
		for n := 3; n <= 20; n++ {
			out, err := run("true", client.ProcessRequest{Args: []string{busybox, "cat", up + "/read-me", "../../../../../../etc/shadow"}, Cwd: fmt.Sprintf("/proc/self/fd/%d", n)})
			if err == nil || strings.Contains(out, "TOP SECRET") || strings.Contains(out, "root:") {
				t.Errorf("through handle %d the machine's files were read: %v\n%s", n, err, out)
			}
		}
		for _, spoil := range []string{
			"BB mkfifo /etc/passwd", "BB mknod /etc/passwd c 1 5", "BB mknod /zero c 1 5; BB ln -s /zero /etc/passwd", "BB truncate -s 20G /etc/passwd",
		} {
			if _, err := run("BB mkdir -p /etc; "+spoil, client.ProcessRequest{Args: []string{busybox, "true"}, User: "nobody"}); err == nil || ctx.Err() != nil {
				t.Errorf("%s: a process ran as a user of that: %v", spoil, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestExportsStayInside gives exporters names that lead out of what they write.
func TestExportsStayInside(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	b.start()
	out := filepath.Join(b.state.run, "out")
	for i, id := range []string{"../x", `..\buildkit-outside`, "a/b", "..", ".", "/etc"} {
		dest := filepath.Join(out, fmt.Sprint(i))
		if err := b.exported(t, id, client.Export{Type: "local", Dir: dest}); err != nil {
			t.Errorf("platform %q: %v", id, err)
		}
		var archive bytes.Buffer
		if err := b.exported(t, id, client.Export{Type: "tar", Writer: &archive}); err != nil {
			t.Errorf("platform %q, tar: %v", id, err)
		}
		if marks, err := marksInside(&archive); err != nil || marks != 2 {
			t.Errorf("platform %q, tar: %d marks, %v", id, marks, err)
		}
		// Each platform has a folder of its own, however it is called.
		if marks, err := filepath.Glob(filepath.Join(dest, "*", "mark")); err != nil || len(marks) != 2 {
			t.Errorf("platform %q: %q, %v", id, marks, err)
		}
	}
	err := filepath.WalkDir(b.state.run, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(b.state.run, "root") { // has the results themselves
			return filepath.SkipDir
		}
		inside, err := filepath.Rel(out, path)
		if err == nil && d.Name() == "mark" && (strings.HasPrefix(inside, "..") || strings.Count(inside, "/") != 2) {
			t.Errorf("an export wrote %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	b.noPanic()
}

// marksInside counts the marks in folders of an archive, none of whose names leads out.
func marksInside(archive io.Reader) (marks int, err error) {
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return marks, nil
		}
		if err != nil {
			return marks, err
		}
		if name := strings.TrimSuffix(h.Name, "/"); !filepath.IsLocal(name) || filepath.Clean(name) != name {
			return marks, fmt.Errorf("entry %q leads out", h.Name)
		}
		if ok, err := filepath.Match("*/mark", h.Name); ok {
			marks++
		} else if err != nil {
			return marks, err
		}
	}
}

// exported has the result of a build with two platforms exported.
func (b *builder) exported(t *testing.T, id string, export client.Export) error {
	t.Helper()
	c, err := client.New("unix://"+filepath.Join(b.state.run, "sock"), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	opt := client.SolveOpt{Exports: []client.Export{export}}
	_, err = c.Build(t.Context(), opt, func(ctx context.Context, g *client.Gateway) (*client.BuildResult, error) {
		def, err := llb.Scratch().File(llb.Mkfile("/mark", 0o644, []byte("x"))).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		res, err := g.Solve(ctx, client.SolveRequest{Definition: def.ToPB()})
		if err != nil {
			return nil, err
		}
		return &client.BuildResult{
			Refs: map[string]*client.Reference{id: res.Ref, "linux/arm64": res.Ref},
			Metadata: map[string][]byte{"refs.platforms": fmt.Appendf(nil,
				`{"Platforms":[{"ID":%q,"Platform":{"architecture":"amd64","os":"linux"}},{"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}]}`, id)},
		}, nil
	}, discardEvents{})
	return err
}
