package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/moby/buildkit/client/llb"
)

// The graphs go to both daemons as LLB and through the same client, so that
// their rows compare daemons alone.

func graphCases() []benchCase {
	return []benchCase{
		graphCase("wide-1000", wide),
		graphCase("merge-1000", merged),
		graphCase("chain-200", chain),
	}
}

func graphCase(name string, graph func(nonce string) llb.State) benchCase {
	rows := []string{name + "-cold", name + "-warm"}
	return benchCase{
		name: name, rows: rows, rounds: 3,
		run: func(ctx context.Context, r *roundRun) error {
			def, err := graph(r.nonce).Marshal(ctx)
			if err != nil {
				return fmt.Errorf("marshal graph: %w", err)
			}
			var wire bytes.Buffer
			if err := llb.WriteTo(def, &wire); err != nil {
				return fmt.Errorf("write graph: %w", err)
			}
			for _, row := range rows {
				if err := r.timed(ctx, row, buildSpec{llb: wire.Bytes()}); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// leaves are states of one file each.
func leaves(n int, nonce string) []llb.State {
	list := make([]llb.State, n)
	for i := range list {
		name := fmt.Sprintf("/f%d", i)
		list[i] = llb.Scratch().File(llb.Mkfile(name, 0o644, []byte(nonce+name)))
	}
	return list
}

// wide copies one file each of 1,000 states into one.
func wide(nonce string) llb.State {
	var copies *llb.FileAction
	for i, s := range leaves(999, nonce) {
		name := fmt.Sprintf("/f%d", i)
		if copies == nil {
			copies = llb.Copy(s, name, name)
		} else {
			copies = copies.Copy(s, name, name)
		}
	}
	return llb.Scratch().File(copies)
}

// merged lays 100 states over each other, ten times, and those once more.
func merged(nonce string) llb.State {
	all := leaves(990, nonce)
	var groups []llb.State
	for i := range 10 {
		groups = append(groups, llb.Merge(all[i*99:(i+1)*99]))
	}
	return llb.Merge(groups)
}

// chain writes 200 files, each on top of the one before.
func chain(nonce string) llb.State {
	s := llb.Scratch()
	for i := range 200 {
		name := fmt.Sprintf("/f%d", i)
		s = s.File(llb.Mkfile(name, 0o644, []byte(nonce+name)))
	}
	return s
}
