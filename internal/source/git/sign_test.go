package git_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/kiln-build/kiln/internal/source"
	"github.com/kiln-build/kiln/llb"
)

func sourceOptions() source.Options { return source.Options{} }

// signer signs in one of two ways.
type signer struct {
	public string
	sign   func(object string) string
}

func pgpSigner(t *testing.T, config *packet.Config) signer {
	t.Helper()
	e, err := openpgp.NewEntity("Somebody", "", "s@example.com", config)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
	if err == nil {
		err = e.Serialize(w)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return signer{b.String(), func(object string) string {
		var b bytes.Buffer
		if err := openpgp.ArmoredDetachSign(&b, e, strings.NewReader(object), config); err != nil {
			t.Fatal(err)
		}
		return strings.TrimSuffix(b.String(), "\n") + "\n"
	}}
}

// sshSigner signs with ssh-keygen, as git does.
func sshSigner(t *testing.T, namespace string) signer {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("this test needs ssh-keygen: %v\n%s", err, out)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return signer{string(public), func(object string) string {
		cmd := exec.Command("ssh-keygen", "-Y", "sign", "-n", namespace, "-f", key)
		cmd.Stdin = strings.NewReader(object)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("sign: %v", err)
		}
		return string(out)
	}}
}

// store writes an object and makes a reference of it.
func (o *origin) store(kind, object, ref string) {
	o.t.Helper()
	cmd := exec.Command("git", "hash-object", "-w", "-t", kind, "--stdin")
	cmd.Dir = o.dir
	cmd.Stdin = strings.NewReader(object)
	out, err := cmd.CombinedOutput()
	if err != nil {
		o.t.Fatalf("store %s: %v\n%s", kind, err, out)
	}
	o.git("update-ref", ref, strings.TrimSpace(string(out)))
}

// signCommit makes a branch with a signed commit.
func (o *origin) signCommit(s signer, branch, header string) {
	o.t.Helper()
	commit := "tree " + o.git("rev-parse", "HEAD^{tree}") + "\nauthor A <a@example.com> 1000000000 +0000\n" +
		"committer C <c@example.com> 1000000000 +0000\n\nsigned on " + branch + "\n"
	sig := strings.ReplaceAll(strings.TrimSuffix(s.sign(commit), "\n"), "\n", "\n ")
	head, body, _ := strings.Cut(commit, "\n\n")
	o.store("commit", head+"\n"+header+" "+sig+"\n\n"+body, "refs/heads/"+branch)
}

// signTag makes a signed tag of a commit.
func (o *origin) signTag(s signer, name, commit string) {
	o.t.Helper()
	tag := "object " + o.git("rev-parse", commit) + "\ntype commit\ntag " + name + "\ntagger C <c@example.com> 1000000000 +0000\n\na tag\n"
	o.store("tag", tag+s.sign(tag), "refs/tags/"+name)
}

func TestSignatures(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		for _, kind := range []string{"pgp", "ssh"} {
			t.Run(format+" "+kind, func(t *testing.T) { testSignatures(t, format, kind) })
		}
	}
}

func testSignatures(t *testing.T, format, kind string) {
	var good, bad signer
	refused := "signature made by unknown entity"
	if kind == "pgp" {
		good, bad = pgpSigner(t, nil), pgpSigner(t, nil)
	} else {
		good, bad = sshSigner(t, "git"), sshSigner(t, "git")
		refused = "failed to verify ssh signature"
	}
	header := "gpgsig"
	if format == "sha256" {
		header = "gpgsig-sha256"
	}
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"), "--object-format="+format)
	o.commit("a", "1")
	o.git("tag", "-a", "plain", "-m", "plain")
	o.git("tag", "light")
	o.signCommit(good, "signed", header)
	o.signCommit(bad, "other", header)
	o.signTag(good, "both", "signed")
	o.signTag(good, "tagonly", "main")
	o.signTag(bad, "badtag", "signed")
	o.git("tag", "-a", "commitonly", "-m", "x", "signed")
	// A signature of something else.
	object := o.git("cat-file", "commit", "signed")
	o.store("commit", strings.Replace(object, "signed on", "forged on", 1)+"\n", "refs/heads/forged")
	s := serve(t, top)
	require, ignore := []string{"git.sig.requiresignedtag", "true"}, []string{"git.sig.ignoresignedtag", "true"}
	for _, tc := range []struct {
		ref, want string
		attrs     []string
	}{
		{"signed", "", nil},
		{o.git("rev-parse", "signed"), "", nil},
		{"main", "git object is not signed", nil},
		{"light", "git object is not signed", nil},
		{"plain", "git object is not signed", nil},
		{"other", refused, nil},
		{"both", "", nil},
		{"both", "", require},
		{"both", "", ignore},
		{o.git("rev-parse", "both"), "", require},
		{"tagonly", "", require},
		{"tagonly", "git object is not signed", ignore},
		{"badtag", "", nil}, // the commit is signed
		{"badtag", refused, require},
		{"commitonly", "", nil},
		{"commitonly", "git object is not signed", require},
		{"signed", "signed tag required but no signed tag found", require},
		{"signed", "", []string{"git.sig.rejectexpired", "true"}},
		{"signed", "key", []string{"git.sig.pubkey", ""}},
		{"signed", "key", []string{"git.sig.pubkey", "garbage"}},
		{"signed", "", []string{"git.keepgitdir", "true"}},
		{"both", "", []string{"git.keepgitdir", "true"}},
	} {
		op := s.op("/r.git#"+tc.ref, append([]string{"git.sig.pubkey", good.public}, tc.attrs...)...)
		pin, err := w.source().Resolve(t.Context(), op, source.Options{})
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s %v: %v", tc.ref, tc.attrs, err)
		case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
			t.Errorf("%s %v: got %v, want %q", tc.ref, tc.attrs, err, tc.want)
		case err == nil && pin.Git.CommitObject != nil:
			t.Error("objects were told that nobody asked for")
		}
	}
	if _, err := w.source().Resolve(t.Context(), s.op("/r.git#forged", "git.sig.pubkey", good.public), source.Options{}); err == nil {
		t.Error("a forged commit was taken")
	}
	w.clean(t)
}

func TestExpiredKey(t *testing.T) {
	past := &packet.Config{Time: func() time.Time { return time.Now().Add(-48 * time.Hour) }, KeyLifetimeSecs: 3600 * 24}
	s := pgpSigner(t, past)
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	o.commit("a", "1")
	o.signCommit(s, "signed", "gpgsig")
	web := serve(t, top)
	op := web.op("/r.git#signed", "git.sig.pubkey", s.public)
	if _, err := w.source().Resolve(t.Context(), op, source.Options{}); err != nil {
		t.Errorf("signed before the key expired: %v", err)
	}
	op.Attrs["git.sig.rejectexpired"] = "true"
	if _, err := w.source().Resolve(t.Context(), op, source.Options{}); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("got %v", err)
	}
}

func TestWrongNamespace(t *testing.T) {
	if _, err := exec.LookPath("ssh-keygen"); err != nil {
		t.Fatal(err)
	}
	s := sshSigner(t, "file")
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	o.commit("a", "1")
	o.signCommit(s, "signed", "gpgsig")
	_, err := w.source().Resolve(t.Context(), serve(t, top).op("/r.git#signed", "git.sig.pubkey", s.public), source.Options{})
	if err == nil || !strings.Contains(err.Error(), "unexpected SSH signature namespace") {
		t.Errorf("got %v", err)
	}
}

func TestObjects(t *testing.T) {
	w, top := newWorld(t), t.TempDir()
	o := newOrigin(t, filepath.Join(top, "r.git"))
	commit := o.commit("a", "1")
	o.git("tag", "-a", "v1", "-m", "v1")
	tag := o.git("rev-parse", "v1")
	s := serve(t, top)
	for _, tc := range []struct {
		ref  string
		want source.Git
	}{
		{"main", source.Git{Ref: "refs/heads/main", Checksum: commit}},
		{"v1", source.Git{Ref: "refs/tags/v1", Checksum: tag, CommitChecksum: commit}},
		{commit, source.Git{Ref: commit, Checksum: commit}},
		{tag, source.Git{Ref: tag, Checksum: tag, CommitChecksum: commit}},
	} {
		pin, err := w.source().Resolve(t.Context(), s.op("/r.git#"+tc.ref), source.Options{GitObjects: true})
		if err != nil {
			t.Fatal(err)
		}
		got := *pin.Git
		if want := o.git("cat-file", "commit", commit) + "\n"; string(got.CommitObject) != want {
			t.Errorf("%s: commit %q, want %q", tc.ref, got.CommitObject, want)
		}
		if tc.want.CommitChecksum != "" && string(got.TagObject) != o.git("cat-file", "tag", tag)+"\n" {
			t.Errorf("%s: tag %q", tc.ref, got.TagObject)
		}
		if got.Ref != tc.want.Ref || got.Checksum != tc.want.Checksum || got.CommitChecksum != tc.want.CommitChecksum {
			t.Errorf("%s: got %+v, want %+v", tc.ref, got, tc.want)
		}
	}
	o.git("update-ref", "refs/tags/tree", o.git("rev-parse", "HEAD^{tree}"))
	for _, op := range []*llb.SourceOp{s.op("/r.git#tree")} {
		if pin, _, err := w.get(t.Context(), w.source(), op); err == nil {
			t.Errorf("a tree was taken for a commit: %+v", pin)
		}
	}
}
