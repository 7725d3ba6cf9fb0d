package session_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/kiln-build/kiln/internal/session"
)

// FuzzMeta looks for headers of a session that are taken and make no sense. The
// input is lines of "key: value".
func FuzzMeta(f *testing.F) {
	f.Add("x-docker-expose-session-uuid: abc\nx-docker-expose-session-sharedkey: k\nx-docker-expose-session-grpc-method: /a/B")
	f.Add("x-docker-expose-session-uuid: %zz\nx-docker-expose-session-uuid-encoded: 1")
	f.Add("x-docker-expose-session-uuid: a\nx-docker-expose-session-sharedkey: %C3%A9\nx-docker-expose-session-sharedkey-encoded: 1")
	f.Add("x-docker-expose-session-uuid: a\nx-buildkit-session-health-custom-timeout: 99999999999999999999")
	f.Add("x-docker-expose-session-uuid: a\nx-kiln-session-chunk: 2147483647")
	f.Fuzz(func(t *testing.T, text string) {
		md := metadata.MD{}
		for line := range strings.SplitSeq(text, "\n") {
			if k, v, ok := strings.Cut(line, ": "); ok {
				md.Append(strings.ToLower(k), v)
			}
		}
		m, err := session.ParseMeta(md)
		if err != nil {
			return
		}
		if m.ID == "" || m.HealthTimeout < 0 || m.Chunk < 0 || m.Chunk > session.LargeChunk {
			t.Errorf("%q was taken as %+v", text, m)
		}
		// What was taken survives another journey.
		again := metadata.MD{}
		session.SetMetadata(again, "x-docker-expose-session-uuid", []string{m.ID})
		session.SetMetadata(again, "x-docker-expose-session-sharedkey", []string{m.SharedKey})
		n, err := session.ParseMeta(again)
		if err != nil || n.ID != m.ID || n.SharedKey != m.SharedKey {
			t.Errorf("%+v became %+v, %v", m, n, err)
		}
	})
}
