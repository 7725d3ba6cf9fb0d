package main

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// diskUse is what du says that a script's daemon's folder takes, in bytes.
func diskUse(ts *testscript.TestScript) int64 {
	n, err := folderUse(ts.Getenv("ROOT"))
	ts.Check(err)
	return n
}

// folderUse is what du says that a folder takes, in bytes.
func folderUse(dir string) (int64, error) {
	out, err := exec.Command("du", "-sx", "--block-size=1", filepath.Clean(dir)).Output()
	if len(out) == 0 { // files that vanish while it looks make it complain, too
		return 0, fmt.Errorf("du %s: %w", dir, err)
	}
	size, _, _ := strings.Cut(string(out), "\t")
	return strconv.ParseInt(size, 10, 64)
}

// scriptSameUsage: "same-usage PERCENT" holds that the sum of what kiln du lists
// is what du says, with so much difference at most.
func scriptSameUsage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: same-usage percent")
	}
	percent, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	bin, err := programs()
	ts.Check(err)
	cmd := exec.Command(filepath.Join(bin, "kiln"), "--host", ts.Getenv("KILN_HOST"), "du", "--format", "json")
	out, err := cmd.Output()
	ts.Check(err)
	var told struct {
		Records []struct{ Size int64 }
		Root    struct {
			Used   int64
			Places []struct {
				Name string
				Size int64
			}
		}
	}
	ts.Check(json.Unmarshal(out, &told))
	sum := int64(0)
	for _, r := range told.Records {
		sum += r.Size
	}
	for _, p := range told.Root.Places {
		sum += p.Size
	}
	disk := diskUse(ts)
	if d := max(sum-disk, disk-sum); d*100 > disk*percent || sum != told.Root.Used {
		ts.Fatalf("kiln du lists %d bytes and says %d, the disk has %d: %+v", sum, told.Root.Used, disk, told.Root.Places)
	}
}

// scriptBelow: "below MIB" holds that the daemon's folder takes no more, as soon
// as somebody has looked at what the last step wrote.
func scriptBelow(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: below mib")
	}
	most, err := strconv.ParseInt(args[0], 10, 64)
	ts.Check(err)
	n := diskUse(ts)
	for end := time.Now().Add(time.Minute); n > most<<20; n = diskUse(ts) {
		if time.Now().After(end) {
			ts.Fatalf("the daemon's folder takes %d bytes, at most %d were wanted", n, most<<20)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
