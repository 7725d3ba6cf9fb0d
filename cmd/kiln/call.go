package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/kiln-build/kiln/client"
)

// call is a question about a build file, asked in place of a build.
type call struct {
	request      string // the frontend's name of it
	json         bool
	ignoreStatus bool // remarks do not make the command fail
}

// parseCall reads --check and --call; nil means a build.
func parseCall(cmd *cli.Command) (*call, error) {
	fields, err := csvFields(cmd.String("call"))
	if cmd.String("call") == "" {
		fields, err = []string{"build"}, nil
		if cmd.Bool("check") {
			fields[0] = "check"
		}
	} else if cmd.Bool("check") {
		return nil, usagef(cmd, "--check and --call exclude each other; --check is --call check")
	}
	if err != nil {
		return nil, usagef(cmd, "--call %v", err)
	}
	c := &call{}
	for i, field := range fields {
		key, value, ok := strings.Cut(field, "=")
		switch {
		case i == 0 && !ok:
			c.request = requestOf(field)
			continue
		case key == "format" && (value == "json" || value == "text"):
			c.json = value == "json"
			continue
		case key == "ignorestatus":
			on, err := strconv.ParseBool(value)
			if !ok {
				on, err = true, nil
			}
			if err == nil {
				c.ignoreStatus = on
				continue
			}
		}
		return nil, usagef(cmd, "--call %q: want build, check, outline or targets, and maybe ,format=json and ,ignorestatus=true", cmd.String("call"))
	}
	if c.request == "" {
		return nil, nil
	}
	if cmd.Bool("push") || cmd.IsSet("output") || cmd.IsSet("iidfile") || cmd.IsSet("metadata-file") {
		return nil, usagef(cmd, "--check and --call make no result, so --output, --push, --iidfile and --metadata-file are of no use with them")
	}
	return c, nil
}

// requestOf is the frontend's name of a method, "" for a build.
func requestOf(method string) string {
	switch method {
	case "build":
		return ""
	case "check":
		method = "lint"
	}
	return "frontend." + strings.TrimPrefix(method, "frontend.")
}

// runCall asks, and prints the answer.
func runCall(ctx context.Context, e *env, cmd *cli.Command, c *call, opt client.SolveOpt, sink client.Sink, finish func(error) error) error {
	opt.Exports, opt.CacheExports, opt.Internal = nil, nil, true
	opt.FrontendAttrs["requestid"] = c.request
	daemon, err := connect(ctx, e, cmd)
	if err != nil {
		return finish(err)
	}
	_, answer, err := solveThroughGateway(ctx, daemon, opt, nil, sink)
	if err := finish(errors.Join(err, daemon.Close())); err != nil {
		return err
	}
	return c.print(e.stdout, answer)
}

// print prints an answer. Remarks of a check fail the command.
func (c *call) print(out io.Writer, answer map[string][]byte) error {
	status := string(answer["result.statuscode"])
	var err error
	switch data, ok := answer["result.json"]; {
	case c.json && ok:
		_, err = fmt.Fprintf(out, "%s\n", data)
	case c.request == requestOf("check"):
		err = printCheck(out, answer)
	default:
		err = writeSubresult(out, answer)
	}
	if err != nil {
		return err
	}
	if status != "" && status != "0" && !c.ignoreStatus {
		return &shownError{}
	}
	return nil
}

// printCheck prints what a check has found, and how much that is.
func printCheck(out io.Writer, answer map[string][]byte) error {
	var found struct {
		Warnings   []struct{} `json:"warnings"`
		BuildError *struct{}  `json:"buildError"`
	}
	if err := json.Unmarshal(answer["result.json"], &found); err != nil {
		return fmt.Errorf("read the answer of the check: %w", err)
	}
	if err := writeSubresult(out, map[string][]byte{"result.txt": answer["result.txt"]}); err != nil {
		return err
	}
	summary := "no warnings"
	switch n := len(found.Warnings); {
	case n == 1:
		summary = "1 warning"
	case n > 1:
		summary = fmt.Sprintf("%d warnings", n)
	}
	if found.BuildError != nil {
		summary += ", and the file cannot be built"
	}
	_, err := fmt.Fprintf(out, "Check complete: %s.\n", summary)
	return err
}
