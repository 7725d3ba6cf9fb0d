// Package corpus reads the Dockerfiles of testdata/corpus and builds them on a
// daemon, by BuildKit's own client, so that what Kiln and the real BuildKit make
// of them can be compared, and how fast they are. The conformance tests and the
// benchmarks stand on it.
//
// An archive of the corpus is a family: Dockerfiles that share a context. Of its
// files, NAME.Dockerfile is a case, NAME.options says how to build it, and
// NAME.Dockerfile.dockerignore stays beside it; "setup" is a script that runs in
// the context, for what a text archive cannot hold; all others are the context.
package corpus

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

// Case is a Dockerfile of the corpus.
type Case struct {
	Name  string // FAMILY/NAME
	Fails string // what BuildKit's error says; "" if it builds
	// Differs are words for what BuildKit has worse, which is not compared: the
	// names of "steps", the "lines" of an error, or, of a frontend that is an
	// "image", anything, which then must differ. The options say why.
	Differs []string
	family  *family
	opts    map[string]string // the frontend's
	locals  map[string]string // name to a folder of the context
	// secrets are files by id, inputs texts of a file "input" by name.
	secrets, inputs map[string]string
	allow           []string // entitlements
	agents          []string // ids of ssh agents
	// elsewhere are folders of the context, by name, that another session has;
	// stdin is a file of it that the client reads its context from.
	elsewhere map[string]string
	stdin     string
}

// family is an archive, unpacked.
type family struct {
	name                 string
	context, dockerfiles string // folders
}

// when all files of contexts were written.
func written() time.Time { return time.Unix(1_500_000_000, 0) }

// Read unpacks the archives of a folder into another one. Words like @HTTP@ in
// Dockerfiles and options stand for the values of facts.
func Read(archives, into string, facts map[string]string) ([]*Case, error) {
	paths, err := filepath.Glob(filepath.Join(archives, "*.txtar"))
	if err != nil {
		return nil, err
	}
	var pairs []string
	for k, v := range facts {
		pairs = append(pairs, "@"+k+"@", v)
	}
	fill := strings.NewReplacer(pairs...)
	var all []*Case
	for _, path := range paths {
		cases, err := readFamily(path, into, fill)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		all = append(all, cases...)
	}
	return all, nil
}

func readFamily(path, into string, fill *strings.Replacer) ([]*Case, error) {
	a, err := txtar.ParseFile(path)
	if err != nil {
		return nil, err
	}
	name := strings.TrimSuffix(filepath.Base(path), ".txtar")
	f := &family{name: name, context: filepath.Join(into, name, "context"), dockerfiles: filepath.Join(into, name, "dockerfile")}
	var cases []*Case
	options := map[string]string{}
	setup, ctx, beside := "", &txtar.Archive{}, &txtar.Archive{}
	for _, file := range a.Files {
		switch base, kind, _ := strings.Cut(file.Name, "."); {
		case kind == "Dockerfile":
			cases = append(cases, &Case{Name: name + "/" + base, family: f})
			beside.Files = append(beside.Files, txtar.File{Name: file.Name, Data: unquote(fill.Replace(string(file.Data)))})
		case kind == "Dockerfile.dockerignore":
			beside.Files = append(beside.Files, file)
		case kind == "options":
			options[base] = fill.Replace(string(file.Data))
		case file.Name == "setup":
			setup = string(file.Data)
		default:
			ctx.Files = append(ctx.Files, file)
		}
	}
	for _, c := range cases {
		key := strings.TrimPrefix(c.Name, name+"/")
		if err := c.read(options[key]); err != nil {
			return nil, err
		}
		delete(options, key)
	}
	if len(options) > 0 {
		return nil, fmt.Errorf("there are options for Dockerfiles that are not there: %v", options)
	}
	return cases, f.write(ctx, beside, setup)
}

// unquote takes the escapes \r, \0 and \e (a byte order mark) out of a text that
// begins with a line "#!escapes", which a text archive needs to hold them.
func unquote(text string) []byte {
	rest, ok := strings.CutPrefix(text, "#!escapes\n")
	if !ok {
		return []byte(text)
	}
	return []byte(strings.NewReplacer(`\r`, "\r", `\0`, "\x00", `\e`, "\ufeff").Replace(rest))
}

func (f *family) write(ctx, beside *txtar.Archive, setup string) error {
	for dir, a := range map[string]*txtar.Archive{f.context: ctx, f.dockerfiles: beside} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := txtar.Write(a, dir); err != nil {
			return err
		}
	}
	// Umasks and parents made on the way must not bear on what is compared.
	script := "umask 022\nchmod -R u=rwX,go=rX .\n" + setup + "\nfind . -exec touch -h -d @1500000000 {} +\n"
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = f.context
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set up the context: %w: %s", err, bytes.TrimSpace(out))
	}
	return os.Chtimes(f.context, written(), written())
}

// read takes a case's options: lines of KEY=VALUE, most of which are the
// frontend's.
func (c *Case) read(text string) error {
	for _, m := range []*map[string]string{&c.opts, &c.locals, &c.secrets, &c.inputs, &c.elsewhere} {
		*m = map[string]string{}
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return fmt.Errorf("option %q of %s is not KEY=VALUE", line, c.Name)
		}
		kind, name, _ := strings.Cut(key, ":")
		switch {
		case key == "fails":
			c.Fails = value
		case key == "differs":
			c.Differs = append(c.Differs, value)
		case key == "allow":
			c.allow = append(c.allow, value)
		case key == "agent":
			c.agents = append(c.agents, value)
		case kind == "local":
			c.locals[name] = value
		case kind == "elsewhere":
			c.elsewhere[name] = value
		case key == "stdin":
			c.stdin = value
		case kind == "secret":
			c.secrets[name] = value
		case kind == "input":
			c.inputs[name] = value
		default:
			if value == "<empty>" {
				value = ""
			}
			c.opts[key] = value
		}
	}
	return nil
}

// Steady reports whether any daemon can build the case, and has all of it cached
// the second time: it succeeds, needs no rights and no devices, and no-cache is
// not asked for.
func (c *Case) Steady() bool {
	_, noCache := c.opts["no-cache"]
	text, err := os.ReadFile(filepath.Join(c.family.dockerfiles, c.file()))
	return err == nil && c.Fails == "" && len(c.allow) == 0 && !noCache && !bytes.Contains(text, []byte("--device="))
}

// Mentions reports whether the Dockerfile has a text in it, in any case.
func (c *Case) Mentions(text string) bool {
	data, err := os.ReadFile(filepath.Join(c.family.dockerfiles, c.file()))
	return err == nil && bytes.Contains(bytes.ToUpper(data), []byte(strings.ToUpper(text)))
}

// Has reports whether the frontend is given an option.
func (c *Case) Has(option string) bool {
	_, ok := c.opts[option]
	return ok
}

func (c *Case) file() string {
	return strings.TrimPrefix(c.Name, c.family.name+"/") + ".Dockerfile"
}
