package git

import (
	"strings"
	"testing"

	"github.com/kiln-build/kiln/llb"
)

// FuzzOp decodes identifiers and addresses: what is taken has nothing in it that
// a program could take for an option, and no password.
func FuzzOp(f *testing.F) {
	for _, id := range []string{
		"git://example.com/x.git#main:sub", "git://user:pass@example.com/x", "git://git@example.com:x/y#v1", "git://[::1]:80/x",
		"git://-oProxyCommand=x/y", "git://x#--upload-pack=y", "git://%2e%2e/%2e%2e#..:..", "git://ssh://-l@x/y",
	} {
		f.Add(id, "")
		f.Add("git://example.com/x", strings.TrimPrefix(id, "git://"))
	}
	f.Fuzz(func(t *testing.T, id, full string) {
		attrs := map[string]string{}
		if full != "" {
			attrs[llb.AttrGitFullURL] = full
		}
		r, err := decode(&llb.SourceOp{Identifier: id, Attrs: attrs})
		if err != nil {
			return
		}
		for _, s := range []string{r.remote, r.ref, r.host} {
			if strings.HasPrefix(s, "-") || strings.ContainsAny(s, "\x00\n\r") {
				t.Errorf("%q %q: took %q", id, full, s)
			}
		}
		if r.login != nil {
			// A path may have any words in it, those of the password as well.
			_, rest, _ := strings.Cut(r.remote, "://")
			authority, _, _ := strings.Cut(rest, "/")
			if p, ok := r.login.Password(); ok && len(p) > 3 && strings.Contains(authority, ":"+p+"@") {
				t.Errorf("%q %q: the password is in %q", id, full, r.remote)
			}
		}
		if strings.HasPrefix(r.subdir, "/") || strings.HasPrefix(r.subdir, "../") || r.subdir == ".." {
			t.Errorf("%q: took subdir %q", id, r.subdir)
		}
		switch r.scheme {
		case "http", "https", "ssh", "git":
		default:
			t.Errorf("%q %q: took scheme %q", id, full, r.scheme)
		}
	})
}

// FuzzLsRemote reads what git says of a server's references.
func FuzzLsRemote(f *testing.F) {
	sum := strings.Repeat("a", 40)
	f.Add("main", sum+"\trefs/heads/main\n"+sum+"\trefs/tags/main^{}\n")
	f.Add("", "ref: refs/heads/--upload-pack=x\tHEAD\n"+sum+"\tHEAD\n")
	f.Add("x", "--x\trefs/heads/x\n")
	f.Fuzz(func(t *testing.T, ref, output string) {
		if p, err := choose(ref, output); err == nil && p.Checksum != "" {
			if !isCommit(p.Checksum) || p.CommitChecksum != "" && !isCommit(p.CommitChecksum) || !strings.HasPrefix(p.Ref, "refs/") {
				t.Errorf("took %+v", p)
			}
		}
		if p, err := head(output); err == nil && p.Checksum != "" {
			if !isCommit(p.Checksum) || checkRef(strings.TrimPrefix(p.Ref, "refs/heads/")) != nil {
				t.Errorf("took %+v", p)
			}
		}
	})
}

// FuzzObject splits objects: the signature and what is signed have all of it.
func FuzzObject(f *testing.F) {
	f.Add([]byte("tree x\ngpgsig -----BEGIN\n a\n \n b\nother x\n\nbody\n"))
	f.Add([]byte("object x\n\nbody\n" + pgpBegin + "\nx\n"))
	f.Add([]byte("gpgsig-sha256 x\n\n"))
	f.Fuzz(func(t *testing.T, object []byte) {
		signed, sig := splitTag(object)
		if string(signed)+string(sig) != string(object) {
			t.Errorf("tag %q became %q and %q", object, signed, sig)
		}
		for _, header := range []string{"gpgsig", "gpgsig-sha256"} {
			if signed, sig := splitCommit(object, header); len(sig) == 0 && len(signed) > len(object)+1 {
				t.Errorf("commit %q became %q", object, signed)
			}
		}
		s := &signature{keys: []byte("ssh-ed25519 x")}
		if s.checkObject("commit", object, strings.Repeat("a", 40)) == nil {
			t.Error("a signature of nobody was taken")
		}
	})
}
