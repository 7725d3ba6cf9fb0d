package files

import (
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/internal/api/fsutil"
	"github.com/kiln-build/kiln/internal/session"
)

// scripted is a peer that says what it was going to say anyway.
type scripted struct {
	mu      sync.Mutex
	packets [][]byte
}

func (s *scripted) Send(*fsutil.Packet) error { return nil }

func (s *scripted) Recv() (*fsutil.Packet, error) { return nil, errors.ErrUnsupported }

func (s *scripted) RecvMsg(m any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.packets) == 0 {
		return io.EOF
	}
	raw := s.packets[0]
	s.packets = s.packets[1:]
	return proto.Unmarshal(raw, &m.(*session.Packet).Packet)
}

// checked is a Destination that holds the protocol's promises against what it is told.
type checked struct {
	t    *testing.T
	mu   sync.Mutex
	seen map[string]bool
	open map[string]bool
	last string
}

func (c *checked) Stat(st *Stat) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := st.GetPath()
	if p != path.Clean(p) || path.IsAbs(p) || p == "." || p == ".." || len(p) > 2 && p[:3] == "../" {
		c.t.Errorf("path %q reached the destination", p)
	}
	if c.last != "" && ComparePaths(c.last, p) >= 0 {
		c.t.Errorf("%q came after %q", p, c.last)
	}
	if dir := path.Dir(p); dir != "." && !c.seen[dir] {
		c.t.Errorf("%q came without its directory", p)
	}
	c.seen[p], c.last = true, p
	return true, nil
}

func (c *checked) Create(st *Stat) (Content, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.seen[st.GetPath()] || c.open[st.GetPath()] {
		c.t.Errorf("content of %q, seen %t, open %t", st.GetPath(), c.seen[st.GetPath()], c.open[st.GetPath()])
	}
	c.open[st.GetPath()] = true
	return &checkedContent{c, st.GetPath()}, nil
}

type checkedContent struct {
	c    *checked
	path string
}

func (c *checkedContent) Write(p []byte) (int, error) { return len(p), nil }

func (c *checkedContent) Commit() error {
	c.Abort()
	return nil
}

func (c *checkedContent) Abort() {
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	if !c.c.open[c.path] {
		c.c.t.Errorf("content of %q ended twice", c.path)
	}
	delete(c.c.open, c.path)
}

// split makes packets of a fuzzer's bytes: each is led by its size in two bytes.
func split(b []byte) (packets [][]byte) {
	for len(b) >= 2 {
		n := min(int(binary.LittleEndian.Uint16(b)), len(b)-2)
		packets = append(packets, b[2:2+n])
		b = b[2+n:]
	}
	return packets
}

func join(t testing.TB, ps ...*fsutil.Packet) (b []byte) {
	for _, p := range ps {
		raw, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		b = append(binary.LittleEndian.AppendUint16(b, uint16(len(raw))), raw...)
	}
	return b
}

// FuzzReceive has a peer say anything: nothing of it may break the promises of
// Destination, and the transfer always ends.
func FuzzReceive(f *testing.F) {
	stat := func(p string, mode uint32, link string) *fsutil.Packet {
		return &fsutil.Packet{Stat: &fsutil.Stat{Path: p, Mode: mode, Linkname: link}}
	}
	data := func(id uint32, text string) *fsutil.Packet {
		return &fsutil.Packet{Type: fsutil.Packet_PACKET_DATA, ID: id, Data: []byte(text)}
	}
	const dir = 1 << 31
	end, fin := &fsutil.Packet{}, &fsutil.Packet{Type: fsutil.Packet_PACKET_FIN}
	f.Add(join(f, stat("a", 0o644, ""), stat("d", dir|0o755, ""), stat("d/x", 0o600, "a"), end, data(0, "content"), data(0, ""), fin))
	f.Add(join(f, stat("../a", 0o644, ""), end, fin))
	f.Add(join(f, stat("b", 0o644, ""), stat("a", 0o644, ""), end, fin))
	f.Add(join(f, stat("a", 0o644, ""), data(0, "x"), data(0, ""), data(0, "again"), end, fin))
	f.Add(join(f, end, end, fin))
	f.Add(join(f, stat("d/x", 0o600, ""), data(7, "x"), &fsutil.Packet{Type: 99}))
	f.Add(join(f, &fsutil.Packet{Type: fsutil.Packet_PACKET_ERR, Data: []byte("no")}))
	f.Fuzz(func(t *testing.T, script []byte) {
		c := &checked{t: t, seen: map[string]bool{}, open: map[string]bool{}}
		err := receive(&scripted{packets: split(script)}, c)
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.open) > 0 {
			t.Errorf("after %v, content is open: %v", err, slices.Collect(maps.Keys(c.open)))
		}
	})
}
