package git

import (
	"bytes"
	"context"
	"crypto/sha1" //nolint:gosec // git's own
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/kiln-build/kiln/internal/source"
)

// readObjects adds the objects to what is known of a reference. A commit that
// was asked for by its name may turn out to be a tag.
func (s *Source) readObjects(ctx context.Context, r *request, p *source.Git) error {
	run, closeRun, err := s.open(ctx, r)
	if err != nil {
		return err
	}
	defer closeRun()
	repo, release, err := s.repository(ctx, run, r, *p)
	if err != nil {
		return err
	}
	defer release()
	read := func(args ...string) ([]byte, error) {
		return run.run(ctx, command{gitDir: repo.dir, args: args})
	}
	kind, err := read("cat-file", "-t", p.Checksum)
	if err != nil {
		return err
	}
	switch kind := strings.TrimSpace(string(kind)); kind {
	case "commit":
		p.CommitChecksum = ""
		p.CommitObject, err = read("cat-file", "commit", p.Checksum)
		return err
	case "tag":
		sum, err := read("rev-parse", "--verify", "--end-of-options", p.Checksum+"^{commit}")
		if err != nil {
			return err
		}
		p.CommitChecksum = strings.TrimSpace(string(sum))
		if p.TagObject, err = read("cat-file", "tag", p.Checksum); err != nil {
			return err
		}
		p.CommitObject, err = read("cat-file", "commit", p.CommitChecksum)
		return err
	default:
		return fmt.Errorf("expected commit or tag object, got %s", clip(kind))
	}
}

// signature is what is expected of the signature of a tag or commit.
type signature struct {
	keys             []byte // armored OpenPGP keys, or an ssh public key
	rejectExpired    bool
	requireSignedTag bool
	ignoreSignedTag  bool
}

// check checks the tag's signature or, unless one is required, the commit's.
func (s *signature) check(p *source.Git) error {
	var tagError error
	if len(p.TagObject) > 0 && !s.ignoreSignedTag {
		if tagError = s.checkObject("tag", p.TagObject, p.Checksum); tagError == nil {
			return nil
		}
	}
	if s.requireSignedTag {
		if tagError != nil {
			return tagError
		}
		return errors.New("signed tag required but no signed tag found")
	}
	sum := p.Checksum
	if p.CommitChecksum != "" {
		sum = p.CommitChecksum
	}
	return s.checkObject("commit", p.CommitObject, sum)
}

func (s *signature) checkObject(kind string, object []byte, sum string) error {
	if err := checkName(kind, object, sum); err != nil {
		return err
	}
	header := "gpgsig"
	if len(sum) == 64 {
		header = "gpgsig-sha256"
	}
	signed, sig := splitCommit(object, header)
	if kind == "tag" {
		signed, sig = splitTag(object)
	}
	switch {
	case len(sig) == 0:
		return errors.New("git object is not signed")
	case bytes.HasPrefix(sig, []byte(pgpBegin)):
		return source.CheckPGP(bytes.NewReader(signed), sig, s.keys, s.rejectExpired)
	case bytes.HasPrefix(sig, []byte(sshBegin)):
		return s.checkSSH(signed, sig)
	}
	return errors.New("invalid signature format: expected a PGP or an SSH signature")
}

// checkName holds an object against its name, which is its hash.
func checkName(kind string, object []byte, sum string) error {
	var h hash.Hash = sha1.New() //nolint:gosec // git's own
	if len(sum) == 64 {
		h = sha256.New()
	}
	fmt.Fprintf(h, "%s %d\x00", kind, len(object))
	h.Write(object)
	if got := hex.EncodeToString(h.Sum(nil)); got != sum {
		return fmt.Errorf("%s object checksum verification failed: expected %s, got %s", kind, sum, got)
	}
	return nil
}

const (
	pgpBegin = "-----BEGIN PGP SIGNATURE-----"
	sshBegin = "-----BEGIN SSH SIGNATURE-----"
)

// splitCommit takes the signatures, headers whose further lines begin with a
// space, out of a commit, and returns the one of a header. What is signed is the
// rest.
func splitCommit(object []byte, header string) (signed, sig []byte) {
	head, body, found := bytes.Cut(object, []byte("\n\n"))
	if !found {
		return object, nil
	}
	in := "" // the signature that the line belongs to
	for line := range bytes.SplitSeq(head, []byte("\n")) {
		name, rest, _ := bytes.Cut(line, []byte(" "))
		switch {
		case string(name) == "gpgsig" || string(name) == "gpgsig-sha256":
			in = string(name)
		case len(name) > 0 || in == "":
			in = ""
			signed = append(append(signed, line...), '\n')
			continue
		}
		if in == header {
			sig = append(append(sig, rest...), '\n')
		}
	}
	return append(append(signed, '\n'), body...), sig
}

// splitTag takes the signature, the end of the message, off a tag.
func splitTag(object []byte) (signed, sig []byte) {
	for _, begin := range []string{pgpBegin, sshBegin} {
		if i := bytes.Index(object, []byte("\n"+begin+"\n")); i >= 0 {
			return object[:i+1], object[i+1:]
		}
	}
	return object, nil
}

// checkSSH checks a signature of OpenSSH, which git makes in the namespace "git".
func (s *signature) checkSSH(signed, armored []byte) error {
	block, _ := pem.Decode(armored)
	if block == nil || block.Type != "SSH SIGNATURE" {
		return errors.New("failed to parse ssh signature: it is no PEM block")
	}
	sig, err := sshsig.ParseSignature(block.Bytes)
	if err != nil {
		return fmt.Errorf("failed to parse ssh signature: %w", err)
	}
	switch {
	case sig.Version != 1:
		return fmt.Errorf("unsupported SSH signature version: %d", sig.Version)
	case sig.HashAlgorithm != sshsig.HashSHA256 && sig.HashAlgorithm != sshsig.HashSHA512:
		return fmt.Errorf("unsupported SSH signature hash algorithm: %s", sig.HashAlgorithm)
	case sig.Namespace != "git":
		return fmt.Errorf("unexpected SSH signature namespace: %q", sig.Namespace)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(s.keys)
	if err != nil {
		return fmt.Errorf("failed to parse ssh public key: %w", err)
	}
	if err := sshsig.Verify(bytes.NewReader(signed), sig, key, sig.HashAlgorithm, sig.Namespace); err != nil {
		return fmt.Errorf("failed to verify ssh signature: %w", err)
	}
	return nil
}
