package source

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Limits of what a signature may consist of, bytes.
const (
	maxSignature = 1 << 20
	maxKeyRing   = 16 << 20
)

// clockSkew is how far ahead of ours the clock of who signed may be.
const clockSkew = 5 * time.Minute

// CheckPGP checks a detached, armored OpenPGP signature of signed by one of
// keys: armored public keys, one after the other. A key that has expired since
// it signed is taken unless rejectExpired.
func CheckPGP(signed io.Reader, signature, keys []byte, rejectExpired bool) error {
	sig, raw, err := readPGPSignature(signature)
	if err != nil {
		return err
	}
	ring, err := readKeyRing(keys)
	if err != nil {
		return err
	}
	if err := checkAlgorithms(sig); err != nil {
		return err
	}
	now := time.Now()
	if sig.CreationTime.After(now.Add(clockSkew)) {
		return fmt.Errorf("signature creation time is in the future: %v", sig.CreationTime)
	}
	config := &packet.Config{}
	if !rejectExpired {
		config.Time = func() time.Time { return sig.CreationTime }
	}
	signer, err := openpgp.CheckDetachedSignature(ring, signed, bytes.NewReader(raw), config)
	if err != nil {
		if sig.IssuerKeyId != nil {
			return fmt.Errorf("signature by %X: %w", *sig.IssuerKeyId, err)
		}
		return err
	}
	return checkSigner(signer, now, rejectExpired)
}

// readPGPSignature returns the first signature of an armored block, and the
// block's bytes.
func readPGPSignature(armored []byte) (*packet.Signature, []byte, error) {
	if len(armored) > maxSignature {
		return nil, nil, fmt.Errorf("signature is of %d bytes, expected at most %d", len(armored), maxSignature)
	}
	block, err := armor.Decode(bytes.NewReader(armored))
	if err != nil {
		return nil, nil, fmt.Errorf("decode armored signature: %w", err)
	}
	raw, err := io.ReadAll(block.Body)
	if err != nil {
		return nil, nil, fmt.Errorf("read armored signature: %w", err)
	}
	packets := packet.NewReader(bytes.NewReader(raw))
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			return nil, nil, errors.New("no signature packet found")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("read signature packet: %w", err)
		}
		if sig, ok := p.(*packet.Signature); ok {
			return sig, raw, nil
		}
	}
}

func readKeyRing(keys []byte) (openpgp.EntityList, error) {
	if len(keys) > maxKeyRing {
		return nil, fmt.Errorf("public keys are of %d bytes, expected at most %d", len(keys), maxKeyRing)
	}
	// One block at a time: the decoder reads past the end of its own.
	begin := []byte("-----BEGIN PGP")
	var ring openpgp.EntityList
	for i := bytes.Index(keys, begin); i >= 0; {
		keys = keys[i:]
		this := keys
		if i = bytes.Index(keys[len(begin):], begin); i >= 0 {
			i += len(begin)
			this = keys[:i]
		}
		block, err := armor.Decode(bytes.NewReader(this))
		if err != nil {
			return nil, fmt.Errorf("decode armored public key: %w", err)
		}
		if block.Type != openpgp.PublicKeyType && block.Type != openpgp.PrivateKeyType {
			return nil, fmt.Errorf("failed to read armored public key: expected a block of keys, got %q", block.Type)
		}
		entities, err := openpgp.ReadKeyRing(block.Body)
		if err != nil {
			return nil, fmt.Errorf("failed to read armored public key: %w", err)
		}
		ring = append(ring, entities...)
	}
	if len(ring) == 0 {
		return nil, errors.New("failed to read armored public key: there is none")
	}
	return ring, nil
}

// checkAlgorithms refuses what is no longer safe, or was never known.
func checkAlgorithms(sig *packet.Signature) error {
	switch sig.Hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return fmt.Errorf("rejecting weak or unknown hash %v of the signature: expected SHA-256, SHA-384 or SHA-512", sig.Hash)
	}
	switch sig.PubKeyAlgo {
	case packet.PubKeyAlgoEdDSA, packet.PubKeyAlgoECDSA, packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSASignOnly:
		return nil
	}
	return fmt.Errorf("rejecting algorithm %v of the signature's key: expected RSA, ECDSA or EdDSA", sig.PubKeyAlgo)
}

// minRSA is the length of the shortest RSA key that is taken, in bits.
const minRSA = 2048

func checkSigner(e *openpgp.Entity, now time.Time, rejectExpired bool) error {
	if e == nil || e.PrimaryKey == nil {
		return errors.New("the signer has no key")
	}
	if id := e.PrimaryIdentity(); rejectExpired && id != nil && id.SelfSignature != nil {
		if life := id.SelfSignature.KeyLifetimeSecs; life != nil && *life > 0 {
			if end := e.PrimaryKey.CreationTime.Add(time.Duration(*life) * time.Second); now.After(end) {
				return fmt.Errorf("key expired at %v", end)
			}
		}
	}
	for _, r := range e.Revocations {
		if r == nil || r.SigType != packet.SigTypeKeyRevocation || e.PrimaryKey.VerifyRevocationSignature(r) != nil {
			continue
		}
		return fmt.Errorf("key revoked: %s", r.RevocationReasonText)
	}
	if key, ok := e.PrimaryKey.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < minRSA {
		return fmt.Errorf("RSA key too short: %d bits, expected at least %d", key.N.BitLen(), minRSA)
	}
	return nil
}
