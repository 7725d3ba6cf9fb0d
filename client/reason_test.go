package client

import (
	"strings"
	"testing"
)

func TestPlainReason(t *testing.T) {
	for text, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial unix /x: connect: permission denied"`: "dial unix /x: connect: permission denied",
		"error reading from server: EOF": "it ended",
		"the session ended: rpc error: code = Unavailable desc = error reading from server: EOF": "it ended",
		"error reading from server: read unix @->/x: recvmsg: connection reset by peer":          "it ended",
		"error reading from server: connection error: COMPRESSION_ERROR":                         "COMPRESSION_ERROR",
		"the server is full": "the server is full",
	} {
		got := plainReason(text)
		if !strings.Contains(got, want) || strings.Contains(got, "desc =") {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
