package op

import (
	"testing"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb"
)

// The digests were taken from BuildKit itself.
func TestDigestsAreBuildKits(t *testing.T) {
	amd64 := ocispecs.Platform{OS: "linux", Architecture: "amd64"}
	root := llb.Mount{Dest: "/"}
	owner := &llb.Owner{}
	exec := func(o *llb.ExecOp) func() (string, error) {
		return func() (string, error) { return execDigest(o, amd64) }
	}
	file := func(as ...llb.FileStep) func() (string, error) {
		return func() (string, error) { return fileDigest(&llb.FileOp{Actions: as}, 2) }
	}
	for _, c := range []struct {
		name, want string
		digest     func() (string, error)
	}{
		{"run", "sha256:da009fc51e0b922b2085b48a2533f4a47732421e01b2c7815bbba17e2dfa23da",
			exec(&llb.ExecOp{Args: []string{"echo", "hello"}, Cwd: "/", RemoveStubs: true, Mounts: []llb.Mount{root}})},
		{"true", "sha256:56d376faab07ed50726d02da72b79eecae4e26416deb6bee0d2bf7e16d8dd012",
			exec(&llb.ExecOp{Args: []string{"true"}, Cwd: "/", RemoveStubs: true, Mounts: []llb.Mount{root}})},
		{"mounts", "sha256:4831a716890d92fd73d6985c8ba8edd378c523bd403b9fec2860167aa240c460",
			exec(&llb.ExecOp{Args: []string{"/bin/sh", "-c", "true"}, Env: []string{"A=b"}, Cwd: "/w", RemoveStubs: true, Mounts: []llb.Mount{
				root,
				{Kind: llb.MountCache, Input: -1, Dest: "/root/.cache", Output: -1, CacheID: "/root/.cache"},
				{Input: 1, Selector: "/sub", Dest: "/src", Output: -1, ReadOnly: true},
			}})},
		{"secret", "sha256:2c98a0da64966d7cd4f12bbf6e30b384add4d913c781430a96ed6be55468be02",
			exec(&llb.ExecOp{Args: []string{"true"}, Cwd: "/", RemoveStubs: true, ExtraHosts: []llb.HostIP{{Host: "h", IP: "1.2.3.4"}}, Mounts: []llb.Mount{
				root,
				{Kind: llb.MountCache, Input: -1, Dest: "/c", Output: -1, CacheID: "id1", CacheSharing: llb.CacheLocked},
				{Kind: llb.MountSecret, Input: -1, Dest: "/run/secrets/x", Secret: &llb.SecretMount{ID: "x", Mode: 0o400}},
			}})},
		{"mkfile", "sha256:75ee6c03e54cb37dc530817e79fa44cfab8b77333a6aa03e9466134b620f8095",
			file(llb.FileStep{Input: -1, Secondary: -1, Do: &llb.DoMkfile{Path: "/a", Mode: 0o644, Data: []byte("hi"), Timestamp: -1}})},
		{"mkdir", "sha256:3c322a1a2cdcb60bd74af8a40234765203806f64e42dab1f95dd95fd0e4f9218",
			file(llb.FileStep{Input: -1, Secondary: -1, Do: &llb.DoMkdir{Path: "/d", Mode: 0o755, Timestamp: -1}})},
		{"copy", "sha256:f5815ff65dd644b5390eb73aa36e542a40085302decbf607c821456f0ab550fc",
			file(llb.FileStep{Input: 0, Secondary: 1, Do: &llb.DoCopy{
				Src: "/foo/bar", Dest: "/dst/", Owner: &llb.Ownership{User: owner, Group: owner}, Mode: -1,
				FollowSymlink: true, DirContents: true, CreateDest: true, Wildcard: true, Timestamp: -1,
			}})},
		{"merge", "sha256:436287a2dc2ce494f564331be9ea3a9f27ebec398567877043da2f618f33d6c8",
			func() (string, error) { return mergeDigest(&llb.MergeOp{Inputs: []int{0, 1}}) }},
		{"diff", "sha256:164ae6dac10aea8de6cb7cda35914a10011485523f807ea840bca3e0ab19d8ff",
			func() (string, error) { return diffDigest(&llb.DiffOp{Lower: 0, Upper: 1}) }},
		{"passthrough", "sha256:9e221aa0ec3e240d567c2635968371c0fb8cb94f69b37ed24a97e8eaaf341773",
			func() (string, error) { return passthroughDigest(&llb.PassthroughOp{ID: "rq", Output: []int{0}}) }},
		{"selector /", "sha256:8a5edab282632443219e051e4ade2d1d5bbc671c781051bf1437897cbdfea0f1",
			func() (string, error) { return selectorDigest([]string{"/"}), nil }},
		{"selector /sub", "sha256:c3edd766ba41f0cfb937f80f269ab868b00efb92449d2f8f1dff7d7858552364",
			func() (string, error) { return selectorDigest([]string{"/sub"}), nil }},
		{"selector /foo/bar", "sha256:a05d96ad6bf8f3eaa59689160625f69dd411591f9dbdc728baad8c1c75af9ad6",
			func() (string, error) { return selectorDigest([]string{"/foo/bar"}), nil }},
	} {
		got, err := c.digest()
		if err != nil || got != c.want {
			t.Errorf("%s: got %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}
