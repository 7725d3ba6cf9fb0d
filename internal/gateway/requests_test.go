package gateway

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"

	"golang.org/x/net/http2"

	"github.com/kiln-build/kiln/internal/session"
)

// message is one of gRPC, as it lies in frames.
func message(size int, compressed byte) []byte {
	head := binary.BigEndian.AppendUint32([]byte{compressed}, uint32(size))
	return append(head, make([]byte, size)...)
}

// TestMetered has frames be counted, whatever the parts are in which they come.
func TestMetered(t *testing.T) {
	var sent bytes.Buffer
	sent.WriteString(clientPreface)
	f := http2.NewFramer(&sent, nil)
	headers := func(stream uint32) error {
		return f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte("x"), EndHeaders: true})
	}
	large := message(1000, 0)
	for _, err := range []error{
		f.WriteSettings(), headers(1), f.WriteData(1, false, large[:3]), f.WriteData(1, false, nil), f.WriteData(1, false, large[3:]),
		f.WriteData(1, false, append(message(7, 0), message(0, 0)...)), // less than it counts already
		headers(3), f.WriteDataPadded(3, false, large[:500], make([]byte, 200)), f.WriteDataPadded(3, true, large[500:], make([]byte, 99)),
		headers(5), f.WriteData(5, true, message(10, 1)),
		headers(7), f.WriteData(7, false, large), f.WriteRSTStream(7, http2.ErrCodeCancel), f.WriteData(7, false, large),
		headers(9), f.WriteData(9, false, large[:900]),
		f.WriteData(11, false, large),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, size := range []int{1, 2, 5, 9, 100, 1 << 20} {
		from, to := net.Pipe()
		run := NewPhase("", nil)
		m := newMetered(to, run)
		go func() {
			_, _ = from.Write(sent.Bytes())
			_ = from.Close()
		}()
		for buf := make([]byte, size); ; {
			if _, err := m.Read(buf); err != nil {
				break
			}
		}
		all := 0
		for stream, want := range map[uint32]int{1: 1000 + 3*perFrame, 3: 1000 + 2*perFrame, 5: session.MaxMessage + 10 + perFrame, 9: 900 - messageHeader + perFrame} {
			if c := m.calls[stream]; c == nil || c.largest != want {
				t.Errorf("in parts of %d: call %d: got %+v, want %d", size, stream, c, want)
			}
			all += want
		}
		if len(m.calls) != 4 || run.quota.requests != all || m.taken != all {
			t.Errorf("in parts of %d: %d calls count %d bytes, %d of the quota, want 4 with %d", size, len(m.calls), m.taken, run.quota.requests, all)
		}
		m.release()
		if run.quota.requests != 0 {
			t.Errorf("in parts of %d: %d bytes are left", size, run.quota.requests)
		}
	}
}

// TestMeteredAnswers has calls count no more once they are answered or refused.
func TestMeteredAnswers(t *testing.T) {
	var sent, answers bytes.Buffer
	sent.WriteString(clientPreface)
	f, back := http2.NewFramer(&sent, nil), http2.NewFramer(&answers, nil)
	for _, stream := range []uint32{1, 3, 5} {
		if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: []byte("x"), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		if err := f.WriteData(stream, true, message(100, 0)); err != nil {
			t.Fatal(err)
		}
	}
	for _, err := range []error{
		back.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte("x"), EndHeaders: true}), back.WriteData(1, false, message(5, 0)),
		back.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: []byte("x"), EndHeaders: true, EndStream: true}),
		back.WriteRSTStream(5, http2.ErrCodeRefusedStream), back.WriteRSTStream(5, http2.ErrCodeRefusedStream),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	from, to := net.Pipe()
	defer from.Close()
	run := NewPhase("", nil)
	m := newMetered(to, run)
	go func() { _, _ = from.Write(sent.Bytes()) }()
	for buf, left := make([]byte, 64), sent.Len(); left > 0; {
		n, err := m.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		left -= n
	}
	if want := 3 * (100 + perFrame); run.quota.requests != want {
		t.Errorf("%d bytes are counted before the answers, want %d", run.quota.requests, want)
	}
	go func() { _, _ = m.Write(answers.Bytes()); _ = m.Close() }()
	for buf := make([]byte, 64); ; {
		if _, err := from.Read(buf); err != nil {
			break
		}
	}
	if want := 100 + perFrame; run.quota.requests != want || len(m.calls) != 1 || m.calls[1] == nil {
		t.Errorf("%d bytes are counted after the answers of %v, want %d of call 1", run.quota.requests, m.calls, want)
	}
}
