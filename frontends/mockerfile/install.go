package mockerfile

import (
	"fmt"
	"path"
	"strings"

	"github.com/kiln-build/kiln/frontend/sdk"
	"github.com/kiln-build/kiln/llb"
)

// keysDir is where the script finds the keys of repositories.
const keysDir = "/run/mocker/keys"

// install has the base's package manager install packages. Which one that is the
// script finds out, so that a base that has not changed is not fetched for it.
func (l *lowering) install(st llb.State, p *packages) llb.State {
	last := p.at
	var names []string
	for _, t := range [][]text{p.repo, p.gpg, p.install} {
		for _, v := range t {
			last = max(last, v.at)
		}
	}
	for _, v := range p.install {
		names = append(names, v.string)
	}
	name := "package: install " + strings.Join(names, " ")
	if len(names) == 0 {
		name = "package: add repositories"
	}
	run := st.Run(llb.Args(shell(script(p))), l.Step(sdk.Lines(p.at, last), "%s", name))
	for i, key := range p.gpg {
		download := llb.HTTP(key.string, llb.Filename("key"), l.Step(line(key), "package: download key %s", key.string))
		run.AddMount(fmt.Sprintf("%s/%d", keysDir, i), download, llb.Readonly)
	}
	return run.Root()
}

// script is the shell script that adds keys and repositories and installs.
func script(p *packages) string {
	var b strings.Builder
	b.WriteString("set -e\n")
	b.WriteString("if command -v apt-get >/dev/null; then\n")
	writeApt(&b, p)
	b.WriteString("elif command -v apk >/dev/null; then\n")
	writeApk(&b, p)
	b.WriteString("elif command -v dnf >/dev/null; then\n")
	writeDnf(&b, p)
	b.WriteString("else\n  echo 'the base has neither apt-get, nor apk, nor dnf: packages cannot be installed' >&2; exit 1\nfi\n")
	return b.String()
}

// quote makes a text one word of the shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// words are texts as words of the shell.
func words(list []text) string {
	var b strings.Builder
	for _, t := range list {
		b.WriteString(" " + quote(t.string))
	}
	return b.String()
}

func writeApt(b *strings.Builder, p *packages) {
	b.WriteString("  export DEBIAN_FRONTEND=noninteractive\n")
	for _, r := range p.repo {
		if strings.Contains(r.string, "https://") {
			b.WriteString("  apt-get update\n  apt-get install -y --no-install-recommends apt-transport-https ca-certificates\n")
			break
		}
	}
	for i := range p.gpg {
		// Old ones know keys in apt-key alone, new ones in files alone.
		fmt.Fprintf(b, "  if command -v apt-key >/dev/null; then apt-key add %[1]s/%[2]d/key; else\n"+
			"    as=gpg; grep -q 'BEGIN PGP' %[1]s/%[2]d/key && as=asc\n"+
			"    mkdir -p /etc/apt/trusted.gpg.d; cp %[1]s/%[2]d/key /etc/apt/trusted.gpg.d/mocker-%[2]d.$as; fi\n", keysDir, i)
	}
	writeLines(b, p.repo, "/etc/apt/sources.list.d/mocker.list")
	if len(p.install) > 0 {
		fmt.Fprintf(b, "  apt-get update\n  apt-get install -y --no-install-recommends%s\n  rm -rf /var/lib/apt/lists/*\n", words(p.install))
	}
}

func writeApk(b *strings.Builder, p *packages) {
	for i, key := range p.gpg {
		fmt.Fprintf(b, "  mkdir -p /etc/apk/keys; cp %s/%d/key /etc/apk/keys/%s\n", keysDir, i, quote(path.Base(key.string)))
	}
	writeLines(b, p.repo, "/etc/apk/repositories")
	if len(p.install) > 0 {
		fmt.Fprintf(b, "  apk add --no-cache%s\n", words(p.install))
	}
}

func writeDnf(b *strings.Builder, p *packages) {
	for i := range p.gpg {
		fmt.Fprintf(b, "  rpm --import %s/%d/key\n", keysDir, i)
	}
	for i, r := range p.repo {
		file := fmt.Sprintf("/etc/yum.repos.d/mocker-%d.repo", i)
		fmt.Fprintf(b, "  printf '[mocker-%d]\\nname=mocker-%d\\nbaseurl=%%s\\nenabled=1\\ngpgcheck=%d\\n' %s > %s\n", i, i, min(len(p.gpg), 1), quote(r.string), file)
	}
	if len(p.install) > 0 {
		fmt.Fprintf(b, "  dnf install -y%s\n  dnf clean all\n", words(p.install))
	}
}

// writeLines adds lines to a file.
func writeLines(b *strings.Builder, lines []text, file string) {
	if len(lines) == 0 {
		return
	}
	fmt.Fprintf(b, "  mkdir -p %s\n  printf '%%s\\n'%s >> %s\n", path.Dir(file), words(lines), file)
}
