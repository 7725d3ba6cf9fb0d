package build

import (
	"strings"
	"testing"
)

func TestComparePlatforms(t *testing.T) {
	for _, c := range []struct {
		asked   string
		made    []string
		several bool
		want    string
	}{
		{"", []string{"linux/amd64"}, false, ""},
		{"linux/arm64", []string{"linux/arm64"}, false, ""},
		{"linux/arm64/v8", []string{"linux/arm64"}, false, ""},
		{"windows/amd64", []string{"windows(10.0.20348)/amd64"}, false, ""},
		{"linux/arm64", []string{"linux/amd64"}, false, `"linux/arm64" does not match result platform "linux/amd64"`},
		{"linux/amd64,linux/arm64", []string{"linux/amd64"}, false, "Multiple platforms requested but result is not multi-platform"},
		{"linux/amd64,linux/arm64", []string{"linux/arm64", "linux/amd64"}, true, ""},
		{"linux/amd64,linux/arm64", []string{"linux/arm64", "linux/386"}, true, "do not match result platforms linux/386,linux/arm64"},
		{"", []string{"linux/arm64", "linux/amd64"}, true, "do not match result platforms linux/amd64,linux/arm64"},
		{"linux/amd64,linux/amd64", []string{"linux/amd64"}, true, "Duplicate platform"},
		{"a/b/c/d/e", []string{"linux/amd64"}, false, "Invalid platform"},
	} {
		got := comparePlatforms(c.asked, "linux/amd64", c.made, c.several)
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("asked for %q, made %q: %q, want %q", c.asked, c.made, got, c.want)
		}
	}
}
