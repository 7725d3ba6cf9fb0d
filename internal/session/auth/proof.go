package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/kiln-build/kiln/internal/api/auth"
)

// Authority names the credentials that a client has for a host, without giving
// them away: clients with the same credentials have the same name under the
// same salt, and have proved that they know them. What the daemon was given for
// one of them it may use for the others. The error is [errors.ErrUnsupported]
// if the client does not say.
func (c Client) Authority(ctx context.Context, host string, salt []byte) (string, error) {
	if !c.caller.Supports(auth.Auth_GetTokenAuthority_FullMethodName) || !c.caller.Supports(auth.Auth_VerifyTokenAuthority_FullMethodName) {
		return "", errors.ErrUnsupported
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client := auth.NewAuthClient(c.caller.Conn())
	got, err := client.GetTokenAuthority(ctx, &auth.GetTokenAuthorityRequest{Host: host, Salt: salt})
	if absent(err) {
		return "", errors.ErrUnsupported
	} else if err != nil {
		return "", fmt.Errorf("ask the client for its authority over %s: %w", host, err)
	}
	key := ed25519.PublicKey(got.GetPublicKey())
	if len(key) != ed25519.PublicKeySize {
		return "", fmt.Errorf("ask the client for its authority over %s: the key has %d bytes, expected %d", host, len(key), ed25519.PublicKeySize)
	}
	payload := make([]byte, 32)
	_, _ = rand.Read(payload) // never fails
	proof, err := client.VerifyTokenAuthority(ctx, &auth.VerifyTokenAuthorityRequest{Host: host, Payload: payload, Salt: salt})
	if absent(err) {
		return "", errors.ErrUnsupported
	} else if err != nil {
		return "", fmt.Errorf("have the client prove its authority over %s: %w", host, err)
	}
	// The signature comes before what is signed.
	signed := proof.GetSigned()
	if len(signed) != ed25519.SignatureSize+len(payload) || string(signed[ed25519.SignatureSize:]) != string(payload) ||
		!ed25519.Verify(key, payload, signed[:ed25519.SignatureSize]) {
		return "", fmt.Errorf("the client has not proved its authority over %s", host)
	}
	return hex.EncodeToString(key), nil
}
