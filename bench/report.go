package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/kiln-build/kiln/conformance/peer"
)

// results are the samples of a run.
type results struct {
	order    []string // rows as they came
	units    map[string]string
	samples  map[string]map[string][]float64 // row, engine
	failures []string
	cpu      bool // tell of processor time
}

func newResults(cpu bool) *results {
	return &results{cpu: cpu, units: map[string]string{}, samples: map[string]map[string][]float64{}}
}

func (rs *results) add(row, unit, engine string, value float64) {
	if rs.samples[row] == nil {
		rs.order = append(rs.order, row)
		rs.units[row] = unit
		rs.samples[row] = map[string][]float64{}
	}
	rs.samples[row][engine] = append(rs.samples[row][engine], value)
}

// keep notes what a build took, or that it hung or failed. A daemon whose build
// hung is started anew. The row "" is of builds that only set the scene.
func (rs *results) keep(ctx context.Context, e *engine, row string, m measured, err error) error {
	if row == "" {
		row = "scene"
	}
	switch {
	case errors.Is(err, errHang):
		fmt.Fprintf(os.Stderr, "%s: %v\n", row, err)
		rs.add(row+"/hangs", "count", e.Name, 1)
		e.Stop()
		return e.Start(ctx)
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		fmt.Fprintf(os.Stderr, "%s: %v\n", row, err)
		rs.failures = append(rs.failures, fmt.Sprintf("%s: %v", row, err))
		return nil
	case row != "scene":
		rs.add(row, "s", e.Name, m.wall.Seconds())
		rs.add(row+"/daemon-peak", "MB", e.Name, float64(m.daemonPeak)/1e6)
		if rs.cpu && m.cpu > 0 {
			rs.add(row+"/cpu", "s", e.Name, m.cpu.Seconds())
		}
		if m.clientPeak > 0 { // else the client is this program itself
			rs.add(row+"/client-peak", "MB", e.Name, float64(m.clientPeak)/1e6)
		}
	}
	return nil
}

// value is the median of a row, or the sum of what is counted.
func (rs *results) value(row, engine string) float64 {
	list := slices.Sorted(slices.Values(rs.samples[row][engine]))
	if len(list) == 0 {
		return 0
	}
	if rs.units[row] == "count" {
		return float64(len(list))
	}
	n := len(list) / 2
	if len(list)%2 == 1 {
		return list[n]
	}
	return (list[n-1] + list[n]) / 2
}

// summary is one line about some rows, to show how a run goes on.
func (rs *results) summary(rows []string) string {
	var parts []string
	for _, row := range rows {
		parts = append(parts, fmt.Sprintf("%s %.3f against %.3f %s", row, rs.value(row, kilnName), rs.value(row, buildkitName), rs.units[row]))
	}
	return strings.Join(parts, "; ")
}

// line is a row of latest.json. Ratio is kiln/buildkit, so that less is better;
// it is 0 where one of them has no value.
type line struct {
	Name     string  `json:"name"`
	Unit     string  `json:"unit"`
	Kiln     float64 `json:"kiln"`
	BuildKit float64 `json:"buildkit"`
	Ratio    float64 `json:"ratio"`
}

// cells are the line as tables show it, with a dash in place of what is not known:
// nothing is, of an engine that hung in each round.
func (l line) cells() []string {
	number := func(value float64, digits int, known bool) string {
		if !known {
			return "-"
		}
		return strconv.FormatFloat(value, 'f', digits, 64)
	}
	counted := l.Unit == "count" // of which 0 is a number like others
	return []string{
		l.Name, l.Unit, number(l.Kiln, 3, counted || l.Kiln > 0), number(l.BuildKit, 3, counted || l.BuildKit > 0),
		number(l.Ratio, 2, l.Kiln > 0 && l.BuildKit > 0),
	}
}

func (rs *results) lines() (list []line) {
	for _, row := range rs.order {
		l := line{Name: row, Unit: rs.units[row], Kiln: rs.value(row, kilnName), BuildKit: rs.value(row, buildkitName)}
		if l.BuildKit > 0 {
			l.Ratio = l.Kiln / l.BuildKit
		}
		list = append(list, l)
	}
	return list
}

// write prints the table and writes out/latest.json.
func (rs *results) write(w io.Writer) error {
	list := rs.lines()
	text, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	if err := peer.WriteFiles("out", map[string]string{"latest.json": string(text) + "\n"}); err != nil {
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "row\tunit\tkiln\tbuildkit\tratio\t")
	for _, l := range list {
		fmt.Fprintln(tw, strings.Join(l.cells(), "\t")+"\t")
	}
	return tw.Flush()
}

// machine describes the machine's size in a line.
func machine() string {
	model, memory := "unknown processor", "unknown"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		if kb, err := strconv.Atoi(strings.Fields(string(text))[1]); err == nil {
			memory = fmt.Sprintf("%d GB", kb/1e6)
		}
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		kernel = []byte("unknown")
	}
	return fmt.Sprintf("%d cores (%s), %s of memory, Linux %s on %s, %s",
		runtime.NumCPU(), model, memory, strings.TrimSpace(string(kernel)), runtime.GOARCH, filepath.Base(runtime.Version()))
}
