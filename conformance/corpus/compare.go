package corpus

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Compare says in what Kiln's outcomes of a case, of its first build and the one
// after it, differ from BuildKit's. Nothing means that they are equal.
func Compare(c *Case, kiln, buildkit [2]*Outcome) []string {
	k, b := kiln[0], buildkit[0]
	var diffs []string
	differ := func(format string, args ...any) { diffs = append(diffs, fmt.Sprintf(format, args...)) }
	switch {
	case c.Fails == "" && b.Err != nil:
		differ("BuildKit fails, which the case did not expect: %v", b.Err)
	case c.Fails != "" && b.Err == nil:
		differ("BuildKit builds it, but was to say %q", c.Fails)
	case c.Fails != "" && !strings.Contains(b.Err.Error(), c.Fails):
		differ("BuildKit was to say %q, but says: %v", c.Fails, b.Err)
	}
	if (k.Err == nil) != (b.Err == nil) {
		differ("errors: Kiln's %v, BuildKit's %v", k.Err, b.Err)
		return diffs
	}
	if b.Err != nil {
		if len(b.ErrLines) > 0 && !slices.Contains(c.Differs, "lines") && !slices.ContainsFunc(k.ErrLines, func(l string) bool { return slices.Contains(b.ErrLines, l) }) {
			differ("error at: Kiln's %v, BuildKit's %v (%v; %v)", k.ErrLines, b.ErrLines, k.Err, b.Err)
		}
		return diffs
	}
	diffs = append(diffs, compareGraphs(k.Graphs, b.Graphs)...)
	if slices.Contains(c.Differs, "steps") {
		if ours, theirs := howMany(kiln[1].Steps), howMany(buildkit[1].Steps); !maps.Equal(ours, theirs) {
			differ("second build: Kiln's steps are %v, BuildKit's %v", ours, theirs)
		}
	} else {
		diffs = append(diffs, compareMaps("first build, step", k.Steps, b.Steps, true)...)
		diffs = append(diffs, compareMaps("second build, step", kiln[1].Steps, buildkit[1].Steps, false)...)
	}
	if ours, theirs := rules(k.Warnings), rules(b.Warnings); !slices.Equal(ours, theirs) {
		differ("warnings: Kiln's %q, BuildKit's %q", ours, theirs)
	}
	return append(diffs, compareArchives(k.Archive, b.Archive)...)
}

// howMany counts the steps of each kind but sources.
func howMany(steps map[string]string) map[string]int {
	counts := map[string]int{}
	for _, how := range steps {
		if how != "source" {
			counts[how]++
		}
	}
	return counts
}

// rules are the lint rules that warnings come from, but for those that Kiln
// alone has. It also warns where nothing is known of an ssh server's key:
// BuildKit asks the server itself for it, and takes what it says.
func rules(warnings []string) []string {
	kept := slices.DeleteFunc(slices.Sorted(slices.Values(warnings)), func(rule string) bool {
		if strings.HasPrefix(rule, "the identity of ") {
			return true
		}
		return slices.Contains([]string{"BrokenOnbuildTrigger", "InvalidJSONForm", "UnknownBuildArg"}, rule)
	})
	return slices.Compact(kept)
}

func compareArchives(kiln, buildkit []byte) []string {
	k, err := ReadImages(kiln)
	if err != nil {
		return []string{fmt.Sprintf("Kiln's image: %v", err)}
	}
	b, err := ReadImages(buildkit)
	if err != nil {
		return []string{fmt.Sprintf("BuildKit's image: %v", err)}
	}
	if len(k) != len(b) {
		return []string{fmt.Sprintf("images: Kiln's %d, BuildKit's %d", len(k), len(b))}
	}
	var diffs []string
	for i := range k {
		diffs = append(diffs, compareImages(k[i], b[i])...)
	}
	return diffs
}

func compareImages(k, b Image) []string {
	var diffs []string
	if k.Platform != b.Platform {
		diffs = append(diffs, fmt.Sprintf("platform: Kiln's %s, BuildKit's %s", k.Platform, b.Platform))
	}
	if k.Config != b.Config {
		diffs = append(diffs, "config:\n"+lineDiff(strings.Split(k.Config, "\n"), strings.Split(b.Config, "\n")))
	}
	if len(k.Files) != len(b.Files) {
		return append(diffs, fmt.Sprintf("layers: Kiln's %d, BuildKit's %d", len(k.Files), len(b.Files)))
	}
	for i := range k.Files {
		if k.Layers[i] != b.Layers[i] {
			diffs = append(diffs, compareLayers(fmt.Sprintf("layer %d", i), k.Created, k.Files[i], b.Files[i])...)
		}
	}
	return diffs
}

// compareLayers wants all to be equal but for two things in which BuildKit is
// the worse: it dates folders by the build where Kiln keeps a time that the next
// build has, too, and it leaves times later than SOURCE_DATE_EPOCH, by which the image
// was created, in layers.
func compareLayers(layer, created string, kiln, buildkit map[string]File) []string {
	all := maps.Clone(kiln)
	maps.Copy(all, buildkit)
	var diffs []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		k, b := kiln[name], buildkit[name]
		if b.Time == "now" || k.Time == created && b.Time > created {
			k.Time = b.Time
		}
		if k != b {
			diffs = append(diffs, fmt.Sprintf("%s, %q:\n    Kiln:     %s\n    BuildKit: %s", layer, name, kiln[name], b))
		}
	}
	return diffs
}

func compareGraphs(kiln, buildkit map[string]Graph) []string {
	all := maps.Clone(kiln)
	maps.Copy(all, buildkit)
	var diffs []string
	for _, platform := range slices.Sorted(maps.Keys(all)) {
		k, inKiln := kiln[platform]
		b, inBuildKit := buildkit[platform]
		if inKiln != inBuildKit || !slices.Equal(k, b) {
			diffs = append(diffs, fmt.Sprintf("LLB %s:\n%s", platform, lineDiff(k, b)))
		}
	}
	return diffs
}

// compareMaps compares texts by name, or the names alone.
func compareMaps(what string, kiln, buildkit map[string]string, namesOnly bool) []string {
	all := maps.Clone(kiln)
	maps.Copy(all, buildkit)
	var diffs []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		k, inKiln := kiln[name]
		b, inBuildKit := buildkit[name]
		if inKiln != inBuildKit || (!namesOnly && k != b) {
			diffs = append(diffs, fmt.Sprintf("%s %q:\n    Kiln:     %s\n    BuildKit: %s", what, name, k, b))
		}
	}
	return diffs
}

// lineDiff shows the lines that one side alone has.
func lineDiff(kiln, buildkit []string) string {
	var out []string
	for _, l := range kiln {
		if !slices.Contains(buildkit, l) {
			out = append(out, "    Kiln:     "+l)
		}
	}
	for _, l := range buildkit {
		if !slices.Contains(kiln, l) {
			out = append(out, "    BuildKit: "+l)
		}
	}
	if out == nil {
		out = append(out, "    the same lines in another order")
	}
	return strings.Join(out, "\n")
}
