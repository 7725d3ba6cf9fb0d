package conformance

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// statesFile has the function libraryStates, which makes States of every kind.
const statesFile = "../llb/library_test.go"

// library is one of the two Go libraries that a program can make LLB with.
type library struct {
	llb, pb string // import paths
	extra   string // a further import
	rename  *strings.Replacer
}

// TestLibraryPrograms runs one program with BuildKit's library and with Kiln's,
// whose sources differ in their imports alone, and compares the definitions that
// they make byte by byte.
func TestLibraryPrograms(t *testing.T) {
	kiln := definitions(t, "..", library{
		llb: "github.com/kiln-build/kiln/llb", pb: "github.com/kiln-build/kiln/llb/pb", rename: strings.NewReplacer(),
	})
	// BuildKit keeps the operation build in a package of its own.
	buildkit := definitions(t, ".", library{
		llb: "github.com/moby/buildkit/client/llb", pb: "github.com/moby/buildkit/solver/pb",
		extra:  `import "github.com/moby/buildkit/client/llb/llbbuild"`,
		rename: strings.NewReplacer("Build()", "llbbuild.Build()", "Build(BuildFilename", "llbbuild.Build(llbbuild.WithFilename"),
	})
	if len(kiln) < 40 || len(kiln) != len(buildkit) {
		t.Fatalf("the programs made %d and %d definitions", len(kiln), len(buildkit))
	}
	for _, name := range slices.Sorted(maps.Keys(kiln)) {
		if !bytes.Equal(kiln[name], buildkit[name]) {
			t.Errorf("%s: Kiln's library made\n%x\nwant, as BuildKit's did\n%x", name, kiln[name], buildkit[name])
		}
	}
}

// definitions runs the program with a library, in a module that has it, and
// returns what it makes, by name.
func definitions(t *testing.T, module string, l library) map[string][]byte {
	t.Helper()
	source, err := format.Source([]byte(program(t, l)))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "main.go")
	if err := os.WriteFile(file, source, 0o600); err != nil {
		t.Fatal(err)
	}
	// The overlay has the program compiled as if it were part of the module.
	root, err := filepath.Abs(module)
	if err != nil {
		t.Fatal(err)
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {filepath.Join(root, "libraryprogram", "main.go"): file}})
	if err != nil {
		t.Fatal(err)
	}
	overlayFile := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(overlayFile, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "go", "run", "-overlay", overlayFile, "./libraryprogram")
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("run the program with %s: %v\n%s", l.llb, err, stderr.String())
	}
	all := map[string][]byte{}
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// program is a main package around libraryStates.
func program(t *testing.T, l library) string {
	t.Helper()
	data, err := os.ReadFile(statesFile)
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	parsed, err := parser.ParseFile(fset, statesFile, data, 0)
	if err != nil {
		t.Fatal(err)
	}
	var states string
	for _, d := range parsed.Decls {
		if f, ok := d.(*ast.FuncDecl); ok && f.Name.Name == "libraryStates" {
			states = string(data[fset.Position(f.Pos()).Offset:fset.Position(f.End()).Offset])
		}
	}
	if states == "" {
		t.Fatalf("%s has no function libraryStates", statesFile)
	}
	states = l.rename.Replace(strings.Replace(states, "t *testing.T", "t fatal", 1))
	return `package main

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"time"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"

	"` + l.pb + `"
	. "` + l.llb + `"
)
` + l.extra + `

type fatal struct{}

func (fatal) Fatal(err ...any) { panic(err) }

func main() {
	all := map[string][]byte{}
	for set, opts := range map[string][]ConstraintsOpt{
		"0": {LinuxAmd64, LocalUniqueID("U")},
		"1": {LinuxArm, LocalUniqueID("U2"), Require("f"), WithExportCache()},
	} {
		for name, st := range libraryStates(fatal{}) {
			def, err := st.Marshal(context.Background(), opts...)
			if err != nil {
				panic(name + ": " + err.Error())
			}
			data, err := proto.MarshalOptions{Deterministic: true}.Marshal(def.ToPB())
			if err != nil {
				panic(err)
			}
			all[name+"."+set] = data
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		panic(err)
	}
}

` + states
}
