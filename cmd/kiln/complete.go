package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"
)

// completeCommand answers the scripts: "kiln complete -- WORD..." prints what the
// last word may become, one a line with what it means after a tab.
func completeCommand(e *env) *cli.Command {
	return &cli.Command{
		Name: "complete", Usage: "print what the last word may become", Hidden: true, SkipFlagParsing: true,
		Action: func(_ context.Context, cmd *cli.Command) error {
			words := cmd.Args().Slice()
			if len(words) > 0 && words[0] == "--" {
				words = words[1:]
			}
			for _, s := range completions(cmd.Root(), words) {
				if _, err := fmt.Fprintf(e.stdout, "%s\t%s\n", s.word, s.means); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// suggestion is a word and what it means. The words anyFile and anyDir stand for
// paths, which shells know best how to complete.
type suggestion struct{ word, means string }

const (
	anyFile = ":files"
	anyDir  = ":dirs"
)

// completions says what the last word of a command line may become; the
// program's own name is not among the words.
func completions(root *cli.Command, words []string) []suggestion {
	if len(words) == 0 {
		words = []string{""}
	}
	cmd, last := root, words[len(words)-1]
	flags := true // until a --
	for i := 0; i < len(words)-1; i++ {
		word := words[i]
		switch {
		case flags && word == "--":
			flags = false
		case flags && strings.HasPrefix(word, "-") && word != "-":
			f := flagNamed(root, cmd, word)
			if f == nil || !takesValue(f) || strings.Contains(word, "=") {
				continue
			}
			if i++; i == len(words)-1 {
				return startingWith(last, valuesOf(f.Names()[0]))
			}
		default:
			if sub := cmd.Command(word); sub != nil {
				cmd = sub
			}
		}
	}
	name, value, valued := strings.Cut(last, "=")
	switch {
	case flags && valued && strings.HasPrefix(last, "-"):
		f := flagNamed(root, cmd, name)
		if f == nil || !takesValue(f) {
			return nil
		}
		found := startingWith(value, valuesOf(f.Names()[0]))
		for i := range found {
			if !strings.HasPrefix(found[i].word, ":") {
				found[i].word = name + "=" + found[i].word
			}
		}
		return found
	case flags && strings.HasPrefix(last, "-") && last != "-" || last == "-":
		return startingWith(last, flagWords(root, cmd))
	}
	return startingWith(last, argumentsOf(cmd))
}

// flagNamed is the flag that a word such as --tag or -t=x names: the command's own,
// or one of those that all commands have.
func flagNamed(root, cmd *cli.Command, word string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	for _, f := range append(slices.Clone(cmd.Flags), root.Flags...) {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	doc, ok := f.(cli.DocGenerationFlag)
	return ok && doc.TakesValue()
}

// flagWords are the flags of a command that its help lists.
func flagWords(root, cmd *cli.Command) []suggestion {
	out := []suggestion{{"--help", "show help"}}
	for _, f := range append(slices.Clone(cmd.Flags), root.Flags...) {
		if visible, ok := f.(cli.VisibleFlag); ok && !visible.IsVisible() {
			continue
		}
		_, means, _ := strings.Cut(flagHelp(f), "\t")
		for _, name := range f.Names() {
			if w := (suggestion{dashed(name), means}); len(name) > 1 && !slices.ContainsFunc(out, func(s suggestion) bool { return s.word == w.word }) {
				out = append(out, w)
			}
		}
	}
	return out
}

// argumentsOf are what a command takes besides flags: other commands, or paths.
func argumentsOf(cmd *cli.Command) []suggestion {
	var out []suggestion
	for _, c := range cmd.Commands {
		if !c.Hidden {
			out = append(out, suggestion{c.Name, c.Usage})
		}
	}
	if len(out) > 0 {
		return out
	}
	switch cmd.Name {
	case "build":
		return []suggestion{{anyDir, ""}}
	case "du", "prune", "workers", "version", "bash", "zsh", "fish":
		return nil
	}
	return []suggestion{{anyFile, ""}}
}

// valuesOf are the values of a flag, or how they begin.
func valuesOf(flag string) []suggestion {
	words := ""
	switch flag {
	case "progress":
		words = "auto tty plain rawjson quiet"
	case "network":
		words = "default none host"
	case "call":
		words = "build check outline targets"
	case "allow", "allow-insecure-entitlement":
		words = "network.host security.insecure"
	case "platform":
		words = "linux/amd64 linux/arm64 linux/arm/v7 linux/386 linux/ppc64le linux/riscv64 linux/s390x"
	case "output":
		words = "type=image type=registry type=oci,dest= type=docker,dest= type=local,dest= type=tar,dest= type=cacheonly"
	case "provenance":
		words = "true false mode=min mode=max"
	case "sbom":
		words = "true false generator="
	case "attest":
		words = "type=provenance type=sbom"
	case "cache-from":
		words = "type=registry,ref= type=local,src= type=s3, type=azblob, type=gha"
	case "cache-to":
		words = "type=registry,ref= type=local,dest= type=inline type=s3, type=azblob, type=gha"
	case "secret":
		words = "id="
	case "ssh":
		words = "default"
	case "resource":
		words = "memory= memory-swap= cpu-shares= cpu-period= cpu-quota= cpuset-cpus= cpuset-mems="
	case "executor":
		words = "oci fake"
	case "snapshotter":
		words = "auto overlayfs native"
	case "host":
		words = "unix:// tcp:// ssh:// docker-container://"
	case "root", "tlsdir":
		return []suggestion{{anyDir, ""}}
	case "file", "iidfile", "metadata-file", "source-policy-file", "config", "local", "oci-layout":
		return []suggestion{{anyFile, ""}}
	default:
		return nil
	}
	var out []suggestion
	for w := range strings.FieldsSeq(words) {
		out = append(out, suggestion{word: w})
	}
	if flag == "output" {
		out = append(out, suggestion{anyDir, ""})
	}
	return out
}

// startingWith leaves what begins as a word does, and paths.
func startingWith(word string, from []suggestion) []suggestion {
	return slices.DeleteFunc(from, func(s suggestion) bool {
		return s.word != anyFile && s.word != anyDir && !strings.HasPrefix(s.word, word)
	})
}
