package history

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestFilters(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	records := []*Record{
		{Ref: "old", CreatedAt: ago(26 * time.Hour), CompletedAt: ago(25 * time.Hour), FrontendAttrs: map[string]string{"vcs:source": "https://example.com/a.git"}},
		{
			Ref: "bad", CreatedAt: ago(2 * time.Hour), CompletedAt: ago(2*time.Hour - time.Minute), Failure: &Failure{2, "no, not so"},
			FrontendAttrs: map[string]string{"context": "https://example.com/b.git#main:sub"},
		},
		{
			Ref: "stopped", CreatedAt: ago(time.Hour), CompletedAt: ago(time.Hour - time.Second), Failure: &Failure{1, "step: context canceled"},
			FrontendAttrs: map[string]string{"context": "git@example.com:c.git"},
		},
		{Ref: "now", CreatedAt: ago(time.Minute), FrontendAttrs: map[string]string{"context": "local:x"}},
	}
	for text, want := range map[string]string{
		"":                                          "old bad stopped now",
		"ref==bad":                                  "bad",
		"ref!=bad":                                  "old stopped now",
		`ref~=^(old|now)$`:                          "old now",
		"status==running":                           "now",
		"status==completed":                         "old",
		"status==error":                             "bad",
		"status==canceled":                          "stopped",
		"status!=completed,ref!=now":                "bad stopped",
		"repository==https://example.com/a.git":     "old",
		"repository==https://example.com/b.git":     "bad",
		"repository==git@example.com:c.git":         "stopped",
		"repository":                                "old bad stopped",
		"repository~=example.com/":                  "old bad",
		"startedAt>24h":                             "bad stopped now",
		"startedAt<24h":                             "old",
		"startedAt>=2h":                             "bad stopped now",
		"startedAt<=2h":                             "old bad",
		"completedAt>90m":                           "stopped",
		"completedAt<2026-03-04T00:00:00Z":          "old",
		"duration>30m":                              "old",
		"duration<=1m":                              "bad stopped",
		"duration>=1m":                              "old bad",
		"startedAt>3h,status==error":                "bad",
		"status==error;status==canceled":            "",
		"ref==old|ref==now":                         "",
		`"ref==old","status==completed"`:            "old",
		"ref==nothing":                              "",
		"startedAt>2026-03-04T11:30:00Z,ref!=other": "now",
	} {
		f, err := parseFilters([]string{text}, now)
		if strings.ContainsAny(text, ";|") && err != nil {
			continue // containerd's grammar has no such thing
		}
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		var got []string
		for _, r := range records {
			if f(r) {
				got = append(got, r.Ref)
			}
		}
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q holds for %q, want %q", text, got, want)
		}
	}
	both, err := parseFilters([]string{"ref==old", "status==running"}, now)
	if err != nil || !both(records[0]) || both(records[1]) || !both(records[3]) {
		t.Errorf("one of two filters is not enough (%v)", err)
	}
	for _, text := range []string{
		"ref+foo", "ref~=[", "color==red", "startedAt==1h", "startedAt>soon", "duration<long", "duration!=1h", "completedAt", "ref==a,", `"ref`,
	} {
		if _, err := parseFilters([]string{text}, now); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
