package http

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/kiln-build/kiln/internal/safepath"
	"github.com/kiln-build/kiln/internal/source"
)

// checkQuery refuses a question that has no answer.
func checkQuery(q *source.ChecksumQuery) error {
	if q == nil {
		return nil
	}
	if len(q.Suffix) > source.MaxChecksumSuffix {
		return fmt.Errorf("http checksum request suffix exceeds max size %d", source.MaxChecksumSuffix)
	}
	switch q.Algorithm {
	case digest.SHA256, digest.SHA384, digest.SHA512:
		return nil
	}
	return fmt.Errorf("unsupported checksum algorithm %q: expected sha256, sha384 or sha512", q.Algorithm)
}

// inspect reads the file: it checks its signature, if the request has one, and
// puts the checksum that is asked for, if any, into pin.
func (s *Source) inspect(ctx context.Context, r *request, got answer, query *source.ChecksumQuery, pin *source.Pin) (err error) {
	dir, release, err := s.cfg.Layers.Mount(ctx, got.ref)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	root, err := safepath.Open(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.Open(got.file.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	if r.keys != nil {
		if err := source.CheckPGP(f, r.signature, r.keys, false); err != nil {
			return fmt.Errorf("failed to verify pgp signature: %w", err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
	}
	if query == nil {
		return nil
	}
	hash := query.Algorithm.Hash()
	if _, err := io.Copy(hash, f); err != nil {
		return fmt.Errorf("hash file: %w", err)
	}
	hash.Write(query.Suffix)
	pin.Checksum = digest.NewDigest(query.Algorithm, hash)
	return nil
}
