package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/kiln-build/kiln/conformance/peer"
)

// resultsFile is where rows are kept from run to run.
const resultsFile = "RESULTS.md"

const tableHead = "| row | unit | Kiln | BuildKit | ratio | day |\n|---|---|--:|--:|--:|---|\n"

// keepRows writes the rows of this run to RESULTS.md. Rows of cases that it did
// not run stay as they are, in the order of all cases.
func keepRows(list []line, all []benchCase) error {
	old, err := os.ReadFile(resultsFile)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("read the last results: %w", err)
	}
	text := resultsText(string(old), list, all, time.Now().UTC().Format(time.DateOnly), machine())
	return peer.WriteFiles(".", map[string]string{resultsFile: text})
}

func resultsText(old string, list []line, all []benchCase, day, machine string) string {
	rows := map[string][]string{} // by the case's row that they belong to
	for l := range strings.Lines(old) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(l, "| "), " | "); ok && strings.HasPrefix(l, "| ") {
			rows[family(name)] = append(rows[family(name)], l)
		}
	}
	var ran []string
	for _, l := range list {
		if f := family(l.Name); !slices.Contains(ran, f) {
			ran = append(ran, f)
			rows[f] = nil
		}
		rows[family(l.Name)] = append(rows[family(l.Name)],
			fmt.Sprintf("| %s | %s |\n", strings.Join(l.cells(), " | "), day))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Kiln and BuildKit side by side\n\n"+
		"Written by `make bench`, last on %s: %s.\n\n"+
		"Medians of rounds in which both daemons took turns on the same input, with the same container\n"+
		"runtime; ratio is Kiln / BuildKit, so less is better. `daemon-peak` and `client-peak` are the\n"+
		"highest resident memory of the daemon's and the client's process during a build. A build that\n"+
		"took longer than the limit (two minutes, or what -limit says) counts as hung and is left out of\n"+
		"the medians; the row `hangs` counts them. Both daemons run with their defaults: BuildKit's containers share the host's network,\n"+
		"Kiln's have their own. The graphs of 1,000 and 200 vertices are sent to both by `buildctl`.\n"+
		"Before each timed build the disk gets what was written before it, and before each that moves 500 MB,\n"+
		"2 GB of memory that is free are touched, so that the machine's host has given them: neither is counted.\n"+
		"A daemon's turn begins when both have done what their builds had left to do, or three seconds later.\n"+
		"Builds of the same graph, first cold and then warm, follow each other without a pause.\n\n"+
		tableHead, day, machine)
	for _, c := range all {
		for _, row := range c.rows {
			b.WriteString(strings.Join(rows[row], ""))
			delete(rows, row)
		}
	}
	return b.String()
}

// family is the row that another one, such as its peak of memory, belongs to.
func family(row string) string {
	name, _, _ := strings.Cut(row, "/")
	return name
}
