package cache

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/internal/layer"
	"github.com/kiln-build/kiln/internal/solver"
)

// Record is what a cache by key keeps of one subject: the results of a step, or
// the digest of a part of a result. It names all that is needed to use a result
// without pulling it.
type Record struct {
	Subject string         `json:"subject"`           // see [ResultSubject] and [ContentSubject]
	Scope   string         `json:"scope,omitempty"`   // who shares it, such as a branch; "" is everybody
	Outputs []RecordOutput `json:"outputs,omitempty"` // of a step
	Content string         `json:"content,omitempty"` // digest of a part of a result
	// Of is the chain id of the layers of the result that Content is of, where it is
	// known: another run of the step may have made something else.
	Of digest.Digest `json:"of,omitempty"`
	// Mount is the snapshot of a cache mount; who wrote it knows how to read it.
	Mount   json.RawMessage `json:"mount,omitempty"`
	SavedAt time.Time       `json:"savedAt"`
	Writer  string          `json:"writer,omitempty"` // the public key that signed it, see [Identity.Public]
}

// RecordOutput is one result of a step: layers base first, a value, or, with
// neither, the empty file system.
type RecordOutput struct {
	Layers []RecordLayer `json:"layers,omitempty"`
	Value  []byte        `json:"value,omitempty"`
	Absent bool          `json:"absent,omitempty"` // not made, for nobody wanted it
}

// RecordLayer is a layer that is pulled when somebody reads it.
type RecordLayer struct {
	MediaType   string        `json:"mediaType"`
	Digest      digest.Digest `json:"digest"`
	Size        int64         `json:"size"` // bytes
	DiffID      digest.Digest `json:"diffID"`
	Windows     bool          `json:"windows,omitempty"` // see [layer.LazyBlob]
	CreatedAt   time.Time     `json:"createdAt,omitzero"`
	Description string        `json:"description,omitempty"`
	// Annotations are those that a reader of the blob needs, as of estargz.
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Limits of what is read.
const (
	// LargestRecord is how many bytes a record has at most.
	LargestRecord    = 4 << 20
	mostRecordLayers = 10_000
	mostOutputs      = 1_000
	largestValueKept = 64 << 10 // bytes
)

// ResultSubject is what a record of a step's results is kept under.
func ResultSubject(k solver.Key) string { return "result:" + string(k) }

// ContentSubject is what a record of a content digest is kept under.
func ContentSubject(of solver.Ingredient) string {
	return fmt.Sprintf("content:%s@%d:%s", of.Key, of.Index, of.Selector)
}

// MountSubject is what the snapshot of the cache mount of an id is kept under.
func MountSubject(id string) string { return mountPrefix + id }

const mountPrefix = "mount:"

// aboutSubject is the subject of a record that says that there are others.
const aboutSubject = "about:"

// RecordName is what a [Shelf] keeps a record under.
func RecordName(subject, scope string) string {
	return fmt.Sprintf("1-%x", sha256.Sum256([]byte(scope+"\x00"+subject)))
}

// layerOf tells of a blob.
func layerOf(b layer.Blob) RecordLayer {
	rec := b.Ref.Record()
	return RecordLayer{
		MediaType: b.Desc.MediaType, Digest: b.Desc.Digest, Size: b.Desc.Size, DiffID: b.DiffID, Windows: rec.Windows,
		CreatedAt: rec.CreatedAt.UTC(), Description: rec.Description, Annotations: b.Desc.Annotations,
	}
}

// Descriptor is the blob of a layer.
func (l RecordLayer) Descriptor() ocispecs.Descriptor {
	return ocispecs.Descriptor{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size, Annotations: l.Annotations}
}

// Lazy is the layer, to be pulled from origin.
func (l RecordLayer) Lazy(origin string) layer.LazyBlob {
	return layer.LazyBlob{Desc: l.Descriptor(), DiffID: l.DiffID, Origin: origin, Windows: l.Windows, CreatedAt: l.CreatedAt, Description: l.Description}
}

// Blobs are what the record needs to be of use, each once.
func (r *Record) Blobs() (out []ocispecs.Descriptor) {
	seen := map[digest.Digest]bool{}
	for _, o := range r.Outputs {
		for _, l := range o.Layers {
			if !seen[l.Digest] {
				seen[l.Digest] = true
				out = append(out, l.Descriptor())
			}
		}
	}
	return out
}

// chain is the chain id of an output's layers, or "" if it has none.
func (r *Record) chain(output int) digest.Digest {
	if output >= len(r.Outputs) {
		return ""
	}
	var ids []digest.Digest
	for _, l := range r.Outputs[output].Layers {
		ids = append(ids, l.DiffID)
	}
	return identity.ChainID(ids)
}

// complete tells whether the record has every result: none will be added.
func (r *Record) complete() bool {
	return !slices.ContainsFunc(r.Outputs, func(o RecordOutput) bool { return o.Absent })
}

// check holds a record against what a record can be.
func (r *Record) check() error {
	switch {
	case r.Subject == aboutSubject:
		if len(r.Outputs) > 0 || r.Content != "" {
			return fmt.Errorf("record about a cache has %d results, expected none", len(r.Outputs))
		}
		return nil
	case strings.HasPrefix(r.Subject, mountPrefix):
		if len(r.Outputs) > 0 || r.Content != "" || len(r.Mount) == 0 {
			return fmt.Errorf("record of a cache mount has %d results and a snapshot of %d bytes, expected a snapshot alone", len(r.Outputs), len(r.Mount))
		}
		return nil
	case len(r.Mount) > 0:
		return fmt.Errorf("record of %.40q has the snapshot of a cache mount", r.Subject)
	case strings.HasPrefix(r.Subject, "content:"):
		if len(r.Outputs) > 0 || digest.Digest(r.Content).Validate() != nil || r.Of != "" && r.Of.Validate() != nil {
			return fmt.Errorf("record of a content digest has %d results and digest %q, expected none and sha256:<64 hex digits>", len(r.Outputs), r.Content)
		}
		return nil
	case !strings.HasPrefix(r.Subject, "result:"):
		return fmt.Errorf("record has unknown subject %.40q: expected a result or a content digest", r.Subject)
	case r.Content != "" || len(r.Outputs) == 0 || len(r.Outputs) > mostOutputs:
		return fmt.Errorf("record of a step has %d results, expected 1 to %d and no content digest", len(r.Outputs), mostOutputs)
	}
	layers := 0
	for i, o := range r.Outputs {
		if layers += len(o.Layers); layers > mostRecordLayers {
			return fmt.Errorf("record has more than %d layers", mostRecordLayers)
		}
		if err := o.check(); err != nil {
			return fmt.Errorf("record's result %d: %w", i, err)
		}
	}
	return nil
}

func (o RecordOutput) check() error {
	if len(o.Value) > largestValueKept {
		return fmt.Errorf("value of %d bytes, expected at most %d", len(o.Value), largestValueKept)
	}
	if o.Absent && (len(o.Layers) > 0 || o.Value != nil) || len(o.Layers) > 0 && o.Value != nil {
		return errors.New("is more than one of absent, layers and a value")
	}
	for i, l := range o.Layers {
		switch {
		case l.Digest.Validate() != nil || l.DiffID.Validate() != nil:
			return fmt.Errorf("layer %d has malformed digest %q or diff id %q", i, l.Digest, l.DiffID)
		case l.Size < 0:
			return fmt.Errorf("layer %d has size %d", i, l.Size)
		case !images.IsLayerType(l.MediaType):
			return fmt.Errorf("layer %d has media type %q, which is not a layer's", i, l.MediaType)
		}
	}
	return nil
}

// recordType is what a signature says that it is of.
const recordType = "application/vnd.kiln.cache.record.v1+json"

// envelope is a record with its signature, in the form of DSSE.
type envelope struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []signature `json:"signatures,omitempty"`
}

type signature struct {
	KeyID string `json:"keyid"` // the public key
	Sig   []byte `json:"sig"`
}

// signedBytes is what DSSE has signed: the type and the payload with their lengths.
func (e envelope) signedBytes() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "DSSEv1 %d %s %d ", len(e.PayloadType), e.PayloadType, len(e.Payload))
	b.Write(e.Payload)
	return b.Bytes()
}

// Identity signs what a daemon writes.
type Identity struct{ private ed25519.PrivateKey }

// publicPrefix begins public keys in text.
const publicPrefix = "ed25519:"

// NewIdentity makes an identity of 32 bytes that nobody else may know.
func NewIdentity(seed []byte) (*Identity, error) {
	if len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("identity of caches: key has %d bytes, expected %d", len(seed), ed25519.SeedSize)
	}
	return &Identity{ed25519.NewKeyFromSeed(seed)}, nil
}

// Public is the public key, as policies name it: "ed25519:" and base64.
func (id *Identity) Public() string {
	return publicPrefix + base64.RawURLEncoding.EncodeToString(id.private.Public().(ed25519.PublicKey))
}

// parsePublic reads what [Identity.Public] writes.
func parsePublic(text string) (ed25519.PublicKey, error) {
	b64, ok := strings.CutPrefix(text, publicPrefix)
	key, err := base64.RawURLEncoding.DecodeString(b64)
	if !ok || err != nil || len(key) != ed25519.PublicKeySize {
		return nil, fmt.Errorf(`public key %.80q: expected "ed25519:" and 43 characters of base64, as "kiln cache identity" shows it`, text)
	}
	return key, nil
}

// Seal writes a record under a signature. A nil Identity signs nothing.
func (id *Identity) Seal(r Record) ([]byte, error) {
	r.SavedAt = r.SavedAt.UTC()
	r.Writer = ""
	if id != nil {
		r.Writer = id.Public()
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("encode %w", err)
	}
	payload, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	data, err := id.sign(recordType, payload)
	if err != nil {
		return nil, fmt.Errorf("encode record: %w", err)
	}
	return data, nil
}

// sign writes an envelope.
func (id *Identity) sign(payloadType string, payload []byte) ([]byte, error) {
	e := envelope{PayloadType: payloadType, Payload: payload}
	if id != nil {
		e.Signatures = []signature{{id.Public(), ed25519.Sign(id.private, e.signedBytes())}}
	}
	data, err := json.Marshal(e)
	if err == nil && len(data) > LargestRecord {
		err = fmt.Errorf("it has %d bytes, at most %d can be kept", len(data), LargestRecord)
	}
	return data, err
}

// openEnvelope reads an envelope, whose signature is not verified.
func openEnvelope(data []byte, payloadType string) (e envelope, err error) {
	if len(data) > LargestRecord {
		return e, fmt.Errorf("record has %d bytes, expected at most %d", len(data), LargestRecord)
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("decode record: %w", err)
	}
	if e.PayloadType != payloadType {
		return e, fmt.Errorf("record is a %.80q, expected %s", e.PayloadType, payloadType)
	}
	return e, nil
}

// OpenRecord reads a record and checks that it is what it claims: a record that
// names a writer has that writer's signature.
func OpenRecord(data []byte) (*Record, error) {
	e, err := openEnvelope(data, recordType)
	if err != nil {
		return nil, err
	}
	var r Record
	if err := json.Unmarshal(e.Payload, &r); err != nil {
		return nil, fmt.Errorf("decode record: %w", err)
	}
	if err := e.verify(r.Writer); err != nil {
		return nil, err
	}
	if err := r.check(); err != nil {
		return nil, err
	}
	return &r, nil
}

// verify checks the one signature that there may be.
func (e envelope) verify(writer string) error {
	if len(e.Signatures) == 0 && writer == "" {
		return nil
	}
	if len(e.Signatures) != 1 || e.Signatures[0].KeyID != writer {
		return fmt.Errorf("record has %d signatures, expected one of %q, who is its writer", len(e.Signatures), writer)
	}
	key, err := parsePublic(writer)
	if err != nil {
		return fmt.Errorf("record's writer: %w", err)
	}
	if !ed25519.Verify(key, e.signedBytes(), e.Signatures[0].Sig) {
		return fmt.Errorf("record's signature by %s does not hold: it was changed, or is forged", writer)
	}
	return nil
}
