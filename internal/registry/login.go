package registry

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
)

func newBytesReader(b []byte) io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }

// insecureDialer connects by TLS to whom a user has declared insecure.
func insecureDialer() *tls.Dialer {
	return &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec
}

// sessionLogins returns what the clients that wait for ctx's work know.
func sessionLogins(ctx context.Context) []Login { return nil }
