package conformance

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kiln-build/kiln/conformance/peer"
)

// TestBuildxDAP debugs a build as an editor does, with buildx's debug adapter
// on each daemon: it stops before a step, looks at the step's arguments and files, runs
// a shell in what the step begins from, and stops where another step fails.
func TestBuildxDAP(t *testing.T) {
	seen := map[string][]string{}
	for _, d := range []*peer.Daemon{shared.kiln, shared.buildkit} {
		t.Run(d.Name, func(t *testing.T) { seen[d.Name] = debugSession(t, d) })
	}
	if k, b := seen["kiln"], seen["buildkit"]; !slices.Equal(k, b) {
		t.Errorf("an editor sees on kiln\n%s\non buildkitd\n%s", strings.Join(k, "\n"), strings.Join(b, "\n"))
	}
}

func debugSession(t *testing.T, d *peer.Daemon) (seen []string) {
	note := func(format string, args ...any) { seen = append(seen, fmt.Sprintf(format, args...)) }
	exec := func(a *adapter, frame int) {
		a.request("evaluate", fmt.Sprintf(`{"expression":"exec","context":"repl","frameId":%d}`, frame), nil)
	}
	goOn := func(a *adapter, how string, thread int) { a.request(how, fmt.Sprintf(`{"threadId":%d}`, thread), nil) }

	a := launch(t, d, `{"line":2}`)
	frame, thread := a.stopped(note)
	for _, s := range a.scopes(frame) {
		note("%s:", s.Name)
		for _, v := range a.variables(s.VariablesReference) {
			note("  %s = %s", v.Name, v.Value)
			for _, below := range a.variables(v.VariablesReference) {
				note("    %s = %s", below.Name, below.Value)
			}
		}
	}
	exec(a, frame)
	a.shell("[ -e /bin/sh ] && ! [ -e /kept ] && echo be''fore", "before")
	goOn(a, "next", thread)
	_, thread = a.stopped(note)
	goOn(a, "continue", thread)
	_, thread = a.stopped(note)
	goOn(a, "continue", thread)
	var exited struct{ ExitCode int }
	a.event("exited", &exited)
	note("exit code %d", exited.ExitCode)

	a = launch(t, d, "")
	frame, thread = a.stopped(note)
	exec(a, frame)
	a.shell(`echo "$(cat /kept)+$(cat /left)"`, "kept+left")
	goOn(a, "continue", thread)
	a.event("exited", nil)
	for _, want := range []string{"RUN echo kept", "  exec = /bin/sh -c echo kept > /kept", "File Explorer:", "exception"} {
		if !strings.Contains(strings.Join(seen, "\n"), want) {
			t.Errorf("the editor does not see %q:\n%s", want, strings.Join(seen, "\n"))
		}
	}
	return seen
}

// launch starts a build that fails at line 3, with breakpoints.
func launch(t *testing.T, d *peer.Daemon, breakpoints string) *adapter {
	t.Helper()
	dir := debugContext(t)
	dockerfile := filepath.Join(dir, "Dockerfile")
	a := newAdapter(t, d)
	a.request("initialize", `{"adapterID":"test","supportsRunInTerminalRequest":true}`, nil)
	a.request("launch", fmt.Sprintf(`{"dockerfile":%q,"contextPath":%q}`, dockerfile, dir), nil)
	a.event("initialized", nil)
	a.request("setBreakpoints", fmt.Sprintf(`{"source":{"name":"Dockerfile","path":%q},"breakpoints":[%s]}`, dockerfile, breakpoints), nil)
	a.request("configurationDone", `{}`, nil)
	return a
}

// adapter is a debug adapter that runs, and what it has sent and nobody has taken.
type adapter struct {
	t        *testing.T
	in       io.Writer
	seq      int
	messages chan adapterMessage
	waiting  []adapterMessage
	log      *strings.Builder // read once it has ended
}

// adapterMessage is a message of the Debug Adapter Protocol.
type adapterMessage struct {
	Seq        int             `json:"seq"`
	Type       string          `json:"type"` // "request", "response" or "event"
	Command    string          `json:"command,omitempty"`
	Event      string          `json:"event,omitempty"`
	RequestSeq int             `json:"request_seq,omitempty"`
	Success    bool            `json:"success"`
	Message    string          `json:"message,omitempty"`
	Arguments  json.RawMessage `json:"arguments,omitempty"`
	Body       json.RawMessage `json:"body,omitempty"`
}

func newAdapter(t *testing.T, d *peer.Daemon) *adapter {
	t.Helper()
	b := newBuildx(t, d)
	cmd := exec.CommandContext(t.Context(), b.program, "dap", "build", "--build-context", "base=oci-layout://"+shared.base.Dir)
	cmd.Env, cmd.WaitDelay = append(b.env, "BUILDX_EXPERIMENTAL=1", "TMPDIR="+t.TempDir()), 5*time.Second
	a := &adapter{t: t, messages: make(chan adapterMessage, 1000), log: &strings.Builder{}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.in, cmd.Stderr = in, a.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		a.read(out)
		close(read)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			_ = cmd.Process.Kill() // it may wait for more requests
		}
		<-read
		err := cmd.Wait() // the build failed, and so it does
		if t.Failed() {
			t.Logf("buildx: %v\n%s", err, a.log)
		}
	})
	return a
}

// read reads messages, each with a header like that of HTTP, until there are no more.
func (a *adapter) read(out io.Reader) {
	defer close(a.messages)
	for in := bufio.NewReader(out); ; {
		header, err := textproto.NewReader(in).ReadMIMEHeader()
		if err != nil {
			return
		}
		n, err := strconv.Atoi(header.Get("Content-Length"))
		if err != nil {
			return
		}
		text := make([]byte, n)
		var m adapterMessage
		if _, err := io.ReadFull(in, text); err != nil || json.Unmarshal(text, &m) != nil {
			return
		}
		a.messages <- m
	}
}

func (a *adapter) send(m adapterMessage) {
	a.t.Helper()
	a.seq++
	m.Seq = a.seq
	text, err := json.Marshal(m)
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(a.in, "Content-Length: %d\r\n\r\n%s", len(text), text); err != nil {
		a.t.Fatal(err)
	}
}

// await takes the first message that is wanted.
func (a *adapter) await(what string, wanted func(adapterMessage) bool) adapterMessage {
	a.t.Helper()
	if i := slices.IndexFunc(a.waiting, wanted); i >= 0 {
		m := a.waiting[i]
		a.waiting = slices.Delete(a.waiting, i, i+1)
		return m
	}
	for end := time.After(2 * time.Minute); ; {
		select {
		case m, ok := <-a.messages:
			if !ok {
				a.t.Fatalf("the adapter ended before %s", what)
			}
			if wanted(m) {
				return m
			}
			a.waiting = append(a.waiting, m)
		case <-end:
			a.t.Fatalf("no %s came; but %v", what, a.waiting)
		}
	}
}

// request asks, and stores the answer's body in into, if that is not nil. The
// adapter may want a terminal before it answers, which shell gives it then.
func (a *adapter) request(command, arguments string, into any) {
	a.t.Helper()
	a.send(adapterMessage{Type: "request", Command: command, Arguments: json.RawMessage(arguments)})
	seq := a.seq
	m := a.await("answer to "+command, func(m adapterMessage) bool {
		if m.Type == "request" && m.Command == "runInTerminal" && command == "evaluate" {
			a.send(adapterMessage{Type: "response", Command: m.Command, RequestSeq: m.Seq, Success: true, Body: json.RawMessage("{}")})
		}
		return m.Type == "response" && m.RequestSeq == seq
	})
	if !m.Success {
		a.t.Fatalf("%s: %s", command, m.Message)
	}
	a.decode(m.Body, into)
}

func (a *adapter) event(name string, into any) {
	a.t.Helper()
	a.decode(a.await("event "+name, func(m adapterMessage) bool { return m.Event == name }).Body, into)
}

func (a *adapter) decode(body json.RawMessage, into any) {
	a.t.Helper()
	if into == nil {
		return
	}
	if err := json.Unmarshal(body, into); err != nil {
		a.t.Fatalf("decode %s: %v", body, err)
	}
}

// stopped waits until the build stops, notes why and where, and returns the
// innermost frame.
func (a *adapter) stopped(note func(string, ...any)) (frame, thread int) {
	a.t.Helper()
	var stop struct {
		Reason   string
		ThreadID int
	}
	a.event("stopped", &stop)
	var trace struct {
		StackFrames []struct {
			ID, Line int
			Name     string
		}
	}
	a.request("stackTrace", fmt.Sprintf(`{"threadId":%d}`, stop.ThreadID), &trace)
	if len(trace.StackFrames) == 0 {
		a.t.Fatalf("stopped (%s) nowhere", stop.Reason)
	}
	for _, f := range trace.StackFrames {
		note("%s at line %d: %s", stop.Reason, f.Line, f.Name)
	}
	return trace.StackFrames[0].ID, stop.ThreadID
}

// adapterVariable is a variable, or a group of them.
type adapterVariable struct {
	Name, Value        string
	VariablesReference int // of those below it, or 0
}

func (a *adapter) scopes(frame int) []adapterVariable {
	a.t.Helper()
	var body struct{ Scopes []adapterVariable }
	a.request("scopes", fmt.Sprintf(`{"frameId":%d}`, frame), &body)
	return body.Scopes
}

func (a *adapter) variables(ref int) []adapterVariable {
	a.t.Helper()
	if ref == 0 {
		return nil
	}
	var body struct{ Variables []adapterVariable }
	a.request("variables", fmt.Sprintf(`{"variablesReference":%d}`, ref), &body)
	return body.Variables
}

// shell gives the adapter the terminal that it wanted, has the shell in it run a
// line, and waits for what that prints, which the line itself must not hold.
func (a *adapter) shell(line, want string) {
	a.t.Helper()
	m := a.await("request for a terminal", func(m adapterMessage) bool { return m.Type == "request" && m.Command == "runInTerminal" })
	var arguments struct{ Args []string }
	a.decode(m.Arguments, &arguments)
	// The program wants a terminal, and joins it to the socket that is its last argument.
	conn, err := (&net.Dialer{}).DialContext(a.t.Context(), "unix", arguments.Args[len(arguments.Args)-1])
	if err != nil {
		a.t.Fatalf("%q: %v", arguments.Args, err)
	}
	defer conn.Close()
	shown := &transcript{}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(shown, conn)
		ended <- err
	}()
	for range 400 { // a shell drops what is typed before it reads
		if _, err := fmt.Fprintf(conn, "%s\n", line); err != nil {
			a.t.Error(err)
			break
		}
		time.Sleep(300 * time.Millisecond)
		if strings.Contains(shown.String(), want) {
			break
		}
	}
	shown.await(a.t, want)
	if _, err := fmt.Fprint(conn, "exit\n"); err != nil {
		a.t.Error(err)
	}
	if err := <-ended; err != nil {
		a.t.Errorf("the shell's connection ended with %v:\n%s", err, shown)
	}
}
