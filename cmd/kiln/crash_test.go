package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var kills = flag.Int("kills", 50, "how often the tests of crashes kill the daemon")

const crashDockerfile = `FROM base AS one
ARG N
RUN mkdir /a && for i in 1 2 3 4 5 6 7 8 9; do echo $i > /a/$i; done
COPY tree /tree
FROM base AS two
ARG N
RUN echo two > /two
FROM one
RUN rm /a/5 && echo more > /a/10
COPY --from=two /two /two
RUN cat /two /a/* > /all
`

// TestKillAtAnyMoment kills the daemon at random moments of a build: the build
// after its restart makes the right thing of what is left in the store.
func TestKillAtAnyMoment(t *testing.T) {
	t.Parallel()
	b := newBuilder(t, "SOURCE_DATE_EPOCH=1700000000")
	if err := os.CopyFS(filepath.Join(b.dir, "tree"), os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	b.write("Dockerfile", crashDockerfile)
	b.start()
	began := time.Now()
	want := b.tar("reference")
	usual := time.Since(began)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d, a build takes %v", seed, usual)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range *kills {
		n := fmt.Sprint("kill", i)
		moment := time.Duration(random.Int64N(int64(usual * 5 / 4)))
		building := b.command("build", "-q", "--build-arg", "N="+n, "-o", "type=oci,dest="+filepath.Join(b.dir, "killed.tar"), b.dir)
		if err := building.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(moment)
		if err := b.state.daemon.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = b.state.daemon.Wait() // it was killed
		b.state.daemon = nil
		_ = building.Wait() // it may have come to its end before, or not
		b.start()
		if got := b.tar(n); !bytes.Equal(got, want) {
			t.Fatalf("killed after %v (seed %d, kill %d): the build made something else", moment, seed, i)
		}
	}
}

// plainUser is a user that the machine knows nothing of.
const plainUser = 54322

// TestPlainUser builds as a plain user, with a daemon of the user's own and no
// root anywhere, what root builds too: both make the same image.
func TestPlainUser(t *testing.T) {
	t.Parallel()
	const epoch = "SOURCE_DATE_EPOCH=1700000000"
	dockerfile := "FROM base\nARG N\nRUN echo made > /made && mkdir /d && ln -s made /d/link\nCOPY file /d/\nWORKDIR /w\n"
	root, plain := newBuilder(t, epoch), newBuilder(t, epoch)
	for _, b := range []*builder{root, plain} {
		b.write("Dockerfile", dockerfile)
		b.write("file", "content\n")
	}
	root.start()
	want := root.id()

	home := filepath.Join(plain.state.run, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{plain.state.run, home, plain.dir} {
		if err := os.Chown(dir, plainUser, plainUser); err != nil {
			t.Fatalf("this test builds as another user: run it as root: %v", err)
		}
	}
	plain.credential = &syscall.Credential{Uid: plainUser, Gid: plainUser}
	own := filepath.Join(home, "kiln")
	plain.env = append(plain.env, "KILN_HOST=", "BUILDKIT_HOST=", "HOME="+home, "KILN_ROOT="+own, "XDG_RUNTIME_DIR=", "TMPDIR="+home)
	t.Cleanup(func() {
		if err := stopDaemonsOf(own); err != nil {
			t.Error(err)
		}
	})
	if got := plain.id(); got != want {
		t.Errorf("a plain user's image is %s, root's is %s", got, want)
	}
	plain.unreadable()
}

// unreadable builds a context that the user may not read: the error names what
// it is about, and the next build works.
func (b *builder) unreadable() {
	b.t.Helper()
	locked := filepath.Join(b.dir, "locked")
	if err := os.Mkdir(locked, 0); err != nil { // root's, and closed
		b.t.Fatal(err)
	}
	b.write("all.Dockerfile", "FROM scratch\nCOPY . /\n")
	build := func() (string, error) {
		out, err := b.command("build", "--progress=plain", "-f", "all.Dockerfile", "-o", "type=cacheonly", b.dir).CombinedOutput()
		return string(out), err
	}
	out, err := build()
	if err == nil || !strings.Contains(out, `open directory "locked": permission denied`) || strings.Contains(out, "rpc error") {
		b.t.Errorf("a context with a directory that may not be read: %v\n%s", err, out)
	}
	if err := os.Remove(locked); err != nil {
		b.t.Fatal(err)
	}
	if out, err := build(); err != nil {
		b.t.Errorf("the build after that: %v\n%s", err, out)
	}
}

// builder builds in a test, with a daemon.
type builder struct {
	t          *testing.T
	dir        string // the context, and what is made of it
	env        []string
	credential *syscall.Credential
	state      *scriptState
	kiln, base string
	patience   time.Duration // with one command
}

func newBuilder(t *testing.T, env ...string) *builder {
	t.Helper()
	bin, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	base, err := baseImage(t)
	if err != nil {
		t.Fatal(err)
	}
	run, err := os.MkdirTemp("", "kiln-run-")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(run, "context")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &builder{t: t, dir: dir, kiln: filepath.Join(bin, "kiln"), base: base, state: &scriptState{run: run}, patience: 2 * time.Minute}
	b.env = append(append(os.Environ(), "KILN_HOST=unix://"+run+"/sock"), env...)
	t.Cleanup(func() {
		if err := b.state.stop(); err != nil {
			t.Errorf("stop daemon: %v", err)
		}
		if left := leftovers(run, nil); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	return b
}

func (b *builder) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o644); err != nil {
		b.t.Fatal(err)
	}
}

func (b *builder) start() {
	b.t.Helper()
	if err := b.state.start(b.kiln, b.env, "oci"); err != nil {
		b.t.Fatal(err)
	}
}

// command is a kiln command in the builder's world.
func (b *builder) command(args ...string) *exec.Cmd {
	if args[0] == "build" {
		args = append([]string{"build", "--build-context", "base=oci-layout://" + b.base}, args[1:]...)
	}
	ctx, cancel := context.WithTimeout(b.t.Context(), b.patience)
	b.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, b.kiln, args...)
	cmd.Env, cmd.Dir = b.env, b.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: b.credential}
	return cmd
}

// tar builds with the argument N and returns the result's files as a tar.
func (b *builder) tar(n string) []byte {
	b.t.Helper()
	dest := filepath.Join(b.state.run, "files.tar")
	out, err := b.command("build", "--progress=plain", "--build-arg", "N="+n, "-o", "type=tar,dest="+dest, b.dir).CombinedOutput()
	if err != nil {
		b.t.Fatalf("build: %v\n%s", err, out)
	}
	text, err := os.ReadFile(dest)
	if err != nil {
		b.t.Fatal(err)
	}
	return text
}

// id builds an archive and returns the image's digest.
func (b *builder) id() string {
	b.t.Helper()
	dest, id := filepath.Join(b.dir, "image.tar"), filepath.Join(b.dir, "id")
	out, err := b.command("build", "--progress=plain", "--iidfile", id, "-o", "type=oci,dest="+dest, b.dir).CombinedOutput()
	if err != nil {
		b.t.Fatalf("build: %v\n%s", err, out)
	}
	text, err := os.ReadFile(id)
	if err != nil {
		b.t.Fatal(err)
	}
	return string(text)
}
