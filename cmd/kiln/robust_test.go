package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/filesync"
	"github.com/kiln-build/kiln/internal/session"
)

var lineMiB = flag.Int("line", 512, "how many MiB the one line of TestEndlessLine has")

// mostMemory is what a daemon or a client may use while that line passes, KiB.
const mostMemory = 300 << 10

// TestEndlessLine has a step write one line of hundreds of MiB, or of
// GiB where that is asked for (make soak): it arrives whole, is
// kept whole, and neither daemon nor client holds much of it.
func TestEndlessLine(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	b.patience += time.Duration(*lineMiB) * time.Second / 2
	lineSize := int64(*lineMiB) << 20
	b.write("Dockerfile", fmt.Sprintf("FROM base\nRUN dd if=/dev/zero bs=1M count=%d 2>/dev/null | tr '\\000' x\n", *lineMiB))
	b.start()
	cmd := b.command("build", "--progress=plain", "-o", "type=cacheonly", b.dir)
	shown, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	marks, peak := countMarks(t, shown, cmd.Process.Pid)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("build: %v", err)
	}
	if marks < lineSize || marks > lineSize+100 { // some are in the names of steps
		t.Errorf("of a line of %d bytes, %d were shown", lineSize, marks)
	}
	daemon := 0
	for _, pid := range family(strconv.Itoa(b.state.daemon.Process.Pid)) {
		n, err := strconv.Atoi(pid)
		if err != nil {
			t.Fatal(err)
		}
		daemon = max(daemon, peakMemory(t, n))
	}
	t.Logf("at most %d KiB in the client, %d KiB in the daemon", peak, daemon)
	if peak == 0 || peak > mostMemory || daemon == 0 || daemon > mostMemory {
		t.Errorf("the client used %d KiB, the daemon %d KiB, at most %d are fine", peak, daemon, mostMemory)
	}
	logs := b.command("history", "logs")
	kept, err := logs.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	logs.Stderr = logs.Stdout
	if err := logs.Start(); err != nil {
		t.Fatal(err)
	}
	if marks, _ := countMarks(t, kept, logs.Process.Pid); marks < lineSize || marks > lineSize+100 {
		t.Errorf("of a line of %d bytes, %d were kept", lineSize, marks)
	}
	if err := logs.Wait(); err != nil {
		t.Error(err)
	}
}

// countMarks counts what of a program's output is the line, and tells how much
// memory the program has used meanwhile, KiB.
func countMarks(t *testing.T, r io.Reader, pid int) (marks int64, peak int) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for {
		n, err := r.Read(buf)
		marks += int64(bytes.Count(buf[:n], []byte("x")))
		peak = max(peak, peakMemory(t, pid))
		if err == io.EOF {
			return marks, peak
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// family is a process and its children, by id.
func family(pid string) []string {
	all := map[string]bool{pid: true}
	list := []string{pid}
	for _, p := range processes() {
		if all[p.parent] {
			all[p.pid] = true
			list = append(list, p.pid)
		}
	}
	return list
}

var peakLine = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// peakMemory is the most that a process has had in memory, KiB, or 0 if it has ended.
func peakMemory(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	m := peakLine.FindSubmatch(text)
	if m == nil {
		return 0
	}
	n, err := strconv.Atoi(string(m[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// silentFiles serves directories and never says a word of them.
type silentFiles struct {
	filesync.UnimplementedFileSyncServer
	asked chan struct{}
}

func (s silentFiles) Register(g *grpc.Server) { filesync.RegisterFileSyncServer(g, s) }

func (s silentFiles) DiffCopy(stream filesync.FileSync_DiffCopyServer) error {
	close(s.asked)
	<-stream.Context().Done()
	return stream.Context().Err()
}

// TestSilentSession builds for clients whose sessions do not answer: one that
// reads nothing is found out by its health, and one that is well but serves no
// files holds up its own build only, and that not longer than it stays.
func TestSilentSession(t *testing.T) {
	t.Parallel()
	b := newBuilder(t)
	debug := startDebugged(b)
	b.write("Dockerfile", "FROM base\nARG N\nRUN echo $N\n")
	b.tar("warm")
	before := b.traces(debug)
	t.Run("reads nothing", func(t *testing.T) {
		conn := dialRaw(t, b)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := control.NewControlClient(conn).Session(metadata.AppendToOutgoingContext(ctx,
			"x-docker-expose-session-uuid", "mute", "x-docker-expose-session-sharedkey", "", "x-buildkit-session-health-custom-timeout", "1000",
			"x-docker-expose-session-grpc-method", "/moby.filesync.v1.FileSync/DiffCopy",
			"x-docker-expose-session-grpc-method", "/moby.filesync.v1.Auth/Credentials"))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		err = solveFor(ctx, conn, "mute")
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the build failed after %v", took)
		}
		if err == nil || !strings.Contains(status.Convert(err).Message(), "does not answer") || strings.Contains(err.Error(), "panic") {
			t.Errorf("the build of a client that reads nothing ended with %v", err)
		}
		t.Log(err)
	})
	t.Run("serves nothing", func(t *testing.T) {
		conn := dialRaw(t, b)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		files := silentFiles{asked: make(chan struct{})}
		ran := make(chan error, 1)
		alive, leave := context.WithCancel(ctx)
		go func() {
			ran <- session.NewServer("idle", "", files).Run(alive, session.OpenStream(control.NewControlClient(conn)))
		}()
		solved := make(chan error, 1)
		go func() { solved <- solveFor(ctx, dialRaw(t, b), "idle") }()
		select {
		case <-files.asked:
		case err := <-solved:
			t.Fatalf("the build ended, having asked for nothing: %v", err)
		}
		b.tar("beside") // which goes on
		leave()
		select {
		case err := <-solved:
			if err == nil || !strings.Contains(err.Error(), "session") {
				t.Errorf("the build of a client that left ended with %v", err)
			}
			t.Log(err)
		case <-time.After(10 * time.Second):
			t.Error("the build of a client that left goes on")
		}
		if err := <-ran; err != nil {
			t.Errorf("session: %v", err)
		}
	})
	b.tar("after")
	b.nothingLeft(debug, before)
	b.noPanic()
}

func dialRaw(t *testing.T, b *builder) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///daemon", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(b.state.run, "sock"))
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// solveFor builds a Dockerfile that a session is to give.
func solveFor(ctx context.Context, conn *grpc.ClientConn, sessionID string) error {
	_, err := control.NewControlClient(conn).Solve(ctx, &control.SolveRequest{Ref: "of-" + sessionID, Session: sessionID, Frontend: "dockerfile.v0"})
	return err
}
