package llb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/kiln-build/kiln/llb/pb"
)

// TestLibrary compares whole definitions, with metadata, order and source maps,
// with those that BuildKit's client library makes of the same code.
func TestLibrary(t *testing.T) {
	want, err := os.ReadFile("testdata/library.txt")
	if err != nil {
		t.Fatal(err)
	}
	constraints := map[string][]ConstraintsOpt{
		"0": {LinuxAmd64, LocalUniqueID("U")},
		"1": {LinuxArm, LocalUniqueID("U2"), Require("f"), WithExportCache()},
	}
	states := map[string]map[string]State{}
	for name := range constraints {
		states[name] = libraryStates(t)
	}
	compared := 0
	for line := range strings.Lines(string(want)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		sum, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		name, opts, _ := strings.Cut(file, ".")
		t.Run(file, func(t *testing.T) {
			st, ok := states[opts][name]
			if !ok {
				t.Fatal("no State of this name")
			}
			def, err := st.Marshal(context.Background(), constraints[opts]...)
			if err != nil {
				t.Fatal(err)
			}
			data, err := deterministic().Marshal(def.ToPB())
			if err != nil {
				t.Fatal(err)
			}
			if got := sha256.Sum256(data); hex.EncodeToString(got[:]) != sum {
				t.Errorf("definition is %x, want %s", got, sum)
			}
			testRoundTrips(t, def.ToPB())
		})
		compared++
	}
	if all := 2 * len(states["0"]); compared != all {
		t.Errorf("library.txt has %d definitions, want %d", compared, all)
	}
}

// testRoundTrips checks that decoding and the text form lose nothing.
func testRoundTrips(t *testing.T, def *pb.Definition) {
	t.Helper()
	g, err := Unmarshal(def)
	if err != nil {
		t.Fatal(err)
	}
	sameDefinition(t, "decoded graph", g, def)
	text := g.Text()
	parsed, err := ParseText(text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if again := parsed.Text(); again != text {
		t.Errorf("text\n%sis read as\n%s", text, again)
	}
	sameDefinition(t, "text\n"+text, parsed, def)
}

func sameDefinition(t *testing.T, what string, g *Graph, want *pb.Definition) {
	t.Helper()
	got, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	gotBytes, err := deterministic().Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	wantBytes, err := deterministic().Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if string(gotBytes) != string(wantBytes) {
		t.Errorf("%s encodes to\n%v\nwant\n%v", what, got, want)
	}
}

func libraryStates(t *testing.T) map[string]State {
	ctx := context.Background()
	alpine := Image("alpine")
	local := Local("context", LocalUniqueID("u"), ExcludePatterns([]string{"a", "b<c"}), FollowPaths([]string{"x"}), Differ(DiffNone, true), MetadataOnlyTransfer([]string{"q"}))
	tm := time.Unix(5, 7)
	dgst := digest.Digest("sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51")
	sm := NewSourceMap(&local, "Dockerfile", "Dockerfile", []byte("FROM x\nRUN y\n"))
	loc := func(l int32) ConstraintsOpt {
		return sm.Location([]*pb.Range{{Start: &pb.Position{Line: l}, End: &pb.Position{Line: l, Character: 4}}})
	}
	dest := "/sec"
	base := alpine.AddEnv("A", "1").AddEnvf("B", "%d", 2).AddEnv("A", "3").Dir("/w").Dir("sub").User("u:g").Hostname("h")
	ex := base.Run(Shlex(`sh -c "a 'b' \"c\"" x\ y # z`), AddMount("/m1", local), AddMount("/a", alpine, SourcePath("/p"), ContentCache(MountContentCacheOff)),
		AddMount("/nn", Scratch(), ForceNoOutput), AddMount("/tm", Scratch(), Tmpfs()), AddMount("/ca", local, AsPersistentCacheDir("cid", CacheMountPrivate)),
		AddSecret("/s1", SecretOptional, SecretFileOpt(1, 2, 0600)), AddSecretWithDest("srcid", &dest), AddSecret("ENVN", SecretAsEnv(true), SecretID("sid")), AddSecret("/f2", SecretAsEnvName("F2")),
		AddSSHSocket(SSHID("a"), SSHOptional), AddSSHSocket(SSHSocketTarget("/sock")), AddSSHSocket(),
		AddUlimit(UlimitNofile, 1, 2), AddUlimit(UlimitCore, -1, -1), AddExtraHost("foo", net.ParseIP("::1")), AddExtraHost("bar", net.ParseIP("10.0.0.1")),
		WithProxy(ProxyEnv{HTTPProxy: "h", NoProxy: "n"}), ValidExitCodes(0, 3), WithCgroupParent("cg"), AddCDIDevice(CDIDeviceName("d=1"), CDIDeviceOptional),
		MemoryLimit(5), CPUShares(7), CpusetCpus("0-1"), WithCustomNamef("name %d", 1), IgnoreCache, WithoutExportCache(), Require("w=1"), ProgressGroup("id", "n", true), loc(2))
	m2 := ex.AddMount("/late", Scratch())
	copyact := Copy(local, "rel/x", "dst/", WithUser("bob:7"), ChmodOpt{ModeStr: "u+x"}).Copy(alpine.Dir("/q"), "r/../s", "./t/.", &CopyInfo{Mode: &ChmodOpt{Mode: 0755}, IncludePatterns: []string{"a"}, ExcludePatterns: []string{"b"}, RequiredPaths: []string{"c"}, AttemptUnpack: true, AllowEmptyWildcard: true, AllowWildcard: true, AlwaysReplaceExistingDestPaths: true, CreatedTime: &tm}).
		Mkdir("d", 01777, WithParents(true), WithUIDGID(3, 4), WithCreatedTime(tm)).Rm("../../x*", WithAllowNotFound(true), WithAllowWildcard(true)).Symlink("../o", "n", WithUser("root")).
		Copy(Mkfile("zz", 0600, []byte("\x00\xff")).Mkdir("yy", 0).WithState(m2.Dir("/k")), ".", "/out")
	rf := base.Run(Args([]string{"x"}), ReadonlyRootFS(), AddMount("/o", alpine, Readonly))
	rfm := rf.AddMount("/w", Scratch())
	def0, err := m2.Marshal(ctx, LinuxArm64, LocalUniqueID("uu"))
	if err != nil {
		t.Fatal(err)
	}
	dop, err := NewDefinitionOp(def0.ToPB())
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]State{
		"scratch": Scratch(), "local": local, "exec": ex.Root(), "mount": m2, "getmount": ex.GetMount("/a"),
		"file":   base.File(copyact, loc(1), WithDescription(map[string]string{"x": "y"})),
		"file2":  Scratch().File(copyact).File(Rm("q")),
		"rootro": rf.Root(), "rootrom": rfm,
		"img1":   Image("foo/bar:1@"+string(dgst), ResolveModeForcePull, MarkImageInternal, WithLayerLimit(3), WithImageChecksum(dgst), LinuxArm64),
		"img2":   Image("localhost:5000/x", ResolveModePreferLocal, Platform(ocispecs.Platform{OS: "linux", Architecture: "arm", Variant: "v6", OSFeatures: []string{"a"}})).Run(Args([]string{"q"})).Root(),
		"blob":   ImageBlob("foo/bar@"+string(dgst), Filename("f"), Chmod(0644), Chown(1, 2)),
		"oblob":  OCILayoutBlob("foo@"+string(dgst), ImageBlobOCIStore("s", "t")),
		"oci":    OCILayout("n@"+string(dgst), OCIStore("a", "b"), OCILayerLimit(2), OCIChecksum(dgst), LinuxS390x),
		"git1":   Git("github.com/a/b.git", "v1:sub/../d", KeepGitDir(), AuthTokenSecret("T"), GitChecksum("abc"), GitSkipSubmodules(), GitMTimeCommit(), GitAdvice(true), GitFetchByCommit()),
		"git2":   Git("git@github.com:a/b.git", "", KnownSSHHosts("k k"), KnownSSHHosts("l\n"), MountSSHSock("sid")),
		"git3":   Git("ssh://me@h.com:22/p?q=1#frag", "m", KnownSSHHosts("k"), AuthHeaderSecret("H")),
		"git4":   Git("https://u:p@h/x/../y", "", GitRef("r"), GitSubDir("s"), GitBundleURL("oci-layout+blob://x@"+string(dgst), GitBundleOCIStore("1", "2")), GitCheckoutBundle()),
		"git5":   Git("ftp://x/y", "m"),
		"git6":   Git("git://x/y", ":"),
		"http":   HTTP("http://x/y?z", Checksum(dgst), Chmod(0755), Chown(3, 0), AuthHeaderSecret("S"), Header(HTTPHeader{Accept: "a", UserAgent: "b"}), VerifyPGPSignature(HTTPSignatureInfo{PubKey: []byte("p"), Signature: []byte("s")})),
		"lsess":  Local("x", SessionID("sess"), IncludePatterns([]string{"*"}), Differ(DiffMetadata, false)),
		"merge":  Merge([]State{alpine, Scratch(), alpine, m2, local}, WithCustomName("m")),
		"merge1": Merge([]State{Scratch(), m2}), "merge0": Merge(nil),
		"diff1": Diff(alpine, Scratch()), "diff2": Diff(Scratch(), m2), "diff3": Diff(ex.Root(), m2, WithExportCache()),
		"req":    alpine.Requires("rid", local, m2).Run(Args([]string{"t"})).Root(),
		"pass":   NewState(NewPassthroughOp("p", []PassthroughInput{{State: local}, {State: alpine, Output: true}, {State: m2, Output: true}}).OutputAt(1)),
		"defop":  NewState(dop.Output()).Run(Args([]string{"after"}), Network(NetModeNone)).Root(),
		"reset":  Image("x", LinuxArm64).Dir("/a").Reset(base).Run(Args([]string{"z"})).Root(),
		"reset2": ex.Root().Reset(base).Run(Args([]string{"z"})).Root(),
		"async": base.Async(func(ctx context.Context, s State, c *Constraints) (State, error) {
			return s.AddEnv("LATE", c.Platform.Architecture).Run(Shlexf("a %s", "b")).Root(), nil
		}).Run(Shlex("c")).Root(),
		"with":  alpine.With(AddEnv("q", "r"), Dir("rel")).Run(With(User("z")), Args([]string{"a"})).Run(Args([]string{"b"})).Root(),
		"insec": alpine.Network(NetModeHost).Security(SecurityModeInsecure).AddUlimit("x", 1, 1).Run(Args([]string{"b"}), AddExtraHost("h", net.IPv4(1, 1, 1, 1))).Root(),
		"build": m2.With(Build(), Build(BuildFilename("f"))),
		"dup":   Merge([]State{alpine.Run(Args([]string{"b"}), WithCustomName("n1"), loc(1)).Root(), alpine.Run(Args([]string{"b"}), IgnoreCache, loc(2)).Root()}),
	}
	s, err := base.WithImageConfig([]byte(`{"architecture":"arm64","os":"linux","variant":"v8","config":{"Env":["PATH=/x","E"],"WorkingDir":"/wd"}}`))
	if err != nil {
		t.Fatal(err)
	}
	states["cfg"] = s.Run(Args([]string{"a"})).Root()
	return states
}
