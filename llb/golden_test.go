package llb

import (
	"bufio"
	"context"
	"encoding/hex"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/kiln-build/kiln/llb/pb"
)

// vector is a definition as BuildKit's client library makes it.
type vector struct {
	ops    []vectorOp
	length int // of the encoded definition; -1 if not known
}

type vectorOp struct {
	digest digest.Digest
	bytes  []byte
	caps   []string // nil if not known
}

func readVectors(t *testing.T) map[string]*vector {
	t.Helper()
	f, err := os.Open("testdata/golden.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	vectors := map[string]*vector{}
	var v *vector
	scanner := bufio.NewScanner(f)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		word, rest, _ := strings.Cut(scanner.Text(), " ")
		switch word {
		case "#":
		case "==":
			v = &vector{length: -1}
			vectors[rest] = v
		case "op":
			d, h, _ := strings.Cut(rest, " ")
			data, err := hex.DecodeString(h)
			if err != nil {
				t.Fatal(err)
			}
			v.ops = append(v.ops, vectorOp{digest: digest.Digest(d), bytes: data})
		case "caps":
			v.ops[len(v.ops)-1].caps = strings.Fields(rest)
		case "length":
			if v.length, err = strconv.Atoi(rest); err != nil {
				t.Fatal(err)
			}
		default:
			t.Fatalf("golden.txt: line begins with %q", word)
		}
	}
	if err := scanner.Err(); err != nil {
		t.Fatal(err)
	}
	return vectors
}

// goldenStates makes the States of the vectors, by name.
func goldenStates() map[string]State {
	alpine := Image("docker.io/library/alpine:latest")
	local := Local("context", LocalUniqueID("u"))
	mkfile := Scratch().File(Mkfile("/a", 0o644, []byte("hi")))
	dir := Scratch().File(Mkdir("/d", 0o755))
	return map[string]State{
		"scratch":        Scratch(),
		"image alpine":   alpine,
		"image+run":      alpine.Run(Args([]string{"echo", "hello"})).Root(),
		"scratch mkfile": mkfile,
		"local":          Local("context", IncludePatterns([]string{"a*"}), SharedKeyHint("ctx"), LocalUniqueID("t7gjsrlqbto247b0kq1xfdjc0")),
		"git":            Git("https://github.com/moby/buildkit", "master"),
		"http":           HTTP("https://example.com/x", Filename("x")),
		"merge":          Merge([]State{alpine, mkfile}),
		"diff":           Diff(alpine, alpine.Run(Args([]string{"true"})).Root()),
		"run-mounts": alpine.Dir("/w").AddEnv("A", "b").Run(Args([]string{"/bin/sh", "-c", "true"}),
			AddMount("/src", local, SourcePath("/sub"), Readonly),
			AddMount("/root/.cache", Scratch(), AsPersistentCacheDir("/root/.cache", CacheMountShared))).Root(),
		"run-all": alpine.Run(Args([]string{"true"}), User("u"), Hostname("hn"),
			AddExtraHost("h", net.ParseIP("1.2.3.4")),
			AddSecret("/run/secrets/x", SecretID("x")),
			AddSSHSocket(),
			AddMount("/t", Scratch(), Tmpfs(TmpfsSize(4096))),
			AddMount("/c", Scratch(), AsPersistentCacheDir("id1", CacheMountLocked)),
			Network(NetModeHost), Security(SecurityModeInsecure)).Root(),
		"copy": alpine.File(Copy(local, "/foo/bar", "/dst/", WithUIDGID(0, 0),
			&CopyInfo{FollowSymlinks: true, CopyDirContentsOnly: true, CreateDestPath: true, AllowWildcard: true, ChownOpt: &ChownOpt{User: &UserOpt{}, Group: &UserOpt{}}})),
		"two-actions": Scratch().File(Mkdir("/d", 0o755).Mkfile("/d/f", 0o600, []byte("x"))),
		"passthrough": NewPassthrough("rq", []PassthroughInput{{State: alpine, Output: true}, {State: dir}}),
		"ocilayout": OCILayout("not/real@sha256:a7f9733e307dd352c82d43053b783dd17bb2ec2c36214908ce393e41545c8b51",
			OCIStore("sess", "store")),
	}
}

func TestGolden(t *testing.T) {
	states := goldenStates()
	for name, want := range readVectors(t) {
		t.Run(name, func(t *testing.T) {
			st, ok := states[name]
			if !ok {
				t.Fatal("no State makes this vector")
			}
			delete(states, name)
			def, err := st.Marshal(context.Background(), LinuxAmd64)
			if err != nil {
				t.Fatal(err)
			}
			compareDefinition(t, def.ToPB(), want)

			// What is decoded is the same graph, and text says all of it.
			g, err := Unmarshal(def.ToPB())
			if err != nil {
				t.Fatal(err)
			}
			again, err := g.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			compareDefinition(t, again, want)
			parsed, err := ParseText(g.Text())
			if err != nil {
				t.Fatalf("%v\n%s", err, g.Text())
			}
			again, err = parsed.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			compareDefinition(t, again, want)
		})
	}
	for name := range states {
		t.Errorf("golden.txt has no vector %q", name)
	}
}

func compareDefinition(t *testing.T, def *pb.Definition, want *vector) {
	t.Helper()
	if len(def.Def) != len(want.ops) {
		t.Fatalf("definition has %d operations, want %d", len(def.Def), len(want.ops))
	}
	for i, op := range want.ops {
		if string(def.Def[i]) != string(op.bytes) {
			var got, wanted pb.Op
			if err := proto.Unmarshal(def.Def[i], &got); err != nil {
				t.Fatal(err)
			}
			if err := proto.Unmarshal(op.bytes, &wanted); err != nil {
				t.Fatal(err)
			}
			t.Fatalf("operation %d:\n got %x %v\nwant %x %v", i, def.Def[i], &got, op.bytes, &wanted)
		}
		meta := def.Metadata[string(op.digest)]
		if meta == nil {
			t.Fatalf("operation %d has no metadata", i)
		}
		if caps := slices.Sorted(maps.Keys(meta.Caps)); op.caps != nil && !slices.Equal(caps, op.caps) {
			t.Errorf("operation %d needs %v, want %v", i, caps, op.caps)
		}
	}
	if size := proto.Size(def); want.length >= 0 && size != want.length {
		t.Errorf("definition is %d bytes, want %d", size, want.length)
	}
}

func TestForeignEncoding(t *testing.T) {
	// The old encoder wrote fields in the order of their numbers.
	source := "docker-image://docker.io/library/alpine:latest"
	inner := append([]byte{0x0a, byte(len(source))}, source...)
	platform := "\x0a\x05amd64\x12\x05linux"
	data := append([]byte{0x1a, byte(len(inner))}, inner...)
	data = append(data, 0x52, byte(len(platform)))
	data = append(data, platform...)
	data = append(data, 0x5a, 0)
	const want = "sha256:665ba8b2cdc0cb0200e2a42a6b3c0f8f684089f4cd1b81494fbb9805879120f7"
	last, err := proto.Marshal(&pb.Op{Inputs: []*pb.Input{{Digest: want}}})
	if err != nil {
		t.Fatal(err)
	}
	g, err := Unmarshal(&pb.Definition{Def: [][]byte{data, last}})
	if err != nil {
		t.Fatal(err)
	}
	if got := g.Root.Vertex.Digest(); got != want {
		t.Errorf("digest %s, want %s", got, want)
	}
	def, err := g.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if string(def.Def[0]) != string(data) {
		t.Errorf("bytes were changed: %x, want %x", def.Def[0], data)
	}
}
