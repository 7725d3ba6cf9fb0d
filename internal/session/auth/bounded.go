package auth

import (
	"fmt"
	"io"
	"net/http"
)

// MostToken is the size of the largest answer of a token server that is read, bytes.
const MostToken = 1 << 20

// Bounded returns a transport whose answers end with an error after so many bytes:
// those who decode an answer keep all of it.
func Bounded(next http.RoundTripper, most int64) http.RoundTripper {
	return &bounded{next, most}
}

type bounded struct {
	next http.RoundTripper
	most int64
}

func (b *bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err == nil {
		resp.Body = &boundedBody{resp.Body, b.most, b.most}
	}
	return resp, err
}

type boundedBody struct {
	io.ReadCloser
	most, left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("the server's answer has more than the %d bytes that are allowed", b.most)
	}
	return n, err
}
