package session_test

import (
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/control"
	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session"
	"github.com/kiln-build/kiln/internal/session/sessiontest"
)

func TestConnect(t *testing.T) {
	c := sessiontest.Connect(t)
	if c.ID() != "test-session" || c.SharedKey() != "test-key" || c.Chunk() != session.LargeChunk {
		t.Errorf("session %q, key %q, chunk %d", c.ID(), c.SharedKey(), c.Chunk())
	}
	if !c.Supports("/GRPC.health.v1.health/check") || c.Supports("/moby.filesync.v1.FileSync/DiffCopy") {
		t.Error("the methods are not those that the client serves")
	}
	r, err := grpc_health_v1.NewHealthClient(c.Conn()).Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || r.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("health %v, %v", r, err)
	}
}

// serve runs a session over a pipe and returns the client's end of it.
func serve(t *testing.T, m *session.Manager, meta session.Meta) (client net.Conn, ended chan error) {
	t.Helper()
	daemon, client := net.Pipe()
	ended = make(chan error, 1)
	go func() { ended <- m.Serve(context.Background(), meta, daemon) }()
	return client, ended
}

func TestManager(t *testing.T) {
	m := session.NewManager()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	got := make(chan *session.Caller)
	for range 2 {
		go func() {
			c, err := m.Get(ctx, "a")
			if err != nil {
				t.Error(err)
			}
			got <- c
		}()
	}
	client, ended := serve(t, m, session.Meta{ID: "a"})
	c := <-got
	if c != <-got {
		t.Error("two callers for one session")
	}
	if err := m.Serve(ctx, session.Meta{ID: "a"}, client); err == nil {
		t.Error("a second session of the same id was taken")
	}
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	<-c.Context().Done()
	short, cancelShort := context.WithCancel(ctx)
	cancelShort()
	if _, err := m.Get(short, "a"); !errors.Is(err, session.ErrNoSession) {
		t.Errorf("after the end: %v, want ErrNoSession", err)
	}
}

// A client that says nothing any more loses its session.
func TestSilentClient(t *testing.T) {
	m := session.NewManager()
	_, ended := serve(t, m, session.Meta{ID: "a", HealthTimeout: 1})
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("the session is still open")
	}
}

func TestMetadata(t *testing.T) {
	for _, values := range [][]string{{"plain value"}, {"a", "ümlaut/+ %2f"}, {"new\nline"}, {""}} {
		md := metadata.MD{}
		session.SetMetadata(md, "key", values)
		got, err := session.GetMetadata(md, "key")
		if err != nil || strings.Join(got, "|") != strings.Join(values, "|") {
			t.Errorf("%q became %q, %v", values, got, err)
		}
	}
	if _, err := session.GetMetadata(metadata.Pairs("k", "%zz", "k-encoded", "1"), "k"); err == nil {
		t.Error("a bad escape was taken")
	}
	// A percent sign in a value that is not said to be escaped stands for itself.
	if got, err := session.GetMetadata(metadata.Pairs("k", "%41"), "k"); err != nil || got[0] != "%41" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, md := range []metadata.MD{
		{}, metadata.Pairs("x-docker-expose-session-uuid", "a", "x-buildkit-session-health-custom-timeout", "-1"),
		metadata.Pairs("x-docker-expose-session-uuid", "a", "x-kiln-session-chunk", "many"),
	} {
		if m, err := session.ParseMeta(md); err == nil {
			t.Errorf("%v was taken as %v", md, m)
		}
	}
}

// The codec reads what protobuf writes, in any split and with unknown fields.
func TestCodec(t *testing.T) {
	c := session.Codec()
	for _, m := range []proto.Message{
		&control.BytesMessage{Data: []byte("content")},
		&control.BytesMessage{},
		&fsutil.Packet{Type: fsutil.Packet_PACKET_DATA, ID: 300, Data: []byte("content")},
		&fsutil.Packet{Stat: &fsutil.Stat{Path: "a", Xattrs: map[string][]byte{"k": {1}}}},
		&fsutil.Packet{},
		&control.StatusRequest{Ref: "x"},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		for _, unknown := range []string{"", "\xa2\x06\x01u"} { // field 100
			raw := append([]byte(unknown), raw...)
			for cut := range len(raw) + 1 {
				got := m.ProtoReflect().New().Interface()
				split := mem.BufferSlice{mem.SliceBuffer(raw[:cut]), mem.SliceBuffer(raw[cut:])}
				if err := c.Unmarshal(split, got); err != nil {
					t.Fatalf("%T: %v", m, err)
				}
				got.ProtoReflect().SetUnknown(nil)
				if !proto.Equal(got, m) {
					t.Fatalf("%v became %v", m, got)
				}
			}
		}
	}
}

// wireStream is a stream of messages as they come, each in two buffers.
type wireStream struct {
	session.ByteStream
	codec    encoding.CodecV2
	messages [][]byte
	cut      int
}

func (s *wireStream) RecvMsg(m any) error {
	if len(s.messages) == 0 {
		return io.EOF
	}
	raw := s.messages[0]
	s.messages = s.messages[1:]
	cut := min(s.cut, len(raw))
	return s.codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw[:cut]), mem.SliceBuffer(raw[cut:])}, m)
}

// Content is read whole, however messages are split, whichever codec decodes
// them, and with unknown fields.
func TestContent(t *testing.T) {
	var messages [][]byte
	want := ""
	for _, content := range []string{"one", "", "another one", strings.Repeat("long", 100)} {
		raw, err := proto.Marshal(&control.BytesMessage{Data: []byte(content)})
		if err != nil {
			t.Fatal(err)
		}
		messages = append(messages, raw, append([]byte("\xa2\x06\x01u"), raw...), append(slices.Clone(raw), "\xa2\x06\x01u"...))
		want += strings.Repeat(content, 3)
	}
	for _, codec := range []encoding.CodecV2{session.Codec(), encoding.GetCodecV2("proto")} {
		for cut := range 20 {
			got, err := io.ReadAll(session.NewConn(&wireStream{codec: codec, messages: messages, cut: cut}, func() {}))
			if err != nil || string(got) != want {
				t.Errorf("cut at %d: read %q, %v", cut, got, err)
			}
			var out strings.Builder
			err = session.CopyContent(&out, &wireStream{codec: codec, messages: messages, cut: cut})
			if err != nil || out.String() != want {
				t.Errorf("cut at %d: copied %q, %v", cut, out.String(), err)
			}
		}
	}
	if err := session.CopyContent(io.Discard, &wireStream{codec: session.Codec(), messages: [][]byte{{10, 255}}}); err == nil {
		t.Error("half a message was taken")
	}
}

func FuzzCodec(f *testing.F) {
	f.Add([]byte{8, 2, 24, 1, 34, 1, 'a'})
	f.Add([]byte{18, 255, 255})
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, want := &fsutil.Packet{}, &fsutil.Packet{}
		gotErr := session.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(raw)}, got)
		wantErr := proto.Unmarshal(raw, want)
		if (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("error %v, protobuf's is %v", gotErr, wantErr)
		}
		if gotErr == nil && !proto.Equal(got, want) {
			t.Fatalf("%v, protobuf's is %v", got, want)
		}
	})
}
