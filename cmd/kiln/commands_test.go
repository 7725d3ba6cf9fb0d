package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// scriptCommands are what scripts can say beyond testscript's own commands.
func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"daemon":   scriptDaemon,
		"crash":    scriptCrashDaemon,
		"build":    scriptBuild,
		"await":    scriptAwait,
		"tidy":     scriptTidy,
		"bigfile":  scriptBigFile,
		"mktar":    scriptMakeTar,
		"registry": scriptRegistry,
		"bucket":   scriptBucket,
		"azure":    scriptAzure,
		"github":   scriptGitHub,
		"lose":     scriptLose,
		"serve":    scriptServe,
		"tmpfs":    scriptTmpfs,
		"llb":      scriptLLB,

		"stop-own-daemon": scriptStopOwnDaemon,
		"same-usage":      scriptSameUsage,
		"below":           scriptBelow,
	}
}

// scriptDaemon: "daemon [flags]" starts the daemon; "! daemon" stops it.
func scriptDaemon(ts *testscript.TestScript, neg bool, args []string) {
	s := state(ts)
	if neg {
		ts.Check(s.stop())
		return
	}
	env := os.Environ()
	for _, k := range []string{"PATH", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "DOCKER_CONFIG", "KILN_HOST"} {
		env = append(env, k+"="+ts.Getenv(k))
	}
	bin, err := programs()
	ts.Check(err)
	ts.Check(s.start(filepath.Join(bin, "kiln"), env, ts.Getenv("EXECUTOR"), args...))
}

// scriptCrashDaemon: "crash" ends the daemon without a warning. It cannot be called
// "kill", which is testscript's own and concerns commands in the background.
func scriptCrashDaemon(ts *testscript.TestScript, neg bool, args []string) {
	s := state(ts)
	if neg || len(args) > 0 || s.daemon == nil {
		ts.Fatalf("usage: crash, with a daemon running")
	}
	ts.Check(s.daemon.Process.Kill())
	_ = s.daemon.Wait() // it was killed
	s.daemon = nil
	// The process in its namespaces dies with it, a moment later.
	for end := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unix", filepath.Join(s.run, "sock"))
		if err != nil {
			return
		}
		ts.Check(c.Close())
		if time.Now().After(end) {
			ts.Fatalf("something answers though the daemon was killed")
		}
	}
}

// scriptBuild: "build args" is "exec kiln build" with plain progress and the
// base image by its name.
func scriptBuild(ts *testscript.TestScript, neg bool, args []string) {
	err := ts.Exec("kiln", append([]string{"build", "--progress=plain", "--build-context", "base=oci-layout://" + ts.Getenv("BASE")}, args...)...)
	if err != nil {
		ts.Logf("[%v]", err)
	}
	if (err != nil) != neg {
		ts.Fatalf("build: got error %v, want failure: %v", err, neg)
	}
}

// scriptAwait: "await FILE PATTERN" waits until a file matches.
func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await file pattern")
	}
	pattern := regexp.MustCompile(args[1])
	var text []byte
	for range 6000 {
		text, _ = os.ReadFile(ts.MkAbs(args[0]))
		if pattern.Match(text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("await: no match for %s in %s:\n%s", args[1], args[0], text)
}

// scriptTidy: "tidy" holds that no build has left a mount, a process or a file
// under way behind. What a build lets go of may take a moment.
func scriptTidy(ts *testscript.TestScript, _ bool, _ []string) {
	root := ts.Getenv("ROOT")
	var left []string
	for range 6000 {
		left = leftovers(ts.Getenv("RUN"), state(ts).daemon)
		for _, dir := range []string{"tmp/runs", "run/run", "run/runtime", "layers/mounts", "content/ingest"} {
			entries, err := os.ReadDir(filepath.Join(root, dir))
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				ts.Fatalf("%v", err)
			}
			for _, e := range entries {
				left = append(left, filepath.Join(dir, e.Name()))
			}
		}
		if len(left) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	ts.Fatalf("left behind:\n%s", strings.Join(left, "\n"))
}

// scriptBigFile: "bigfile NAME MIB TEXT" writes a file that repeats text.
func scriptBigFile(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: bigfile name mib text")
	}
	mib, err := strconv.Atoi(args[1])
	ts.Check(err)
	line := args[2] + "\n"
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), bytes.Repeat([]byte(line), mib<<20/len(line)), 0o644))
}

// scriptStopOwnDaemon: "stop-own-daemon" ends the daemon that kiln build has
// started on the script's root.
func scriptStopOwnDaemon(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: stop-own-daemon")
	}
	ts.Check(stopDaemonsOf(ts.Getenv("ROOT")))
}

// daemonsOf lists the ids of daemons on a root.
func daemonsOf(root string) (pids []int) {
	for _, p := range processes() {
		if pid, err := strconv.Atoi(p.pid); err == nil && strings.Contains(p.command, " --root "+root+" ") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stopDaemonsOf ends daemons on a root that are not ours to wait for.
func stopDaemonsOf(root string) error {
	pids := daemonsOf(root)
	if len(pids) == 0 {
		return fmt.Errorf("no daemon runs on %s", root)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	for range 3000 {
		if len(daemonsOf(root)) == 0 {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return fmt.Errorf("the daemon on %s does not end", root)
}

// scriptTmpfs: "tmpfs DIR SIZE" mounts a file system of that size, which needs root.
func scriptTmpfs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: tmpfs dir size")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+args[1]); err != nil {
		ts.Fatalf("mount a small file system (run the tests as root): %v", err)
	}
	s := state(ts)
	s.undo = append(s.undo, func() error {
		if err := syscall.Unmount(dir, 0); err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		return nil
	})
}
