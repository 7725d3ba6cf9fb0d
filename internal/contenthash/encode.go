package contenthash

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
)

// The encoded form: a version byte, then the root. A node is a byte of kind and
// flags, its digests (32 bytes each), a symlink's target, and a directory's
// entries: their number, then name and node of each, sorted by name. Numbers
// are varints, strings are preceded by their length.
const (
	encoding   = 1
	flagKind   = 3
	flagScan   = 1 << 2
	flagHeader = 1 << 3
	flagSum    = 1 << 4

	maxDepth = 1 << 14 // of directories
)

// Encode writes all that the tree knows, for [Decode].
func (t *Tree) Encode() []byte {
	t.family.mu.Lock()
	defer t.family.mu.Unlock()
	return appendNode([]byte{encoding}, t.root)
}

func appendNode(b []byte, n *node) []byte {
	flags := byte(n.kind)
	if n.scanned {
		flags |= flagScan
	}
	if n.header != "" {
		flags |= flagHeader
	}
	if n.sum != "" {
		flags |= flagSum
	}
	b = append(b, flags)
	b = appendDigest(b, n.header)
	b = appendDigest(b, n.sum)
	switch n.kind {
	case kindLink:
		b = appendString(b, n.link)
	case kindDir:
		b = binary.AppendUvarint(b, uint64(len(n.entries)))
		for _, e := range n.entries {
			b = appendString(b, e.name)
			b = appendNode(b, e.node)
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendDigest(b []byte, d digest.Digest) []byte {
	if d == "" {
		return b
	}
	raw, err := hex.DecodeString(d.Encoded())
	if err != nil || len(raw) != 32 {
		// Put refuses such digests, and all others are our own.
		raw = make([]byte, 32)
	}
	return append(b, raw...)
}

// Decode reads what [Tree.Encode] wrote.
func Decode(b []byte) (*Tree, error) {
	if len(b) == 0 || b[0] != encoding {
		return nil, fmt.Errorf("decode content digests: not of version %d", encoding)
	}
	t := New()
	d := decoder{rest: b[1:], edit: t.edit}
	root, err := d.node(0)
	switch {
	case err != nil:
		return nil, fmt.Errorf("decode content digests: %w", err)
	case len(d.rest) > 0:
		return nil, fmt.Errorf("decode content digests: %d bytes too many", len(d.rest))
	case root.kind != kindDir:
		return nil, errors.New("decode content digests: the root is no directory")
	}
	t.root = root
	return t, nil
}

type decoder struct {
	rest []byte
	edit *edit
}

var errShort = errors.New("it ends too early")

func (d *decoder) take(n uint64) ([]byte, error) {
	if n > uint64(len(d.rest)) {
		return nil, errShort
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b, nil
}

func (d *decoder) number() (uint64, error) {
	n, used := binary.Uvarint(d.rest)
	if used <= 0 {
		return 0, errShort
	}
	d.rest = d.rest[used:]
	return n, nil
}

func (d *decoder) string() (string, error) {
	n, err := d.number()
	if err != nil {
		return "", err
	}
	b, err := d.take(n)
	return string(b), err
}

func (d *decoder) digest(has bool) (digest.Digest, error) {
	if !has {
		return "", nil
	}
	b, err := d.take(32)
	return digest.NewDigestFromBytes(digest.SHA256, b), err
}

func (d *decoder) node(depth int) (*node, error) {
	b, err := d.take(1)
	if err != nil {
		return nil, err
	}
	flags := b[0]
	n := &node{edit: d.edit, kind: kind(flags & flagKind), scanned: flags&flagScan != 0}
	if flags >= flagSum<<1 || n.kind > kindLink || n.kind != kindDir && flags&(flagScan|flagSum) != 0 {
		return nil, fmt.Errorf("unknown kind of entry %#x", flags)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("more than %d levels", maxDepth)
	}
	if n.header, err = d.digest(flags&flagHeader != 0); err != nil {
		return nil, err
	}
	if n.sum, err = d.digest(flags&flagSum != 0); err != nil {
		return nil, err
	}
	switch n.kind {
	case kindLink:
		n.link, err = d.string()
	case kindDir:
		err = d.entries(n, depth)
	}
	return n, err
}

func (d *decoder) entries(n *node, depth int) error {
	count, err := d.number()
	if err != nil {
		return err
	}
	if count > uint64(len(d.rest)) {
		return errShort
	}
	n.entries = make([]entry, 0, count)
	last := ""
	for range count {
		name, err := d.string()
		if err != nil {
			return err
		}
		if name <= last || strings.Contains(name, "/") {
			return fmt.Errorf("entry %q after %q", name, last)
		}
		last = name
		c, err := d.node(depth + 1)
		if err != nil {
			return err
		}
		n.entries = append(n.entries, entry{name, c})
	}
	return nil
}
