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

// slowly is a step of some seconds that says its word.
func slowly(word string, seconds int) llb.State {
	script := fmt.Sprintf("sleep %d; echo %s > /said", seconds, word)
	return base().Run(llb.Args([]string{"/bin/sh", "-c", script})).Root()
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

// gatewayCancel: who gives up a solve ends it at once, and no other.
func gatewayCancel(t *testing.T, ctx context.Context, c gateway.Client) {
	word := fmt.Sprint("other", time.Now().UnixNano())
	given, other := startSolving(t, ctx, c, slowly("given-"+word, 50)), startSolving(t, ctx, c, slowly(word, 3))
	time.Sleep(time.Second) // both run
	began := time.Now()
	given.cancel()
	if err := <-given.ended; err == nil || !strings.Contains(err.Error(), "cancel") {
		t.Errorf("the solve that was given up ended with %v", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %v to end", took)
	}
	other.said(t, ctx, word)
}

// gatewayCancelShared: a step that two solves wait for is not one's to end.
func gatewayCancelShared(t *testing.T, ctx context.Context, c gateway.Client) {
	word := fmt.Sprint("shared", time.Now().UnixNano())
	given, other := startSolving(t, ctx, c, slowly(word, 3)), startSolving(t, ctx, c, slowly(word, 3))
	time.Sleep(time.Second)
	given.cancel()
	if err := <-given.ended; err == nil || !strings.Contains(err.Error(), "cancel") {
		t.Errorf("the solve that was given up ended with %v", err)
	}
	other.said(t, ctx, word)
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
