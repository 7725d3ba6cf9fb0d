package daemon

import (
	"context"
	"sync"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/internal/executor"
	"github.com/kiln-build/kiln/internal/executor/fake"
	"github.com/kiln-build/kiln/llb/pb"
)

// recorder is an executor that keeps what it was asked for.
type recorder struct {
	executor.Executor
	mu    sync.Mutex
	specs []executor.Spec
}

func (r *recorder) Start(ctx context.Context, spec executor.Spec, io executor.IO) (executor.Container, error) {
	r.mu.Lock()
	r.specs = append(r.specs, spec)
	r.mu.Unlock()
	return r.Executor.Start(ctx, spec, io)
}

// TestContainersGetNoDevices: a client's container gets no device and nothing
// else that a step needs an entitlement for, however it is asked for. The
// messages have no field for devices; here they have those of an exec, under
// each number that such a field might get (a further case of CVE-2024-23653).
func TestContainersGetNoDevices(t *testing.T) {
	ex := &recorder{Executor: fake.New()}
	b := begin(t, serveGatewayOn(t, ex, nil).conn, "devices")
	device, err := proto.Marshal(&pb.CDIDevice{Name: "vendor.example/kind=thing"})
	if err != nil {
		t.Fatal(err)
	}
	add := func(m proto.Message, from protowire.Number) {
		var raw []byte
		for n := from; n < 24; n++ {
			raw = protowire.AppendBytes(protowire.AppendTag(raw, n, protowire.BytesType), device)
		}
		m.ProtoReflect().SetUnknown(raw)
	}
	req := &gateway.NewContainerRequest{ContainerID: "c", Mounts: []*pb.Mount{{Dest: "/", ResultID: b.solve(t)}}}
	add(req, 8)
	if _, err := b.NewContainer(b.ctx, req); err != nil {
		t.Fatal(err)
	}
	stream, err := b.ExecProcess(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	start := initMessage("c", nil, "true")
	add(start.GetInit(), 7)
	start.GetInit().Meta.CgroupParent = "/elsewhere"
	add(start.GetInit().Meta, 12)
	if err := stream.Send(start); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		var m *gateway.ExecMessage
		if m, err = stream.Recv(); m.GetDone() != nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	ex.mu.Lock()
	defer ex.mu.Unlock()
	if len(ex.specs) != 1 {
		t.Fatalf("%d containers ran", len(ex.specs))
	}
	if s := ex.specs[0]; len(s.Devices) != 0 || s.Insecure || s.Network == executor.NetworkHost || s.CgroupParent != "" {
		t.Errorf("the container was given %+v", s)
	}
	b.end(t)
}
