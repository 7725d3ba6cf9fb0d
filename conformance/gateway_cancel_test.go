package conformance

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
)

// untilTold is a step that says a word when somebody says go.
func untilTold(word string) llb.State {
	script := fmt.Sprintf("until [ -e /told/%[1]s ]; do busybox sleep 0.05; done; echo %[1]s > /said", word)
	return base().Run(llb.Args([]string{"/bin/sh", "-c", script}), toldMount()).Root()
}

// toldMount is where steps look for words.
func toldMount() llb.RunOption {
	return llb.AddMount("/told", llb.Scratch(), llb.AsPersistentCacheDir("gateway-told", llb.CacheMountShared))
}

// tell lets the steps of a word end.
func tell(t *testing.T, ctx context.Context, c gateway.Client, word string) {
	t.Helper()
	solve(t, ctx, c, base().Run(llb.Args([]string{"/bin/sh", "-c", "echo > /told/" + word}), toldMount()).Root())
}

// awaitRunning waits for a step's process.
func awaitRunning(t *testing.T, ctx context.Context, word string) {
	t.Helper()
	for running(t, word) == 0 {
		select {
		case <-ctx.Done():
			t.Fatalf("no process of %s runs: %v", word, context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// solving evaluates a state until it ends, or is told to.
type solving struct {
	cancel context.CancelFunc
	ended  chan error
	ref    gateway.Reference
}

func startSolving(t *testing.T, ctx context.Context, c gateway.Client, st llb.State) *solving {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	s := &solving{cancel: cancel, ended: make(chan error, 1)}
	go func() {
		var err error
		s.ref, err = trySolve(t, ctx, c, st)
		s.ended <- err
	}()
	return s
}

// said checks that a state is made to its end.
func (s *solving) said(t *testing.T, ctx context.Context, want string) {
	t.Helper()
	defer s.cancel()
	if err := <-s.ended; err != nil {
		t.Errorf("the solve that goes on: %v", err)
		return
	}
	got, err := s.ref.ReadFile(ctx, gateway.ReadRequest{Filename: "/said"})
	if err != nil || string(got) != want+"\n" {
		t.Errorf("the solve that goes on made %q, %v", got, err)
	}
}

// gatewayCancel: who gives up a solve waits for it no more, its step ends while the
// build goes on, and no other ends. What was given up is made when it is asked for again.
func gatewayCancel(t *testing.T, ctx context.Context, c gateway.Client) {
	word, up := fmt.Sprint("other", time.Now().UnixNano()), fmt.Sprint("given", time.Now().UnixNano())
	given, other := startSolving(t, ctx, c, untilTold(up)), startSolving(t, ctx, c, untilTold(word))
	awaitRunning(t, ctx, word)
	awaitRunning(t, ctx, up)
	given.giveUp(t)
	if n := await0(t, up); n > 0 {
		t.Errorf("%d processes of the solve that was given up are left", n)
	}
	if running(t, word) == 0 {
		t.Error("the other solve's process has ended with the one that was given up")
	}
	again := startSolving(t, ctx, c, untilTold(up))
	awaitRunning(t, ctx, up)
	tell(t, ctx, c, word)
	other.said(t, ctx, word)
	tell(t, ctx, c, up)
	again.said(t, ctx, up)
}

// gatewayCancelShared: a step that two solves wait for is not one's to end, be it what
// they ask for or below it.
func gatewayCancelShared(t *testing.T, ctx context.Context, c gateway.Client) {
	word := fmt.Sprint("shared", time.Now().UnixNano())
	above := untilTold(word).Run(llb.Args([]string{"/bin/sh", "-c", "echo > /above"})).Root()
	same, built, other := startSolving(t, ctx, c, untilTold(word)), startSolving(t, ctx, c, above), startSolving(t, ctx, c, untilTold(word))
	awaitRunning(t, ctx, word)
	same.giveUp(t)
	built.giveUp(t)
	tell(t, ctx, c, word)
	other.said(t, ctx, word)
}

// giveUp ends a solve and waits for its answer.
func (s *solving) giveUp(t *testing.T) {
	t.Helper()
	s.cancel()
	if err := <-s.ended; err == nil || !strings.Contains(err.Error(), "cancel") {
		t.Errorf("the solve that was given up ended with %v", err)
	}
}

// gatewaySSH: a container gets the agent it asks for, and one that nobody offers
// is an error unless it is optional.
func gatewaySSH(t *testing.T, ctx context.Context, c gateway.Client) {
	mount := func(id string, optional bool) gateway.Mount {
		return gateway.Mount{Dest: "/run/" + id, MountType: pb.MountType_SSH, SSHOpt: &pb.SSHOpt{ID: id, Mode: 0o600, Optional: optional}}
	}
	ctr := container(t, ctx, c, mount("agent", false), mount("absent", true))
	defer ctr.Release(context.WithoutCancel(ctx))
	mustOutput(t, ctx, ctr, "600\n", "sh", "-c", "[ -S /run/agent ] && ! [ -e /run/absent ] && busybox stat -c %a /run/agent")
	if _, err := c.NewContainer(ctx, gateway.NewContainerRequest{Mounts: []gateway.Mount{
		{Dest: "/", MountType: pb.MountType_BIND, Ref: solve(t, ctx, c, base())}, mount("absent", false),
	}}); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("an agent that nobody offers: %v", err)
	}
}
