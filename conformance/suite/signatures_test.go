package suite

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
)

// signingKey is the variable by which this program signs for git, in gpg's place.
const signingKey = "KILN_TEST_SIGNING_KEY"

func TestMain(m *testing.M) {
	if key := os.Getenv(signingKey); key != "" {
		if err := signForGit(key); err != nil {
			fmt.Fprintln(os.Stderr, "sign:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// signForGit signs what git passes, and says so in the way of gpg.
func signForGit(key string) error {
	entity, err := readKey(key)
	if err != nil {
		return err
	}
	if err := openpgp.ArmoredDetachSign(os.Stdout, entity, os.Stdin, nil); err != nil {
		return err
	}
	fmt.Println()
	_, err = fmt.Fprintln(os.Stderr, "\n[GNUPG:] SIG_CREATED D 22 8 00 0 0")
	return err
}

func readKey(name string) (*openpgp.Entity, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ring, err := openpgp.ReadArmoredKeyRing(f)
	if err != nil {
		return nil, err
	}
	return ring[0], nil
}

// writeSignatures writes what BuildKit's tests of signatures read: for two users
// keys, configurations by which git signs with them, and a file with a signature.
func writeSignatures(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, user := range []string{"user1", "user2"} {
		if err := writePGP(dir, user, self); err != nil {
			return fmt.Errorf("make PGP key of %s: %w", user, err)
		}
		if err := writeSSH(dir, user); err != nil {
			return fmt.Errorf("make ssh key of %s: %w", user, err)
		}
	}
	return nil
}

func writePGP(dir, user, self string) error {
	entity, err := openpgp.NewEntity(user, "", user+"@example.com", nil)
	if err != nil {
		return err
	}
	public, err := armored(openpgp.PublicKeyType, entity.Serialize)
	if err != nil {
		return err
	}
	private, err := armored(openpgp.PrivateKeyType, func(w io.Writer) error { return entity.SerializePrivate(w, nil) })
	if err != nil {
		return err
	}
	artifact := []byte("what is signed, by " + user)
	var signature bytes.Buffer
	if err := openpgp.ArmoredDetachSign(&signature, entity, bytes.NewReader(artifact), nil); err != nil {
		return err
	}
	base := filepath.Join(dir, user)
	program := "#!/bin/sh\n" + signingKey + "=" + base + ".gpg.key exec " + self + "\n"
	if err := os.WriteFile(base+".sign", []byte(program), 0o700); err != nil {
		return err
	}
	for name, text := range map[string][]byte{
		".gpg.pub": public, ".gpg.key": private, ".http.artifact": artifact, ".http.artifact.asc": signature.Bytes(),
		".gpg.gitconfig": []byte("[gpg]\n\tprogram = " + base + ".sign\n" + gitUser(user, user+"@example.com")),
	} {
		if err := os.WriteFile(base+name, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func armored(kind string, write func(io.Writer) error) ([]byte, error) {
	var b bytes.Buffer
	w, err := armor.Encode(&b, kind, nil)
	if err != nil {
		return nil, err
	}
	if err := write(w); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}

func writeSSH(dir, user string) error {
	key := filepath.Join(dir, user+".ssh")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", user, "-f", key).CombinedOutput(); err != nil {
		return fmt.Errorf("ssh-keygen: %w: %s", err, out)
	}
	return os.WriteFile(key+".gitconfig", []byte("[gpg]\n\tformat = ssh\n"+gitUser(user, key)), 0o600)
}

func gitUser(user, key string) string {
	return fmt.Sprintf("[user]\n\tname = %s\n\temail = %[1]s@example.com\n\tsigningkey = %s\n[commit]\n\tgpgsign = true\n", user, key)
}
