package session

import (
	"fmt"
	"net/url"
	"strconv"

	"google.golang.org/grpc/metadata"
)

// Metadata of the stream that carries a session (BuildKit's session/grpc.go).
// keyChunk is Kiln's own: see [Meta.Chunk].
const (
	keyID        = "x-docker-expose-session-uuid"
	keySharedKey = "x-docker-expose-session-sharedkey"
	keyMethod    = "x-docker-expose-session-grpc-method"
	keyHealth    = "x-buildkit-session-health-custom-timeout" // ms
	keyChunk     = "x-kiln-session-chunk"
	encoded      = "-encoded"
)

// SetMetadata sets key's values in md. Should one hold anything but printable
// ASCII, all are escaped as in a URL's query, and key+"-encoded" is set to 1.
func SetMetadata(md metadata.MD, key string, values []string) {
	if len(values) == 0 {
		return
	}
	if !needsEscape(values) {
		md.Set(key, values...)
		return
	}
	escaped := make([]string, len(values))
	for i, v := range values {
		escaped[i] = url.QueryEscape(v)
	}
	md.Set(key, escaped...)
	md.Set(key+encoded, "1")
}

func needsEscape(values []string) bool {
	for _, v := range values {
		for i := range len(v) {
			if v[i] < 0x20 || v[i] > 0x7e {
				return true
			}
		}
	}
	return false
}

// GetMetadata returns key's values in md, as [SetMetadata] set them.
func GetMetadata(md metadata.MD, key string) ([]string, error) {
	values := md.Get(key)
	if flag := md.Get(key + encoded); len(flag) == 0 || flag[0] != "1" {
		return values, nil
	}
	plain := make([]string, len(values))
	for i, v := range values {
		var err error
		if plain[i], err = url.QueryUnescape(v); err != nil {
			return nil, fmt.Errorf("decode metadata %s: %w", key, err)
		}
	}
	return plain, nil
}

// first is the first value of key, or nothing.
func first(md metadata.MD, key string) (string, error) {
	values, err := GetMetadata(md, key)
	if err != nil || len(values) == 0 {
		return "", err
	}
	return values[0], nil
}

// ParseMeta reads what a client says of its session.
func ParseMeta(md metadata.MD) (Meta, error) {
	var m Meta
	var err error
	if m.ID, err = first(md, keyID); err != nil {
		return Meta{}, err
	}
	if m.ID == "" {
		return Meta{}, fmt.Errorf("session without an id: want the metadata %s", keyID)
	}
	if m.SharedKey, err = first(md, keySharedKey); err != nil {
		return Meta{}, err
	}
	m.Methods = md.Get(keyMethod)
	if m.HealthTimeout, err = number(md, keyHealth); err != nil {
		return Meta{}, err
	}
	if m.Chunk, err = number(md, keyChunk); err != nil {
		return Meta{}, err
	}
	m.Chunk = min(m.Chunk, LargeChunk)
	return m, nil
}

// number reads a number that may be absent, and is then 0.
func number(md metadata.MD, key string) (int, error) {
	v := md.Get(key)
	if len(v) == 0 {
		return 0, nil
	}
	n, err := strconv.ParseUint(v[0], 10, 31)
	if err != nil {
		return 0, fmt.Errorf("metadata %s: want a number, not %q", key, v[0])
	}
	return int(n), nil
}

// metadata is what a client tells of m.
func (m Meta) metadata() metadata.MD {
	md := metadata.MD{}
	SetMetadata(md, keyID, []string{m.ID})
	SetMetadata(md, keySharedKey, []string{m.SharedKey})
	md.Set(keyMethod, m.Methods...)
	if m.Chunk > 0 {
		md.Set(keyChunk, strconv.Itoa(m.Chunk))
	}
	return md
}
