package corpus_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// covered says which case of the corpus has an option of the frontend; options
// that end in a colon have names after it.
func covered() map[string]string {
	return map[string]string{
		"target": "options/target-upper", "platform": "options/platform-one", "multi-platform": "options/multi-conflict-fails",
		"no-cache": "options/no-cache-two", "build-arg:": "args/given", "label:": "options/label-over",
		"filename": "contexts/http-tar-bz2", "context": "contexts/http-tar-xz", "contextkey": "contexts/contextkey-url",
		"dockerfilekey": "contexts/dockerfilekey", "contextsubdir": "contexts/subdir-deep", "context:": "contexts/named-input",
		"input-metadata:": "contexts/named-input-metadata", "local-sessionid:": "contexts/elsewhere", "sharedkey:localdir:": "contexts/named-shared-key",
		"add-hosts": "options/hosts", "hostname": "options/hostname", "shm-size": "options/shm", "ulimit": "options/ulimit-both",
		"cgroup-parent": "options/cgroup-nested", "force-network-mode": "options/network-none", "image-resolve-mode": "contexts/resolve-pull",
		"memory": "options/resources", "memswap": "options/resources", "cpushares": "options/resources", "cpuperiod": "options/resources",
		"cpuquota": "options/resources", "cpusetcpus": "options/resources", "cpusetmems": "options/resources",
		"cache-from": "options/cache-from", "cache-imports": "options/cache-imports", "attest:": "attest/max",
		"requestid": "options/request-unknown-fails", "frontend.caps": "options/caps-known", "source": "options/source", "cmdline": "options/cmdline",
		"override-copy-image": "options/copy-image-fails", "vcs:": "attest/vcs",

		"build-arg:BUILDKIT_ATTEST_": "attest/arg", "build-arg:BUILDKIT_CACHE_MOUNT_NS": "mounts/cache-namespace",
		"build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR": "contexts/git-keep", "build-arg:BUILDKIT_DISABLE_FILEOP": "options/fileop-fails",
		"build-arg:BUILDKIT_DOCKERFILE_CHECK": "syntax/check-argument-fails", "build-arg:BUILDKIT_GIT_ADVICE": "git/advice",
		"build-arg:BUILDKIT_MULTI_PLATFORM": "options/multi-arg", "build-arg:BUILDKIT_SANDBOX_HOSTNAME": "options/hostname-arg",
		"build-arg:BUILDKIT_SYNTAX": "options/cmdline-syntax-arg", "build-arg:BUILDKIT_BUILD_NAME": "options/build-name",
		"build-arg:BUILDKIT_INLINE_CACHE": "options/inline-cache", "build-arg:SOURCE_DATE_EPOCH": "epoch/option",
	}
}

// asOption is what an option is called in the corpus, where it is not itself:
// there, a session's id is not known yet.
func asOption(option string) string {
	if option == "local-sessionid:" {
		return "elsewhere:"
	}
	return option
}

// texts are the Dockerfiles and options of the corpus by the cases' names.
func texts(t *testing.T) (dockerfiles, options map[string]string) {
	t.Helper()
	paths, err := filepath.Glob("../testdata/corpus/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	dockerfiles, options = map[string]string{}, map[string]string{}
	for _, p := range paths {
		a, err := txtar.ParseFile(p)
		if err != nil {
			t.Fatal(err)
		}
		family := strings.TrimSuffix(filepath.Base(p), ".txtar")
		for _, f := range a.Files {
			switch name, kind, _ := strings.Cut(f.Name, "."); kind {
			case "Dockerfile":
				dockerfiles[family+"/"+name] = string(f.Data)
			case "options":
				options[family+"/"+name] = string(f.Data)
			}
		}
	}
	return dockerfiles, options
}

// source is the parsed code of folders, without tests.
func source(t *testing.T, dirs ...string) []*ast.File {
	t.Helper()
	var files []*ast.File
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, e.Name()), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		t.Fatalf("there is no code in %v", dirs)
	}
	return files
}

// buildkit is a folder of BuildKit's code.
func buildkit(t *testing.T, dir string) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit").Output()
	if err != nil {
		t.Fatalf("find BuildKit's code: %v", err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), filepath.FromSlash(dir))
}

// literal is the value of an expression that is a string in quotes.
func literal(e ast.Expr) (string, bool) {
	l, ok := e.(*ast.BasicLit)
	if !ok || l.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(l.Value)
	return s, err == nil
}

// optionsIn are the names of options that code knows: constants that are called
// key… or …Prefix, elements of maps of options, and prefixes cut from their names.
func optionsIn(files []*ast.File) map[string]bool {
	found := map[string]bool{}
	add := func(e ast.Expr) {
		if s, ok := literal(e); ok && s != "" {
			found[s] = true
		}
	}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ValueSpec:
				for i, name := range n.Names {
					if i < len(n.Values) && (strings.HasPrefix(name.Name, "key") || strings.HasSuffix(name.Name, "Prefix")) {
						add(n.Values[i])
					}
				}
			case *ast.IndexExpr:
				if name := nameOf(n.X); name == "opts" || name == "Opts" {
					add(n.Index)
				}
			case *ast.CallExpr:
				if len(n.Args) == 2 && (nameOf(n.Fun) == "withPrefix" || nameOf(n.Fun) == "CutPrefix" && nameOf(n.Args[0]) == "k") {
					add(n.Args[1])
				}
			}
			return true
		})
	}
	return found
}

// nameOf is the last part of a name.
func nameOf(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// TestCorpusCoversEachOption checks that each option which BuildKit's frontend or
// Kiln's knows has a case, by the code of both.
func TestCorpusCoversEachOption(t *testing.T) {
	_, options := texts(t)
	theirs := optionsIn(source(t, buildkit(t, "frontend/dockerui"), buildkit(t, "frontend/dockerfile/builder"), buildkit(t, "frontend/attestations")))
	ours := optionsIn(source(t, "../../internal/dockerfile", "../../frontend"))
	for _, known := range []map[string]bool{theirs, ours} {
		if len(known) < 15 {
			t.Errorf("only %d options were found in the code: %v", len(known), slices.Sorted(maps.Keys(known)))
		}
	}
	table := covered()
	maps.Copy(theirs, ours)
	for option := range theirs {
		if table[option] == "" {
			t.Errorf("no case is named for the option %q", option)
		}
	}
	for option, name := range table {
		key := "(?m)^" + regexp.QuoteMeta(asOption(option))
		if !strings.HasSuffix(option, ":") && !strings.HasSuffix(option, "_") {
			key += "="
		}
		if !regexp.MustCompile(key).MatchString(options[name]) {
			t.Errorf("the case %s has no option %s", name, option)
		}
	}
}

// TestCorpusCoversEachFlag checks that the corpus has each instruction, each flag
// of one, each field of a mount or device and each key of a repository's query, with its words,
// that BuildKit's code knows.
func TestCorpusCoversEachFlag(t *testing.T) {
	dockerfiles, options := texts(t)
	all := strings.Join(slices.Collect(maps.Values(dockerfiles)), "\n") + "\n" + strings.Join(slices.Collect(maps.Values(options)), "\n")
	instructions := source(t, buildkit(t, "frontend/dockerfile/instructions"))
	for what, kind := range map[string]struct {
		names   map[string]bool
		pattern string // of a name, NAME
		atLeast int
	}{
		"instruction": {constantsOf(source(t, buildkit(t, "frontend/dockerfile/command"))), `(?mi)^NAME\b`, 18},
		"flag":        {flagsIn(instructions), `(?m)^[A-Z ]+ .*--NAME(=| |$)`, 18},
		"field":       {casesOf(instructions, "parseMount", "ParseDevice"), `(?m)^(ONBUILD )?RUN .*--(mount|device)=(\S*,)?NAME(=|,|\s|$)`, 15},
		"key":         {casesOf(source(t, buildkit(t, "frontend/dockerfile/dfgitutil")), "loadQuery"), `\.git\?(\S*&)?(mtime=)?NAME(=|&|#|\s|$)`, 10},
	} {
		if len(kind.names) < kind.atLeast {
			t.Errorf("only %d %ss were found in the code, want %d or more: %v", len(kind.names), what, kind.atLeast, slices.Sorted(maps.Keys(kind.names)))
		}
		for name := range kind.names {
			if !regexp.MustCompile(strings.ReplaceAll(kind.pattern, "NAME", regexp.QuoteMeta(name))).MatchString(all) {
				t.Errorf("nothing in the corpus has the %s %s", what, name)
			}
		}
	}
}

// constantsOf are the texts of constants.
func constantsOf(files []*ast.File) map[string]bool {
	found := map[string]bool{}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
				if s, ok := literal(v.Values[0]); ok {
					found[s] = true
				}
			}
			return true
		})
	}
	return found
}

// flagsIn are the flags that parsers of instructions add.
func flagsIn(files []*ast.File) map[string]bool {
	found := map[string]bool{}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if c, ok := n.(*ast.CallExpr); ok && len(c.Args) > 0 && slices.Contains([]string{"AddString", "AddStrings", "AddBool"}, nameOf(c.Fun)) {
				if s, ok := literal(c.Args[0]); ok {
					found[s] = true
				}
			}
			return true
		})
	}
	return found
}

// casesOf are the texts that switches in functions distinguish.
func casesOf(files []*ast.File, functions ...string) map[string]bool {
	found := map[string]bool{}
	for _, f := range files {
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !slices.Contains(functions, fn.Name.Name) {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				if c, ok := n.(*ast.CaseClause); ok {
					for _, e := range c.List {
						if s, ok := literal(e); ok {
							found[s] = true
						}
					}
				}
				return true
			})
		}
	}
	return found
}
