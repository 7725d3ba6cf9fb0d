package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
	"github.com/kiln-build/kiln/internal/ui"
)

const whyDescription = `Tells why steps of a build ran and were not found in the cache: the parts of the
step's key that are not as they were in the nearest step of an earlier build.

Examples:
   kiln why                    the steps of the last build that ran
   kiln why REF                those of another build (see kiln history ls)
   kiln why 'RUN make'         one step of the last build, by a part of its name
   kiln why REF 3              one step by its number, all differences
   kiln why --format json      for programs

A step's key is made of what it does (instruction, build arguments, variables,
mounts, platform), of what it is built on, and of the content of the files that
it reads. Where a step reads more than 4096 files, the differences name folders.`

func whyCommand(e *env) *cli.Command {
	return &cli.Command{
		Name:        "why",
		Usage:       "tell why steps ran and were not cached",
		ArgsUsage:   "[REF] [STEP]",
		Description: whyDescription,
		Flags:       []cli.Flag{textOrJSON()},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			if cmd.NArg() > 2 {
				return usagef(cmd, "unexpected argument %q", cmd.Args().Get(2))
			}
			asJSON, err := wantsJSON(cmd)
			if err != nil {
				return err
			}
			return withClient(ctx, e, cmd, func(c *client.Client) error {
				x, step, err := explanation(ctx, cmd, c)
				if err != nil {
					return err
				}
				if asJSON {
					return writeJSON(e.stdout, x)
				}
				writeExplanation(e.pages, x, step)
				return nil
			})
		},
	}
}

func textOrJSON() cli.Flag {
	return &cli.StringFlag{Name: "format", Usage: "`FORMAT`: text, or json for programs", Value: "text"}
}

// wantsJSON reads --format.
func wantsJSON(cmd *cli.Command) (bool, error) {
	switch f := cmd.String("format"); f {
	case "", "text":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, usagef(cmd, "--format: %q is neither text nor json", f)
	}
}

func writeJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// mostStepDigits is how long a number is that means a step, and not the
// beginning of a build's ref.
const mostStepDigits = 4

// explanation asks for the build, and keeps the steps that the arguments mean.
func explanation(ctx context.Context, cmd *cli.Command, c *client.Client) (x *client.Explanation, step string, err error) {
	ref, step := cmd.Args().Get(0), cmd.Args().Get(1)
	if _, err := strconv.Atoi(ref); err == nil && step == "" && len(ref) <= mostStepDigits {
		ref, step = "", ref
	}
	if ref != "" {
		list, err := builds(ctx, c, client.HistoryOpt{})
		if err != nil {
			return nil, "", err
		}
		r, err := pick(list, ref)
		switch {
		case err == nil:
			ref = r.Ref
		case step != "":
			return nil, "", err
		default: // not a build: a step of the last one
			ref, step = "", ref
		}
	}
	if x, err = c.Why(ctx, ref); err != nil || step == "" {
		return x, step, err
	}
	var chosen []client.StepOutcome
	for _, s := range x.Steps {
		n, err := strconv.Atoi(step)
		if err == nil && n == s.Number || strings.Contains(strings.ToLower(s.Name), strings.ToLower(step)) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, "", fmt.Errorf("neither a build nor a step of build %s is called %q: see kiln history ls, and kiln why %.10s --format json", x.Ref, step, x.Ref)
	}
	x.Steps = chosen
	return x, step, nil
}

const shownDifferences = 8 // of a step that was not asked for

func writeExplanation(out io.Writer, x *client.Explanation, step string) {
	ran := 0
	for _, s := range x.Steps {
		if s.Outcome == client.OutcomeRan || s.Outcome == client.OutcomeFailed {
			ran++
		}
	}
	fmt.Fprintf(out, "Build %s: %s\n", x.Ref, statsText(x.Cache))
	if ran == 0 && step == "" {
		fmt.Fprintln(out, "No step ran that a cache can have: there is nothing to explain.")
	}
	hints := map[string]bool{}
	for _, s := range x.Steps {
		did := s.Outcome == client.OutcomeRan || s.Outcome == client.OutcomeFailed
		if !did && step == "" {
			continue
		}
		fmt.Fprintf(out, "\n%d  %s\n", s.Number, s.Name)
		if !did {
			fmt.Fprintf(out, "   %s\n", s.Outcome)
			if s.Reason != "" {
				fmt.Fprintf(out, "   because %s\n", s.Reason)
			}
			fmt.Fprintf(out, "   key %s\n", s.Key)
			continue
		}
		fmt.Fprintf(out, "   %s for %s\n", s.Outcome, s.Took.Round(time.Millisecond))
		writeDifferences(out, s, step != "")
		for _, d := range s.Differences {
			hints[d.Kind] = true
		}
	}
	writeHints(out, hints)
}

func writeDifferences(out io.Writer, s client.StepOutcome, all bool) {
	if len(s.Differences) == 0 {
		fmt.Fprintf(out, "   because %s\n", s.Reason)
		return
	}
	for i, d := range s.Differences {
		word := "because"
		if i > 0 {
			word = "and    "
		}
		if i == shownDifferences && !all {
			fmt.Fprintf(out, "   and     %d more: kiln why REF %d\n", len(s.Differences)-i, s.Number)
			break
		}
		fmt.Fprintf(out, "   %s %s\n", word, d.Sentence)
	}
	if all {
		fmt.Fprintf(out, "   key %s\n   compared with build %s\n", s.Key, s.ComparedWith)
	}
}

// writeHints says what can be done so that it does not happen again.
func writeHints(out io.Writer, kinds map[string]bool) {
	first := true
	for _, h := range []struct{ kind, text string }{
		{"file", "Files that a step does not need can be kept out by .dockerignore, or by copying fewer of them before it."},
		{"build-arg", "An ARG counts for the RUN steps below it: put it after those that do not need it."},
		{"image", "FROM NAME@sha256:DIGEST stays with one image, whatever its name means tomorrow."},
		{"evicted", "kiln du shows what takes space, kiln daemon --help how much there may be."},
	} {
		if !kinds[h.kind] {
			continue
		}
		if first {
			fmt.Fprintln(out)
			first = false
		}
		fmt.Fprintf(out, "Hint: %s\n", h.text)
	}
}

// statsText says what the cache was worth.
func statsText(c client.CacheStats) string {
	if c.Steps == 0 {
		return "no step that a cache can have"
	}
	text := fmt.Sprintf("%d of %d steps from the cache (%d%%)", c.Hits, c.Steps, c.Hits*100/c.Steps)
	if c.Hits > 0 {
		text += fmt.Sprintf(", which saved %s and %s of work", ui.Bytes(c.SavedBytes), c.SavedTime.Round(time.Millisecond))
	}
	return text
}
