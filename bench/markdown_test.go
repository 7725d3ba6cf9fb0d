package main

import (
	"strings"
	"testing"
)

// A run of some cases leaves the rows of others, and those of cases that are
// gone do not stay.
func TestRowsAreKept(t *testing.T) {
	all := []benchCase{{rows: []string{"a"}}, {rows: []string{"b", "c"}}}
	old := resultsText("", []line{
		{"c", "s", 1, 2, 0.5}, {"a", "s", 1, 1, 1}, {"a/daemon-peak", "MB", 3, 4, 0.75},
	}, append(all, benchCase{rows: []string{"gone"}}), "2026-01-01", "a machine")
	got := resultsText(old+"| gone | s | 1.000 | 1.000 | 1.00 | 2026-01-01 |\n", []line{
		{"a", "s", 1, 4, 0.25}, {"b", "s", 1, 0, 0}, {"b/hangs", "count", 0, 3, 0},
	}, all, "2026-01-02", "another")
	_, table, _ := strings.Cut(got, tableHead)
	const want = `| a | s | 1.000 | 4.000 | 0.25 | 2026-01-02 |
| b | s | 1.000 | - | - | 2026-01-02 |
| b/hangs | count | 0.000 | 3.000 | - | 2026-01-02 |
| c | s | 1.000 | 2.000 | 0.50 | 2026-01-01 |
`
	if table != want {
		t.Errorf("the table is\n%s\nwant\n%s", table, want)
	}
}
