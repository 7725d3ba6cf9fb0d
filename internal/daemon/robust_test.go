package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/gateway"
	"github.com/kiln-build/kiln/llb/pb"
)

// rawCodec sends a request's bytes as they are, and does not read the answer.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("%T are no bytes", v)
	}
	return b, nil
}

func (rawCodec) Unmarshal([]byte, any) error { return nil }

// nonsense makes messages that are well-formed and mean nothing.
type nonsense struct {
	*rand.Rand
	known []string // ids that the daemon knows
}

func (n *nonsense) pick(of ...string) string { return of[n.IntN(len(of))] }

func (n *nonsense) text() string {
	return n.pick(append([]string{
		"", ".", "..", "../../escape", "/", "a/b", "a\x00b", "a\nb", "-x", "--upload-pack=x", strings.Repeat("x", 5000),
		"null", "[{}]", "{}", "sha256:zz", "sha256:" + strings.Repeat("a", 64), "linux/amd64", "docker-image://", "local://..",
		"docker-image://x@sha256:1", "git://-x#-y", "https://%zz", "oci-layout://a@b", "image", "local", "tar", "dockerfile.v0",
	}, n.known...)...)
}

func (n *nonsense) number() int64 {
	return []int64{0, 1, -1, 2, 9000, 1 << 31, -1 << 31, 1<<63 - 1, -1 << 63}[n.IntN(9)]
}

// fill gives some of m's fields values, of enumerations mostly unknown ones.
func (n *nonsense) fill(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if n.IntN(3) == 0 || depth > 6 {
			continue
		}
		switch {
		case f.IsMap():
			for range n.IntN(3) {
				m.Mutable(f).Map().Set(n.scalar(f.MapKey(), depth).MapKey(), n.value(m.Mutable(f).Map().NewValue(), f.MapValue(), depth))
			}
		case f.IsList():
			for range n.IntN(4) {
				m.Mutable(f).List().Append(n.value(m.Mutable(f).List().NewElement(), f, depth))
			}
		default:
			m.Set(f, n.value(m.NewField(f), f, depth))
		}
	}
}

func (n *nonsense) value(empty protoreflect.Value, f protoreflect.FieldDescriptor, depth int) protoreflect.Value {
	if f.Message() != nil {
		n.fill(empty.Message(), depth+1)
		return empty
	}
	return n.scalar(f, depth)
}

func (n *nonsense) scalar(f protoreflect.FieldDescriptor, depth int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n.IntN(2) == 0)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum([]protoreflect.EnumNumber{0, 1, 2, 77, 9000, -1}[n.IntN(6)])
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n.number()))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n.number()))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(n.number())
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(n.number()))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n.number()))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n.number()))
	case protoreflect.BytesKind:
		if f.FullName() == "pb.Definition.def" && n.IntN(4) > 0 {
			op := (&pb.Op{}).ProtoReflect()
			n.fill(op, depth+1)
			if b, err := proto.Marshal(op.Interface()); err == nil {
				return protoreflect.ValueOfBytes(b)
			}
		}
		return protoreflect.ValueOfBytes([]byte(n.text()))
	default:
		return protoreflect.ValueOfString(n.text())
	}
}

// message is a request of a kind: nonsense, and the same cut short or spoilt.
func (n *nonsense) message(t *testing.T, d protoreflect.MessageDescriptor) []byte {
	t.Helper()
	if n.IntN(8) == 0 {
		b := make([]byte, n.IntN(64))
		for i := range b {
			b[i] = byte(n.Uint32())
		}
		return b
	}
	m := dynamicpb.NewMessage(d)
	n.fill(m, 0)
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case len(b) == 0:
	case n.IntN(4) == 0:
		b = b[:n.IntN(len(b))]
	case n.IntN(4) == 0:
		b[n.IntN(len(b))] ^= 1 << n.IntN(8)
	}
	return b
}

// typed tells whether an answer to nonsense is one that a client can use.
func typed(err error) bool {
	for _, bad := range []string{"panic", "internal error", "runtime error", "nil pointer", "index out of range"} {
		if err != nil && strings.Contains(err.Error(), bad) {
			return false
		}
	}
	return status.Code(err) != codes.Internal || strings.Contains(err.Error(), "error unmarshalling request")
}

// No unary call of the API is hurt by what it is sent (docs/security.md, the rows of
// nil messages, indices and unknown enumerations).
func TestNonsenseToEveryCall(t *testing.T) {
	g := serveGateway(t)
	const seed = 20261121
	for _, name := range []protoreflect.FullName{"moby.buildkit.v1.Control", "moby.buildkit.v1.frontend.LLBBridge"} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			m := methods.Get(i)
			if m.IsStreamingClient() || m.IsStreamingServer() {
				continue
			}
			t.Run(string(m.Name()), func(t *testing.T) {
				b := begin(t, g.conn, "nonsense-"+string(m.FullName()))
				n := &nonsense{rand.New(rand.NewPCG(seed, uint64(i))), []string{b.solve(t), "nonsense-" + string(m.FullName())}}
				var calls sync.WaitGroup
				slots := make(chan struct{}, 16)
				for range 250 {
					sent := n.message(t, m.Input())
					slots <- struct{}{}
					calls.Go(func() {
						defer func() { <-slots }()
						ctx, cancel := context.WithTimeout(b.ctx, 200*time.Millisecond)
						defer cancel()
						err := g.conn.Invoke(ctx, "/"+string(name)+"/"+string(m.Name()), sent, &struct{}{}, grpc.ForceCodec(rawCodec{}))
						if !typed(err) {
							t.Errorf("%q: %v", sent, err)
						}
					})
				}
				calls.Wait()
				// The last word in a build is Return's, or of a Solve that calls itself final.
				if _, err := b.Return(b.ctx, &gateway.ReturnRequest{Result: &gateway.Result{}}); err != nil && status.Code(err) != codes.NotFound {
					t.Error(err)
				}
				if err := <-b.done; !typed(err) {
					t.Error(err)
				}
			})
		}
	}
	begin(t, g.conn, "after").end(t)
	eventually(t, "goroutines are left", workers)
}

// A second build of the same name is refused; the first knows nothing of it.
func TestOneRefTwoClients(t *testing.T) {
	g := serveGateway(t)
	first := begin(t, g.conn, "ref")
	stream := first.container(t, "c")
	if err := stream.Send(initMessage("c", []uint32{0, 1}, "cat")); err != nil {
		t.Fatal(err)
	}
	second := g.dial(t)
	for range 3 {
		_, err := control.NewControlClient(second).Solve(t.Context(), &control.SolveRequest{Ref: "ref"})
		if status.Code(err) != codes.AlreadyExists || !strings.Contains(err.Error(), `"ref"`) && !strings.Contains(err.Error(), " ref ") {
			t.Errorf("the second build ended with %v", err)
		}
	}
	second.Close()
	if _, err := first.StatFile(first.ctx, &gateway.StatFileRequest{Ref: first.solve(t), Path: "/file"}); err != nil {
		t.Errorf("the first build: %v", err)
	}
	if err := stream.Send(&gateway.ExecMessage{ProcessID: "p", Input: &gateway.ExecMessage_File{File: &gateway.FdMessage{Fd: 0, Data: []byte("heard")}}}); err != nil {
		t.Fatal(err)
	}
	for heard := ""; heard != "heard"; {
		m, err := stream.Recv()
		if err != nil {
			t.Fatalf("the first build's process, of which %q was heard: %v", heard, err)
		}
		heard += string(m.GetFile().GetData())
	}
	first.end(t)
	begin(t, g.conn, "ref").end(t) // whose name is free again
}

// Whoever speaks another language to the socket is answered or cut off, at once.
func TestGarbageOnSocket(t *testing.T) {
	g := serveGateway(t)
	random := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(random.Uint32())
	}
	preface := []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	for name, sent := range map[string][]byte{
		"noise":                   noise,
		"zeros":                   make([]byte, 1<<20),
		"HTTP/1":                  []byte("GET /info HTTP/1.1\r\nHost: x\r\n\r\n"),
		"HTTP/1 session":          []byte("POST /session HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nX-Docker-Expose-Session-Uuid: a\r\n\r\n"),
		"TLS":                     []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 600)),
		"preface, noise":          append(bytes.Clone(preface), noise...),
		"preface, frame too long": append(bytes.Clone(preface), 0xff, 0xff, 0xff, 4, 0, 0, 0, 0, 0),
	} {
		conn, err := net.Dial("unix", g.socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = conn.Write(sent) }() // the daemon may hang up first
		_, err = io.Copy(io.Discard, conn)
		if e := net.Error(nil); errors.As(err, &e) && e.Timeout() {
			t.Errorf("%s: the daemon neither answers nor hangs up", name)
		}
		conn.Close()
	}
	begin(t, g.conn, "after").end(t)
}
